//! Adapters: logits of those that PEFT saved (`tests/data/lora`), updates beside weights against weights that they were added to, rows of
//! different adapters in one batch, what the prefix cache shares, and what is said of files that do not fit.

use crate::families::read_npy;
use crate::program::{Fixture, json, qernel, text};
use qernel::batch::{AdapterScale, AdapterSet, Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::disk::Access;
use qernel::dtype::Dtype;
use qernel::engine::{Completion, DraftSource, Engine, EngineConfig, NgramKind, NgramOptions, Request};
use qernel::error::Error;
use qernel::folder;
use qernel::formats::MatrixFormat;
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::lora;
use qernel::model::{ARCHITECTURES, ModelRunner, Runner, build};
use qernel::ops::OpsConfig;
use qernel::sampler::SamplingParams;
use qernel::testing::{TinyModel, adapter};
use qernel::weights::{Adapter, LowRank, Weights};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The prompt of `make_adapters.py`.
const TOKENS: [u32; 12] = [3, 17, 44, 0, 61, 8, 9, 30, 30, 5, 52, 11];

const MAX_MODEL_LEN: usize = 128;

fn data(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(kind).join(name)
}

fn set(adapters: &[(u32, f32)]) -> AdapterSet {
    let of = |&(adapter, scale): &(u32, f32)| AdapterScale { adapter, scale };
    AdapterSet::new(&adapters.iter().map(of).collect::<Vec<_>>())
}

fn load(gguf: &Gguf) -> (Config, Weights) {
    let config = Config::from_gguf(gguf).unwrap();
    let weights = Weights::from_gguf(gguf, &config).unwrap();
    (config, weights)
}

fn runner(config: &Config, weights: &Weights, drafts: usize) -> ModelRunner<CpuOps> {
    let limits = BatchLimits {
        max_num_tokens: 64,
        max_num_sequences: 4,
        max_num_logits: 64,
        max_blocks: pages_for(MAX_MODEL_LEN),
    };
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(config, Dtype::F32, 16).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    ModelRunner::new(ops, weights, config, &ops_config, layout, &mut |_, _| ()).unwrap().with_drafts(drafts)
}

fn rows<'a>(tokens: &'a [u32], position: usize, pages: &'a [u32]) -> SequenceRows<'a> {
    SequenceRows { tokens, position, pages, logits: LogitRows::All }
}

/// The logits of all tokens of a sequence with these adapters, `chunk` a step.
fn logits(runner: &mut dyn Runner, tokens: &[u32], adapters: &AdapterSet, chunk: usize) -> Vec<f32> {
    let step = |(i, tokens): (usize, &[u32])| {
        let batch = Batch::new(&[rows(tokens, i * chunk, &[7, 2])]);
        runner.logits(&batch.with_adapters([adapters.clone()])).unwrap()
    };
    tokens.chunks(chunk).enumerate().flat_map(step).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32], allowed: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= allowed, "{what}: value {i} is {found}, expected {expected}");
    }
}

fn is_far(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 0.1)
}

#[test]
fn logits_equal_peft() {
    // f32 against f64; transformers computes linear attention in f32 whatever it is told.
    for (name, allowed) in
        [("qwen2", 1e-5), ("qwen3", 1e-5), ("llama", 1e-5), ("gpt2", 1e-5), ("qwen35", 1e-4)]
    {
        let gguf = folder::open(&data("folders", name), Access::Map).unwrap();
        let (config, weights) = load(&gguf);
        let adaptable = build::plan(&config).unwrap().adaptable;
        let of_peft = lora::open(&data("lora", name), Access::Map, name, &config, &adaptable).unwrap();
        let mut runner = runner(&config, &weights.with_adapters(vec![of_peft]), 0);
        assert_eq!(runner.adapters()[0].name, name);
        let expected = read_npy(&data("lora", name).join("logits.npy"));
        for chunk in [TOKENS.len(), 5, 1] {
            let found = logits(&mut runner, &TOKENS, &set(&[(0, 1.0)]), chunk);
            assert_close(&format!("{name}, {chunk} tokens a step"), &found, &expected, allowed);
        }
        let without = logits(&mut runner, &TOKENS, &AdapterSet::default(), 12);
        let of_model = read_npy(&data("folders", name).join("logits.npy"));
        assert_close(&format!("{name} without it"), &without, &of_model, allowed);
        assert!(is_far(&without, &expected), "{name}: an update that nobody would see");
    }
}

