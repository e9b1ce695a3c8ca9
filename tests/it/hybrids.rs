//! Hybrids of linear attention and attention: their metadata, their states in slots, and what is skipped of their files.

use qernel::Error;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::engine::{Engine, EngineConfig, Event, Request, Usage};
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::kv_layout::{PAGE_SIZE, pages_for};
use qernel::load::kv_layout;
use qernel::model::{ModelRunner, Runner, build};
use qernel::ops::OpsConfig;
use qernel::sampler::SamplingParams;
use qernel::testing::{Random, TinyModel};
use qernel::weights::Weights;

fn model() -> TinyModel {
    TinyModel { architecture: "qwen35", num_hidden_layers: 4, ..TinyModel::default() }
}

fn config(writer: &Writer) -> Result<Config, Error> {
    Config::from_gguf(&Gguf::from_bytes(writer.to_bytes().into()).unwrap())
}

#[test]
fn a_file_says_which_layers_are_linear_and_which_only_draft() {
    let usual = config(&model().writer()).unwrap();
    assert_eq!((usual.linear_layers, usual.num_nextn_predict_layers), (vec![0, 2], 0));
    let mut writer = model().vocabulary_only();
    writer
        .set_metadata("qwen35.block_count", 5_u32)
        .metadata("qwen35.nextn_predict_layers", 1_u32)
        .metadata("qwen35.attention.recurrent_layers", vec![true, true, false, true, false]);
    let listed = config(&writer).unwrap();
    assert_eq!((listed.num_hidden_layers, listed.num_nextn_predict_layers), (4, 1));
    assert_eq!(listed.linear_layers, [0, 1, 3]);
    let state = build::plan(&listed).unwrap().state;
    let sizes = listed.linear.unwrap();
    assert_eq!(state.slot_bytes(), 3 * 4 * (sizes.conv_state() + sizes.recurrent_state()));
    assert_eq!(state.pages(Dtype::F16, 1).unwrap().num_layers, 1);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let with = |key: &str, value: u32| {
        let mut writer = model().vocabulary_only();
        config(writer.set_metadata(&format!("qwen35.{key}"), value)).unwrap_err().to_string()
    };
    for (key, value, expected) in [
        ("ssm.time_step_rank", 5, "a multiple of the 2 heads of K"),
        ("ssm.time_step_rank", 0, "1 to"),
        ("ssm.inner_size", 193, "a multiple of 6 heads of V"),
        ("ssm.state_size", 1 << 20, "at most"),
        ("ssm.conv_kernel", 0, "1 to 64"),
        ("ssm.conv_kernel", 65, "1 to 64"),
        ("full_attention_interval", 0, "1 to"),
        ("full_attention_interval", 5, "none of 4 layers is one of attention"),
        ("nextn_predict_layers", 4, "fewer than 4"),
    ] {
        let error = with(key, value);
        assert!(error.contains(expected), "{key} {value}: {error}");
    }
    for list in [vec![true; 3], vec![true; 5], vec![true; 4]] {
        let mut writer = model().vocabulary_only();
        let error =
            config(writer.metadata("qwen35.attention.recurrent_layers", list)).unwrap_err().to_string();
        assert!(error.contains("one for each of 4 layers") || error.contains("none of 4 layers"), "{error}");
    }
}

