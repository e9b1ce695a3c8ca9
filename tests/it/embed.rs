//! Vectors and scores of texts: those of transformers' hidden states, beside requests that run, and what rerankers' files have.

use crate::families::read_npy;
use crate::program::*;
use qernel::config::Config;
use qernel::disk::Access;
use qernel::engine::pooling::{Pooler, Pooling};
use qernel::engine::{Engine, Event};
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::load::{DeviceChoice, LoadedModel, RunnerOptions, open_runner};
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use qernel::{Request, folder};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const TOKENS: [u32; 12] = [3, 17, 44, 0, 61, 8, 9, 30, 30, 5, 52, 11];

fn options(max_num_logits: usize) -> RunnerOptions {
    let max_num_sequences = 2.min(max_num_logits);
    RunnerOptions {
        device: DeviceChoice::Cpu,
        max_num_sequences,
        max_num_logits,
        max_num_tokens: Some(5),
        ..RunnerOptions::default()
    }
}

/// An engine without a vocabulary.
fn engine(gguf: &Gguf, max_num_logits: usize) -> Engine {
    let config = Config::from_gguf(gguf).unwrap();
    let weights = Weights::from_gguf(gguf, &config).unwrap();
    let pooler = Pooler::new(gguf, &config, &weights).unwrap();
    let runner = open_runner(&weights, &config, &options(max_num_logits), &mut |_, _| ()).unwrap();
    Engine::new(runner, None, Default::default()).unwrap().with_pooler(Arc::new(pooler))
}

#[track_caller]
fn assert_near(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // K and V are kept in f16.
        assert!((found - expected).abs() <= 4e-3, "{what}: value {i} is {found}, expected {expected}");
    }
}

#[test]
fn vectors_are_transformers_hidden_states() {
    for name in ["qwen3", "gpt2", "qwen35"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/folders").join(name);
        let gguf = folder::open(&path, Access::Map).unwrap();
        let hidden = read_npy(&path.join("hidden.npy"));
        let size = hidden.len() / TOKENS.len();
        let mean: Vec<f32> = (0..size)
            .map(|i| hidden.iter().skip(i).step_by(size).sum::<f32>() / TOKENS.len() as f32)
            .collect();
        // Steps of five rows, and of fewer where fewer are wanted.
        for max_num_logits in [1, 3, 5] {
            let mut engine = engine(&gguf, max_num_logits);
            let mut of = |pooling| engine.embed(&TOKENS, pooling).unwrap().unwrap().concat();
            assert_near(name, &of(Pooling::None), &hidden);
            assert_near(name, &of(Pooling::Mean), &mean);
            assert_near(name, &of(Pooling::Cls), &hidden[..size]);
            assert_near(name, &of(Pooling::Last), &hidden[hidden.len() - size..]);
        }
    }
}

/// What a request answers, while vectors are made between its steps if `beside`.
fn answer(gguf: &Gguf, beside: bool) -> Vec<u32> {
    let mut engine = engine(gguf, 2);
    let prompt = TOKENS.map(|token| token % 7).to_vec();
    engine.submit(Request { max_tokens: Some(9), text: false, ..Request::new(prompt) }).unwrap();
    let mut tokens = Vec::new();
    let mut made = 0;
    while engine.has_work() {
        for event in engine.step().unwrap() {
            if let Event::Token { token, .. } = event {
                tokens.push(token);
            }
        }
        if beside {
            made += usize::from(engine.embed(&TOKENS, Pooling::Mean).unwrap().is_some());
        }
    }
    assert_eq!(made > 0, beside);
    tokens
}

#[test]
fn vectors_beside_a_request_change_nothing_of_it() {
    for architecture in ["qwen2", "qwen35"] {
        let model = TinyModel { architecture, num_hidden_layers: 4, ..TinyModel::default() };
        let gguf = Gguf::from_bytes(model.to_bytes()).unwrap();
        let alone = answer(&gguf, false);
        assert_eq!((alone.len(), answer(&gguf, true)), (9, alone), "{architecture}");
    }
}