fn open_adapter(config: &Config, writer: &Writer, name: &str) -> Result<Adapter, Error> {
    let gguf = Gguf::from_bytes(writer.to_bytes().into()).unwrap();
    lora::of_gguf(&gguf, name, config, &build::plan(config).unwrap().adaptable)
}

fn tiny(architecture: &'static str) -> TinyModel {
    TinyModel {
        architecture,
        format: MatrixFormat::F32,
        hidden_size: 128,
        intermediate_size: 192,
        num_attention_heads: 2,
        num_key_value_heads: if architecture == "gpt2" { 2 } else { 1 },
        ..TinyModel::default()
    }
}

/// The weights with updates added to them.
fn merged(weights: &Weights, adapters: &[(&Adapter, f32)]) -> Weights {
    let mut merged = weights.clone();
    for (adapter, scale) in adapters {
        for (name, LowRank { a, b, scale: of_alpha }) in &adapter.updates {
            let mut matrix = merged.matrix(name).unwrap().clone();
            let (cols, rank) = (matrix.cols, a.rows);
            let mut values = matrix.to_f32().unwrap();
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            for (row, b) in values.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
                for (col, value) in row.iter_mut().enumerate() {
                    let sum: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * cols + col])).sum();
                    *value = (f64::from(*value) + f64::from(scale * of_alpha) * sum) as f32;
                }
            }
            matrix.format = MatrixFormat::F32;
            matrix.data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into();
            merged.replace(matrix).unwrap();
        }
    }
    merged
}

#[test]
fn updates_beside_weights_equal_weights_with_them() {
    let fused = TinyModel { fused_qkv: true, ..tiny("llama") };
    for model in ARCHITECTURES.iter().map(|&architecture| tiny(architecture)).chain([fused]) {
        let (config, weights) = load(&model.gguf());
        let adapters = [(1, 4), (2, 7)].map(|(seed, rank)| {
            open_adapter(&config, &adapter(&config, seed, rank, 0.5), &seed.to_string()).unwrap()
        });
        let scales = [0.75, -0.5];
        let both = [(&adapters[0], scales[0]), (&adapters[1], scales[1])];
        let with_them = merged(&weights, &both);
        let none = AdapterSet::default();
        let expected = logits(&mut runner(&config, &with_them, 0), &TOKENS, &none, 12);
        let mut beside = runner(&config, &weights.clone().with_adapters(adapters.to_vec()), 0);
        for chunk in [12, 5, 1] {
            let found = logits(&mut beside, &TOKENS, &set(&[(0, scales[0]), (1, scales[1])]), chunk);
            // Rounding to f32 of weights of about 0.1, and of sums of them, over a few layers.
            let what = format!("{}, fused {}, {chunk} tokens a step", config.architecture, config.fused_qkv);
            assert_close(&what, &found, &expected, 2e-4);
        }
        let plain = logits(&mut runner(&config, &weights, 0), &TOKENS, &none, 12);
        assert!(is_far(&plain, &expected), "{}", config.architecture);
        assert_eq!(logits(&mut beside, &TOKENS, &none, 12), plain, "{}: its bits", config.architecture);
    }
}

fn adapted(model: &TinyModel, size: f32) -> (Config, Weights) {
    let (config, weights) = load(&model.gguf());
    let adapters = [1, 2, 3].map(|seed| {
        open_adapter(&config, &adapter(&config, seed, 4, size), &format!("adapter {seed}")).unwrap()
    });
    (config, weights.with_adapters(adapters.to_vec()))
}