/// Blocks behind the last layer are named and counted, and change nothing.
#[test]
fn layers_that_draft_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drafts.gguf");
    let mut writer = model().writer();
    writer
        .set_metadata("qwen35.block_count", 5_u32)
        .metadata("qwen35.nextn_predict_layers", 1_u32)
        .tensor("blk.4.nextn.eh_proj.weight", &[256, 512], GgmlType::F16, vec![0; 2 * 256 * 512])
        .tensor("blk.4.attn_norm.weight", &[256], GgmlType::F32, vec![0; 1024]);
    std::fs::write(&path, writer.to_bytes()).unwrap();
    let inspect = |more: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_qernel"));
        let output = command.arg("inspect").arg("--model").arg(&path).args(more).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let text = inspect(&[]);
    assert!(
        text.contains("not computed: 1 layers that draft further tokens (2 tensors, 0.25 MiB)"),
        "{text}"
    );
    assert!(!text.contains("not used") && !text.contains("cannot be run"), "{text}");
    assert!(text.contains("for each sequence that runs"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    assert_eq!(report["draft_layers"]["num_tensors"], 2);
    assert_eq!(report["config"]["linear_layers"], serde_json::json!([0, 2]));
    let states = report["memory"]["state_bytes"].as_u64().unwrap();
    assert!(states > 0);

    // Each of two GPUs has half of that.
    let report: serde_json::Value =
        serde_json::from_str(&inspect(&["--json", "--tensor-parallel", "2"])).unwrap();
    let gpus = report["memory"]["gpus"].as_array().unwrap();
    assert_eq!(gpus.len(), 2);
    for gpu in gpus {
        assert_eq!(gpu["state_bytes"], states / 2);
        assert_eq!(2 * gpu["kv_bytes"].as_u64().unwrap(), report["memory"]["kv_bytes"].as_u64().unwrap());
        assert!(gpu["weight_bytes"].as_u64() < report["memory"]["weight_bytes"].as_u64());
    }
    assert!(inspect(&["--tensor-parallel", "2"]).contains("1/2 of layers 0 to 3: weights"));
    let mut refused = assert_cmd::Command::new(env!("CARGO_BIN_EXE_qernel"));
    refused.args(["inspect", "--tensor-parallel", "3", "--model"]).arg(&path).assert().failure().stderr(
        predicates::str::contains("--tensor-parallel 3: the model's 4 attention heads are not a multiple"),
    );
}

/// States are where the batch says, and nowhere else: sequences in any slots, chunks of any length, a slot that another had before.
#[test]
fn states_go_with_their_slots() {
    let gguf = model().gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let limits = BatchLimits {
        max_num_tokens: 200,
        max_num_sequences: 3,
        max_num_logits: 200,
        max_blocks: pages_for(200),
    };
    let ops_config = OpsConfig::new(&config, 200, limits);
    let layout = kv_layout(&config, Dtype::F32, 21).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    let mut runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap();

    let mut random = Random::new(3, "prompts");
    let mut prompt = |len: usize| -> Vec<u32> {
        (0..len).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect()
    };
    // More than two chunks of 64.
    let prompts = [prompt(150), prompt(67), prompt(3)];
    let pages: Vec<Vec<u32>> = (0..3).map(|s| (7 * s..7 * s + 7).collect()).collect();
    let mut run = |parts: &[(usize, std::ops::Range<usize>, u32)]| {
        let rows: Vec<_> = parts
            .iter()
            .map(|(s, range, _)| SequenceRows {
                tokens: &prompts[*s][range.clone()],
                position: range.start,
                pages: &pages[*s],
                logits: LogitRows::All,
            })
            .collect();
        let state_slots = parts.iter().map(|part| part.2).collect();
        runner.logits(&Batch { state_slots, ..Batch::new(&rows) }).unwrap()
    };
    let alone: Vec<Vec<f32>> = (0..3).map(|s| run(&[(s, 0..prompts[s].len(), 1)])).collect();
    let of = |s: usize, range: std::ops::Range<usize>| {
        alone[s][range.start * TinyModel::VOCAB_SIZE..range.end * TinyModel::VOCAB_SIZE].to_vec()
    };
    for parts in [
        vec![(0, 0..64, 2), (1, 0..1, 0)],
        vec![(1, 1..66, 0), (0, 64..65, 2), (2, 0..2, 1)],
        vec![(2, 2..3, 1), (0, 65..149, 2)],
        // The third sequence's slot goes to the second, which begins anew, while the first goes on.
        vec![(1, 0..67, 1), (0, 149..150, 2)],
    ] {
        let expected: Vec<f32> = parts.iter().flat_map(|(s, range, _)| of(*s, range.clone())).collect();
        assert!(run(&parts) == expected, "{parts:?}");
    }
}

fn engine(checkpoints: usize, prefix_cache: bool) -> Engine {
    engine_with(checkpoints, EngineConfig { prefix_cache, ..EngineConfig::default() })
}

fn engine_with(checkpoints: usize, engine: EngineConfig) -> Engine {
    let gguf = model().gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let limits = BatchLimits {
        max_num_tokens: 50,
        max_num_sequences: 2,
        max_num_logits: 2,
        max_blocks: pages_for(512),
    };
    let ops_config = OpsConfig::new(&config, 512, limits);
    let layout = kv_layout(&config, Dtype::F32, 40).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    let runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap();
    let runner = runner.with_checkpoints(checkpoints).unwrap();
    Engine::new(Box::new(runner), None, engine).unwrap()
}

fn answer(engine: &mut Engine, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Usage) {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let request = Request {
        sampling,
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        text: false,
        ..Request::new(prompt.to_vec())
    };
    engine.submit(request).unwrap();
    let (mut tokens, mut end) = (Vec::new(), None);
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { usage, .. } => end = Some(usage),
            }
        }
    }
    (tokens, end.unwrap())
}