/// A text is computed in the rows of a step, of which a model that makes vectors needs none for logits, and a request that runs has its
/// token between them. Hybrids keep a state of the text beside that of the request.
#[test]
fn requests_go_on_between_the_rows_of_a_text() {
    for architecture in ["qwen2", "qwen35"] {
        let model = TinyModel { architecture, num_hidden_layers: 4, ..TinyModel::default() };
        let gguf = Gguf::from_bytes(model.to_bytes()).unwrap();
        let alone = answer(&gguf, false);
        let mut engine = engine(&gguf, 2);
        let vector = engine.embed(&TOKENS, Pooling::Mean).unwrap();
        let prompt = TOKENS.map(|token| token % 7).to_vec();
        engine.submit(Request { max_tokens: Some(9), text: false, ..Request::new(prompt) }).unwrap();
        let tokens = |engine: &mut Engine| -> Vec<u32> {
            let events = engine.step().unwrap().into_iter();
            let token = |event| if let Event::Token { token, .. } = event { Some(token) } else { None };
            events.filter_map(token).collect()
        };
        let mut made = Vec::new();
        while made.len() < 2 {
            made.extend(tokens(&mut engine));
        }
        // Five rows, five, and two; a token between each of them.
        assert!(engine.begin_embedding(&TOKENS, Pooling::Mean).unwrap());
        assert!(
            engine.begin_embedding(&TOKENS, Pooling::Mean).unwrap_err().to_string().contains("another text")
        );
        for rows in [5, 10] {
            assert_eq!(engine.advance_embedding().unwrap(), None, "{architecture}: {rows} of 12");
            let before = made.len();
            made.extend(tokens(&mut engine));
            assert_eq!(made.len(), before + 1, "{architecture}");
        }
        assert_eq!(engine.advance_embedding().unwrap(), vector, "{architecture}");
        assert!(engine.advance_embedding().unwrap_err().to_string().contains("has begun"));
        while engine.has_work() {
            made.extend(tokens(&mut engine));
        }
        assert_eq!(made, alone, "{architecture}");
        assert_eq!(engine.pool().num_used(), 0);
    }
}

/// Pages, and the slot of a hybrid, come back with a text that ends before it is done; while it has the last slot, requests wait for it.
#[test]
fn a_text_that_is_left_gives_back_what_it_had() {
    for architecture in ["qwen2", "qwen35"] {
        let model = TinyModel { architecture, num_hidden_layers: 4, ..TinyModel::default() };
        let gguf = Gguf::from_bytes(model.to_bytes()).unwrap();
        let mut engine = engine(&gguf, 1);
        let request = || Request { max_tokens: Some(2), text: false, ..Request::new(vec![1, 2]) };
        assert!(engine.begin_embedding(&TOKENS, Pooling::Last).unwrap());
        assert_eq!(engine.advance_embedding().unwrap(), None);
        engine.submit(request()).unwrap();
        let waits = engine.step().unwrap().is_empty();
        assert_eq!(waits, architecture == "qwen35", "{architecture}: one sequence at a time");
        engine.cancel_embedding();
        while engine.has_work() {
            engine.step().unwrap();
        }
        assert_eq!(engine.pool().num_used(), 0, "{architecture}");
        assert!(engine.embed(&TOKENS, Pooling::Last).unwrap().is_some());
        // The last slot is a request's: the text waits for it.
        engine.submit(request()).unwrap();
        engine.step().unwrap();
        assert_eq!(engine.begin_embedding(&TOKENS, Pooling::Last).unwrap(), architecture == "qwen2");
        engine.cancel_embedding();
    }
}