#[test]
fn rows_of_different_adapters_in_one_batch_equal_each_alone() {
    let (config, weights) = adapted(&tiny("qwen2"), 0.5);
    let mut runner = runner(&config, &weights, 0);
    let sets = [set(&[(1, 1.0)]), AdapterSet::default(), set(&[(0, -0.5), (2, 2.0)]), set(&[(1, 0.25)])];
    let sequences = [&TOKENS[..], &TOKENS[3..], &TOKENS[..5], &TOKENS[7..]];
    let alone: Vec<_> =
        sequences.iter().zip(&sets).map(|(tokens, set)| logits(&mut runner, tokens, set, 12)).collect();
    let pages = [[0], [9], [3], [5]];
    // A prompt and rows behind it, of all that need logits and of the last ones alone.
    let first: Vec<_> = (0..4).map(|s| rows(&sequences[s][..3], 0, &pages[s])).collect();
    let found = runner.logits(&Batch::new(&first).with_adapters(sets.clone())).unwrap();
    let vocab_size = runner.vocab_size();
    let expected: Vec<f32> = alone.iter().flat_map(|all| all[..3 * vocab_size].to_vec()).collect();
    assert_eq!(found, expected, "prompts");
    let second = (0..4)
        .map(|s| SequenceRows { logits: LogitRows::Last, ..rows(&sequences[s][3..], 3, &pages[s]) })
        .collect::<Vec<_>>();
    let found = runner.logits(&Batch::new(&second).with_adapters(sets)).unwrap();
    let expected: Vec<f32> = alone.iter().flat_map(|all| all[all.len() - vocab_size..].to_vec()).collect();
    assert_eq!(found, expected, "the last rows");
    let unknown = Batch::new(&second[..1]).with_adapters([set(&[(3, 1.0)])]);
    assert!(matches!(runner.logits(&unknown), Err(Error::Request(_))));
}

fn engine(config: &Config, weights: &Weights) -> Engine {
    Engine::new(Box::new(runner(config, weights, 0)), None, EngineConfig::default()).unwrap()
}

/// The whole answer to a request.
fn run(engine: &mut Engine, request: Request) -> Completion {
    let never = AtomicBool::new(false);
    engine.run_to_end(request, &never, |_| ControlFlow::Continue(())).unwrap()
}

fn request(prompt: Vec<u32>, adapters: AdapterSet) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let adapters = Some(adapters);
    let max_tokens = Some(8);
    Request { sampling, adapters, max_tokens, ignore_eos: true, text: false, ..Request::new(prompt) }
}

#[test]
fn sequences_share_what_was_computed_with_the_same_adapters_alone() {
    let (config, weights) = adapted(&tiny("qwen3"), 2.0);
    let prompt: Vec<u32> = (0..70).map(|i| i * 7 % 256).collect();
    let sets = [AdapterSet::default(), set(&[(0, 1.0)]), set(&[(0, 0.5)]), set(&[(0, 1.0), (1, 1.0)])];
    let ask = |engine: &mut Engine, set: &AdapterSet| {
        let done = run(engine, request(prompt.clone(), set.clone()));
        (done.tokens, done.usage.cached_tokens)
    };
    let expected: Vec<_> = sets.iter().map(|set| ask(&mut engine(&config, &weights), set)).collect();
    assert!(expected[1..].iter().all(|(tokens, _)| *tokens != expected[0].0), "they answer as others do");
    let mut engine = engine(&config, &weights);
    for round in 0..2 {
        for (set, (tokens, _)) in sets.iter().zip(&expected) {
            let (found, cached) = ask(&mut engine, set);
            assert_eq!(&found, tokens, "{set:?}");
            assert_eq!(cached > 0, round > 0, "{set:?}, round {round}");
        }
    }
    let unknown = engine.submit(request(prompt.clone(), set(&[(7, 1.0)]))).unwrap_err().to_string();
    assert!(unknown.contains("no adapter 7") && unknown.contains("2 (adapter 3)"), "{unknown}");
    // Who says nothing gets all.
    let all = ask(&mut engine, &set(&[(0, 1.0), (1, 1.0), (2, 1.0)])).0;
    let silent = Request { adapters: None, ..request(prompt.clone(), AdapterSet::default()) };
    assert_eq!(run(&mut engine, silent).tokens, all);
}