/// A conversation computes what is new of each turn, but for the last page that is not full; an edited message costs from there on; answers
/// are those of an engine that computes all of it.
#[test]
fn a_conversation_goes_on_from_its_last_checkpoint() {
    const ANSWER: usize = 21;
    let (mut cached, mut whole, mut without) = (engine(16, true), engine(16, false), engine(0, true));
    let mut random = Random::new(5, "messages");
    let mut message = || -> Vec<u32> {
        (0..25).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect()
    };
    let mut conversation = Vec::new();
    let mut turns = Vec::new();
    for turn in 0..8 {
        let computed = if turn == 0 { 0 } else { conversation.len() - 1 };
        conversation.extend(message());
        turns.push(conversation.clone());
        let (tokens, usage) = answer(&mut cached, &conversation, ANSWER);
        assert_eq!(usage.cached_tokens, computed / PAGE_SIZE * PAGE_SIZE, "turn {turn}");
        let (expected, usage) = answer(&mut whole, &conversation, ANSWER);
        assert_eq!((&tokens, usage.cached_tokens), (&expected, 0), "turn {turn}");
        let (expected, usage) = answer(&mut without, &conversation, ANSWER);
        assert_eq!((&tokens, usage.cached_tokens), (&expected, 0), "turn {turn}");
        conversation.extend(tokens);
    }
    // The fourth message is another one.
    let mut edited = turns[2].clone();
    edited.extend(message());
    let (tokens, usage) = answer(&mut cached, &edited, ANSWER);
    let (expected, _) = answer(&mut whole, &edited, ANSWER);
    assert_eq!(tokens, expected);
    assert_eq!(usage.cached_tokens, (turns[2].len() - 1) / PAGE_SIZE * PAGE_SIZE);
    assert_eq!(cached.pool().num_used(), 0);
}

/// A prompt that leaves a long one early costs from the copy before on; one prompt takes half of the copies at most; pages that are forgotten
/// take theirs with them.
#[test]
fn long_prompts_have_copies_on_the_way() {
    let mut every = engine_with(10, EngineConfig { checkpoint_every: 64, ..EngineConfig::default() });
    let mut last = engine_with(10, EngineConfig { checkpoint_every: 0, ..EngineConfig::default() });
    let mut whole = engine(10, false);
    let mut random = Random::new(7, "long prompts");
    let mut tokens = |len: usize| -> Vec<u32> {
        (0..len).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect()
    };
    let long = tokens(300);
    let others: Vec<Vec<u32>> =
        [250, 130, 100, 64, 63].map(|len| [&long[..len], &tokens(9)].concat()).to_vec();
    for (engine, copies, cached) in
        [(&mut every, 5, [192, 128, 64, 64, 0]), (&mut last, 1, [0; 5]), (&mut whole, 0, [0; 5])]
    {
        answer(engine, &long, 1);
        assert_eq!(engine.checkpoints().map_or(0, |copies| copies.num_known()), copies);
        for (prompt, cached) in others.iter().zip(cached) {
            assert_eq!(answer(engine, prompt, 8).1.cached_tokens, cached);
        }
    }
    for prompt in &others {
        assert_eq!(answer(&mut every, prompt, 8).0, answer(&mut whole, prompt, 8).0);
    }
    // Room for all copies, but 40 pages for 51: eleven of the first prompt's 16 pages go, with the copies behind them.
    let mut roomy = engine_with(40, EngineConfig { checkpoint_every: 64, ..EngineConfig::default() });
    for copies in [8, 16, 18] {
        answer(&mut roomy, &tokens(500), 1);
        answer(&mut roomy, &tokens(9), 1);
        assert_eq!(roomy.checkpoints().unwrap().num_known(), copies);
    }
}