#[test]
fn texts_that_cannot_be_are_refused() {
    let gguf = Gguf::from_bytes(TinyModel::default().to_bytes()).unwrap();
    let mut engine = engine(&gguf, 2);
    for (tokens, expected) in
        [(vec![], "expected 1 to"), (vec![1 << 20], "only tokens 0 to"), (vec![0; 4096], "the context")]
    {
        let refused = engine.embed(&tokens, Pooling::Last).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    let refused = engine.embed(&[1], Pooling::Rank).unwrap_err().to_string();
    assert!(refused.contains("no classifier"), "{refused}");
}

/// A reranker: a classifier, its labels and its template.
fn reranker() -> Writer {
    TinyModel::reranker("<q>{query}<d>{document}")
}

#[test]
fn a_reranker_scores_the_last_token() {
    let gguf = Gguf::from_bytes(reranker().to_bytes().into()).unwrap();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    assert_eq!(weights.unused, [""; 0], "the classifier is used");
    let mut engine = engine(&gguf, 2);
    let pooler = engine.pooler().unwrap().clone();
    assert_eq!(pooler.pooling, Some(Pooling::Rank));
    assert_eq!(pooler.pair("a{document}", "b").unwrap(), "<q>a{document}<d>b");
    let last = engine.embed(&TOKENS, Pooling::Last).unwrap().unwrap().concat();
    let logit = |row: usize| -> f64 {
        let weight = (0..last.len()).map(|i| ((row * last.len() + i) % 5) as f64 - 2.0);
        last.iter().zip(weight).map(|(&x, weight)| f64::from(x) * weight).sum()
    };
    let expected = 1.0 / (1.0 + (logit(1) - logit(0)).exp());
    let score = f64::from(engine.embed(&TOKENS, Pooling::Rank).unwrap().unwrap()[0][0]);
    assert!((score - expected).abs() < 1e-5, "{score} and {expected}");

    for (shape, count) in [(vec![2, 3], 6), (vec![0, 4], 0)] {
        let mut damaged = reranker();
        damaged.remove_tensor("cls.output.weight");
        damaged.tensor("cls.output.weight", &shape, GgmlType::F32, vec![0; 4 * count]);
        let gguf = Gguf::from_bytes(damaged.to_bytes().into()).unwrap();
        let refused = Pooler::new(&gguf, &config, &weights).unwrap_err().to_string();
        assert!(refused.contains("expected [labels, "), "{refused}");
    }
    let mut unknown = reranker();
    let gguf = Gguf::from_bytes(unknown.set_metadata("qwen3.pooling_type", 9_u32).to_bytes().into()).unwrap();
    let refused =
        LoadedModel::load(&gguf, Instant::now(), &options(2), &mut |_, _| ()).err().unwrap().to_string();
    assert!(refused.contains("`qwen3.pooling_type` is 9; expected 0 to 4"), "{refused}");
}

/// What transformers would say next is what a reranker scores by.
#[test]
fn a_folder_of_a_reranker_scores_by_two_rows_of_its_head() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/folders/qwen3");
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("Qwen3-Reranker-0.0B");
    std::fs::create_dir(&path).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data.join(file), path.join(file)).unwrap();
    }
    let tokenizer = |yes: u32| {
        let text = format!(
            r#"{{"model": {{"type": "BPE", "vocab": {{"no": 3, "yes": {yes}}}, "merges": []}}, "pre_tokenizer": {{"type": "ByteLevel"}}}}"#
        );
        std::fs::write(path.join("tokenizer.json"), text).unwrap();
    };
    tokenizer(5);
    let gguf = folder::open(&path, Access::Map).unwrap();
    let mut engine = engine(&gguf, 2);
    let pooler = engine.pooler().unwrap().clone();
    assert_eq!(pooler.pooling, Some(Pooling::Rank));
    assert!(pooler.pair("sea", "wave").unwrap().contains("<Query>: sea\n<Document>: wave<|im_end|>"));
    let logits = read_npy(&data.join("logits.npy"));
    let last = &logits[logits.len() - logits.len() / TOKENS.len()..];
    let expected = 1.0 / (1.0 + (last[3] - last[5]).exp());
    let score = engine.embed(&TOKENS, Pooling::Rank).unwrap().unwrap()[0][0];
    // K and V are kept in f16.
    assert!((score - expected).abs() < 2e-3, "{score} and {expected}");
    tokenizer(64);
    let refused = folder::open(&path, Access::Map).err().unwrap().to_string();
    assert!(refused.contains("the model has 64 tokens"), "{refused}");
}