#[test]
fn drafts_leave_answers_with_adapters_as_they_are() {
    let (config, weights) = adapted(&tiny("qwen2"), 2.0);
    let prompt: Vec<u32> = (0..40).map(|i| i % 5).collect();
    let plain = |engine: &mut Engine, set| {
        run(engine, Request { max_tokens: Some(60), ..request(prompt.clone(), set) })
    };
    let mut with_drafts = Engine::new(Box::new(runner(&config, &weights, 3)), None, EngineConfig::default())
        .unwrap()
        .with_drafts(DraftSource::Ngram(NgramOptions { size_n: 1, ..NgramOptions::new(NgramKind::Simple) }))
        .unwrap();
    for adapters in [AdapterSet::default(), set(&[(1, 1.0)]), set(&[(0, 0.5), (2, 1.0)])] {
        let expected = plain(&mut engine(&config, &weights), adapters.clone());
        let found = plain(&mut with_drafts, adapters);
        assert_eq!(found.tokens, expected.tokens);
        assert!(found.timings.draft_tokens > 0, "nothing was drafted");
    }
}

#[test]
fn what_does_not_fit_is_said_in_one_message() {
    let (config, _) = load(&tiny("qwen2").gguf());
    let whole = || adapter(&config, 1, 4, 1.0);
    let refused = |writer: &Writer, expected: &[&str]| {
        let message = open_adapter(&config, writer, "mine").unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "expected {part:?}, found {message:?}");
        }
    };
    let q = |half: &str| format!("blk.0.attn_q.weight.{half}");
    let mut writer = whole();
    writer
        .remove_metadata("general.architecture")
        .metadata("general.architecture", "llama")
        .remove_tensor(&q("lora_b"))
        .remove_tensor("blk.1.ffn_down.weight.lora_a")
        .tensor("blk.1.ffn_down.weight.lora_a", &[4, 32], GgmlType::F32, vec![0; 4 * 4 * 32])
        .tensor("output.weight.lora_a", &[4, 128], GgmlType::F32, vec![0; 4 * 4 * 128])
        .tensor("blk.0.attn_norm.weight", &[128], GgmlType::F32, vec![0; 4 * 128]);
    refused(
        &writer,
        &[
            "the adapter mine",
            "general.architecture is llama, that of the model qwen2",
            "blk.0.attn_q.weight: one of the two",
            "blk.1.ffn_down.weight.lora_a: expected [rank, 192], found [4, 32]",
            "output.weight.lora_a: adapters of this matrix",
            "blk.0.attn_norm.weight: expected tensors that end in .lora_a or .lora_b",
        ],
    );
    let mut writer = whole();
    writer.remove_tensor(&q("lora_b")).tensor(&q("lora_b"), &[128, 3], GgmlType::F32, vec![0; 4 * 128 * 3]);
    refused(&writer, &["the rank is 4 in one matrix and 3 in the other"]);
    refused(&tiny("qwen2").writer(), &["mine is no adapter", "\"model\""]);
    let mut writer = whole();
    writer.remove_metadata("adapter.type").metadata("adapter.type", "control_vector");
    refused(&writer, &["adapter.type is \"control_vector\""]);
    let (experts, _) = load(&tiny("qwen3moe").gguf());
    let name = "blk.0.ffn_down_exps.weight.lora_a";
    let mut writer = adapter(&experts, 1, 4, 1.0);
    writer.tensor(name, &[8, 4, 64], GgmlType::F32, vec![0; 8 * 4 * 64 * 4]);
    let message = open_adapter(&experts, &writer, "mine").unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
}