/// The numbers of each line.
fn lines(command: &mut assert_cmd::Command) -> Vec<Vec<f64>> {
    let output = command.assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    text.lines().map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect()).collect()
}

#[test]
fn the_commands_print_vectors_and_scores() {
    let fixture = Fixture::new();
    let embed = |arguments: &[&str]| {
        let mut command = fixture.command("embed");
        command.args(["--device", "cpu"]).args(arguments);
        command
    };
    let vectors = lines(&mut embed(&["the sea", "the moon"]));
    assert_eq!((vectors.len(), vectors[0].len()), (2, TinyModel::default().hidden_size));
    for vector in &vectors {
        let length: f64 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    // A prompt's end does not depend on how it came.
    let texts = "the sea\nthe moon\n";
    assert_eq!(lines(embed(&["--file", "-", "--lines"]).write_stdin(texts)), vectors);
    let printed = json(&mut embed(&["the sea", "--json", "--embd-normalize", "1", "--pooling", "mean"]));
    let mean: Vec<f64> =
        printed["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!((mean.iter().map(|x| x.abs()).sum::<f64>() - 1.0).abs() < 1e-5, "{mean:?}");
    let tokens = printed["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(lines(&mut embed(&["the sea", "--pooling", "none"])).len() as u64, tokens);
    // EOS stands behind a text where the file says so.
    let with_eos =
        json(&mut embed(&["the sea", "--json", "--override-kv", "tokenizer.ggml.add_eos_token=bool:true"]));
    assert_eq!(with_eos["usage"]["prompt_tokens"].as_u64().unwrap(), tokens + 1);
    embed(&["x", "--pooling", "rank"]).assert().code(2);
    embed(&["x", "--pooling", "most"]).assert().code(2);

    std::fs::write(&fixture.model, reranker().to_bytes()).unwrap();
    let rerank = |arguments: &[&str]| {
        let mut command = fixture.command("rerank");
        command.args(["--device", "cpu", "--json"]).args(arguments);
        command
    };
    let printed = json(&mut rerank(&["sea", "a", "wave", "of water"]));
    let results = printed["results"].as_array().unwrap();
    let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{printed}");
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{printed}");
    let best = json(&mut rerank(&["sea", "a", "wave", "of water", "--top-n", "1"]));
    assert_eq!(best["results"][0], results[0]);
    rerank(&["sea"]).assert().code(2);
}

#[test]
fn options_replace_metadata() {
    let fixture = Fixture::new();
    let config =
        |arguments: &[&str]| json(fixture.command("inspect").arg("--json").args(arguments))["config"].clone();
    let plain = config(&[]);
    let context = plain["max_position_embeddings"].as_u64().unwrap();
    assert!(plain.get("rope_scaling").is_none(), "{plain}");
    let yarn = config(&[
        "--rope-scaling",
        "yarn",
        "--rope-scale",
        "4",
        "--yarn-orig-ctx",
        "512",
        "--yarn-beta-fast",
        "16",
    ]);
    let scaling = &yarn["rope_scaling"];
    assert_eq!(yarn["max_position_embeddings"], 2048);
    for (key, expected) in [("factor", 4.0), ("ext_factor", 1.0), ("beta_fast", 16.0), ("beta_slow", 1.0)] {
        assert_eq!(scaling[key], expected, "{scaling}");
    }
    let linear = config(&["--rope-freq-scale", "0.5", "--rope-freq-base", "5000"]);
    assert_eq!((&linear["rope_scaling"]["factor"], &linear["rope_theta"]), (&2.0.into(), &5000.0.into()));
    assert_eq!(linear["max_position_embeddings"], 2 * context);
    let named = config(&["--override-kv", "general.name=str:other,qwen2.context_length=int:77"]);
    assert_eq!((&named["name"], &named["max_position_embeddings"]), (&"other".into(), &77.into()));
    for bad in [&["--override-kv", "x"][..], &["--rope-scaling", "dynamic"], &["--rope-scale", "0"]] {
        fixture.command("inspect").args(bad).assert().code(2);
    }
}