#[test]
fn what_peft_has_besides_updates_is_refused_by_name() {
    let gguf = folder::open(&data("folders", "qwen2"), Access::Map).unwrap();
    let (config, _) = load(&gguf);
    let adaptable = build::plan(&config).unwrap().adaptable;
    let copy = tempfile::TempDir::new().unwrap();
    let file = |name: &str| copy.path().join(name);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(data("lora", "qwen2").join(name), file(name)).unwrap();
    }
    let original: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file("adapter_config.json")).unwrap()).unwrap();
    let open = |changes: serde_json::Value| {
        let mut fields = original.clone();
        fields.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        std::fs::write(file("adapter_config.json"), fields.to_string()).unwrap();
        lora::open(copy.path(), Access::Map, "mine", &config, &adaptable).map_err(|error| error.to_string())
    };
    let fine = open(serde_json::json!({"modules_to_save": [], "layers_pattern": "x"})).unwrap();
    assert_eq!((fine.updates.len(), fine.updates["blk.0.ffn_up.weight"].scale), (14, 2.0));
    let message = open(serde_json::json!({
        "use_dora": true, "bias": "all", "modules_to_save": ["lm_head"], "peft_type": "IA3", "init_lora_weights": "pissa",
    }))
    .unwrap_err();
    for part in ["DoRA", "`bias` is \"all\"", "`modules_to_save` is [\"lm_head\"]", "\"IA3\"", "\"pissa\""] {
        assert!(message.contains(part), "expected {part:?}, found {message:?}");
    }
    let message = open(serde_json::json!({"r": 5})).unwrap_err();
    assert!(message.contains("its rank is 4, and adapter_config.json says 5"), "{message}");
    let message = open(serde_json::json!({"alpha_pattern": {".*\\d+": 1}})).unwrap_err();
    assert!(message.contains("is a regular expression"), "{message}");
    let message = folder::open(copy.path(), Access::Map).unwrap_err().to_string();
    assert!(message.contains("is an adapter, not a model"), "{message}");
    std::fs::remove_file(file("adapter_model.safetensors")).unwrap();
    assert!(open(serde_json::json!({})).unwrap_err().contains("has no adapter_model.safetensors"));
}

#[test]
fn commands_take_adapters() {
    let model = TinyModel { tie_word_embeddings: false, ..tiny("qwen2") };
    let fixture = Fixture::with(&model);
    let (config, weights) = load(&model.gguf());
    let path = fixture.path("poet.gguf");
    let writer = adapter(&config, 9, 4, 2.0);
    std::fs::write(&path, writer.to_bytes()).unwrap();
    let path = path.to_str().unwrap();
    let scaled = format!("{path}:0.5");

    let tokens = || ["--ids", "1,2,3", "--device", "cpu"];
    let found = json(fixture.command("logits").args(tokens()).args(["--lora", &scaled]));
    let with_it = merged(&weights, &[(&open_adapter(&config, &writer, "poet").unwrap(), 0.5)]);
    let expected = logits(&mut runner(&config, &with_it, 0), &[1, 2, 3], &AdapterSet::default(), 3);
    let last = &expected[2 * TinyModel::VOCAB_SIZE..];
    for entry in found["top"].as_array().unwrap() {
        let (token, logit) = (entry[0].as_u64().unwrap() as usize, entry[1].as_f64().unwrap() as f32);
        assert!((logit - last[token]).abs() <= 1e-3, "token {token}: {logit}, expected {}", last[token]);
    }

    let generate = |lora: &[&str]| {
        let mut command = fixture.generate();
        json(command.args(["--ids", "1,2,3", "--temp", "0", "-n", "6", "--json"]).args(lora))["ids"].clone()
    };
    assert_ne!(generate(&["--lora", path]), generate(&[]));
    assert_eq!(generate(&["--lora", &format!("{path}:0")]), generate(&[]));

    let said = qernel().args(["inspect", "--model", path]).assert().success().get_output().stdout.clone();
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("an adapter (lora), alpha 8, 14 updates") && !said.contains("cannot be run"),
        "{said}"
    );
    let report = json(qernel().args(["inspect", "--json", "--model", path]));
    assert_eq!(text(&report["adapter"]["architecture"]), "qwen2");

    let model =
        qernel().args(["generate", "--ids", "1", "--device", "cpu", "--model", path]).assert().code(3);
    let message = String::from_utf8(model.get_output().stderr.clone()).unwrap();
    assert!(message.contains("is an adapter, not a model"), "{message}");

    let twice = fixture.generate().args(["--ids", "1", "--lora", path, "--lora", &scaled]).assert();
    let message = String::from_utf8(twice.code(2).get_output().stderr.clone()).unwrap();
    assert!(message.contains("another adapter is called poet too"), "{message}");
    fixture.generate().args(["--ids", "1", "--lora", "no/such.gguf"]).assert().code(1);
}
