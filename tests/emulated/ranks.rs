//! A model that is shared out over several emulated devices: the tokens and logits of one, and what becomes of a rank that hears nothing.

use crate::compare::nmse;
use crate::{LIMITS, MAX_MODEL_LEN, device_of_models, logits, parts};
use qernel::config::ExpertSizes;
use qernel::cuda::{CudaOps, Group, KernelChoice};
use qernel::dtype::Dtype;
use qernel::engine::{DraftSource, Engine, EngineConfig, Event, NgramKind, NgramOptions, Request};
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::load::{DeviceChoice, DraftChoice, RunnerOptions, open_runner};
use qernel::model::Runner;
use qernel::ops::ranks::RankOps;
use qernel::ops::{Ops, OpsConfig, Rows};
use qernel::sampler::SamplingParams;
use qernel::testing::TinyModel;
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// Of a model on so many emulated devices.
pub fn options(ranks: usize) -> RunnerOptions {
    RunnerOptions {
        device: DeviceChoice::Emulated,
        max_model_len: Some(MAX_MODEL_LEN),
        max_num_tokens: Some(64),
        max_num_sequences: 4,
        max_num_logits: 64,
        tensor_parallel: ranks,
        ..RunnerOptions::default()
    }
}

pub fn open(model: &TinyModel, ranks: usize) -> Result<Box<dyn Runner>, Error> {
    let (config, weights) = parts(model);
    open_runner(&weights, &config, &options(ranks), &mut |_, _| ())
}

/// Heads for eight ranks.
fn wide() -> TinyModel {
    TinyModel {
        hidden_size: 128,
        intermediate_size: 256,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 32,
        tie_word_embeddings: false,
        ..TinyModel::default()
    }
}

/// Two heads for K and V, rows of whole blocks.
fn in_blocks() -> TinyModel {
    TinyModel {
        hidden_size: 256,
        intermediate_size: 512,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 64,
        ..TinyModel::default()
    }
}

/// On one device the sums of a layer are f32 too: what differs is their order, and what is rounded to f16 behind it.
#[track_caller]
pub fn assert_agree(model: &TinyModel, ranks: usize) {
    let expected = logits(&mut *open(model, 1).unwrap());
    let found = logits(&mut *open(model, ranks).unwrap());
    let error = nmse(&found, &expected);
    assert!(error <= 1e-5, "{} in {} on {ranks} ranks: {error:e}", model.architecture, model.format);
}

#[test]
fn the_forward_pass_of_ranks_agrees_with_that_of_one_device() {
    for ranks in [2, 4, 8] {
        assert_agree(&wide(), ranks);
    }
}

#[test]
fn every_architecture_that_is_shared_out_agrees() {
    for architecture in ["qwen3", "llama"] {
        assert_agree(&TinyModel { architecture, ..wide() }, 2);
    }
    let experts = ExpertSizes {
        moe_intermediate_size: 64,
        shared_expert_intermediate_size: 96,
        ..TinyModel::default().experts
    };
    for architecture in ["qwen2moe", "qwen3moe"] {
        assert_agree(&TinyModel { architecture, experts, num_hidden_layers: 1, ..wide() }, 2);
    }
}

#[test]
fn formats_of_blocks_are_shared_out_by_whole_blocks() {
    for format in [MatrixFormat::Q8_0, MatrixFormat::Q4_K] {
        assert_agree(&TinyModel { format, num_hidden_layers: 1, ..in_blocks() }, 2);
    }
    let model = TinyModel { format: MatrixFormat::Q4_K, intermediate_size: 256, ..in_blocks() };
    let error = open(&model, 2).err().unwrap().to_string();
    assert!(error.contains("not whole blocks of q4_k") && error.contains("fewer GPUs"), "{error}");
}

/// The tokens of three prompts that run together.
fn answers(mut engine: Engine) -> BTreeMap<usize, Vec<u32>> {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let drawn = SamplingParams { seed: 5, ..SamplingParams::default() };
    let mut ids = Vec::new();
    for (prompt, sampling) in [(vec![5, 6, 7], &greedy), ((1..40).collect(), &greedy), (vec![9], &drawn)] {
        let sampling = sampling.clone();
        let request =
            Request { max_tokens: Some(6), text: false, ignore_eos: true, sampling, ..Request::new(prompt) };
        ids.push(engine.submit(request).unwrap());
    }
    let mut answers: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut running = ids.len();
    while running > 0 {
        for event in engine.step().unwrap() {
            let place = ids.iter().position(|&id| id == event.id()).unwrap();
            match event {
                Event::Token { token, .. } => answers.entry(place).or_default().push(token),
                Event::Prompt { .. } => {}
                Event::Finished { .. } => running -= 1,
            }
        }
    }
    answers
}

fn engine(runner: Box<dyn Runner>) -> Engine {
    Engine::new(runner, None, EngineConfig::default()).unwrap()
}

#[test]
fn answers_of_ranks_are_those_of_one_device() {
    let expected = answers(engine(open(&wide(), 1).unwrap()));
    assert!(expected.len() == 3 && expected.values().all(|tokens| tokens.len() == 6), "{expected:?}");
    assert_eq!(answers(engine(open(&wide(), 2).unwrap())), expected);
    // And again: nothing depends on who comes first.
    assert_eq!(answers(engine(open(&wide(), 2).unwrap())), expected);
}

#[test]
fn what_is_not_shared_out_is_refused() {
    let (config, weights) = parts(&wide());
    let refused = |options: RunnerOptions| {
        let error = open_runner(&weights, &config, &options, &mut |_, _| ()).err().unwrap();
        assert!(matches!(error, Error::Request(_)), "{error}");
        error.to_string()
    };
    for (ranks, expected) in [(0, "1 to 8"), (3, "8 attention heads"), (16, "1 to 8")] {
        let error = refused(options(ranks));
        assert!(error.contains(expected), "{ranks}: {error}");
    }
    let on_cpu = RunnerOptions { device: DeviceChoice::Cpu, ..options(2) };
    assert!(refused(on_cpu).contains("is for GPUs"));
    let offloaded = RunnerOptions { cpu_moe: 1, ..options(2) };
    assert!(refused(offloaded).contains("experts in host memory"));
    let hybrid = TinyModel { num_attention_heads: 2, num_key_value_heads: 2, ..crate::steps::hybrid() };
    let error = open(&hybrid, 2).err().unwrap().to_string();
    assert!(error.contains("1 K heads of linear attention are not a multiple"), "{error}");
}

/// N-grams are drafted by the host: all ranks compute the same drafts.
#[test]
fn drafts_of_n_grams_are_computed_by_all_ranks() {
    let (config, weights) = parts(&wide());
    let ngrams = NgramOptions { size_n: 1, ..NgramOptions::new(NgramKind::Simple) };
    let options = RunnerOptions { max_drafts: 2, drafts: DraftChoice::Ngram(ngrams), ..options(2) };
    let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
    assert_eq!(runner.max_drafts(), 2);
    let drafting = engine(runner).with_drafts(DraftSource::Ngram(ngrams)).unwrap();
    assert_eq!(answers(drafting), answers(engine(open(&wide(), 1).unwrap())));
}

/// What rank 0 says of a sum that rank 1 never comes to, of which it waits at most `limit`; meanwhile rank 1 does `instead`.
fn error_of_a_lonely_rank(limit: Duration, instead: impl Fn(&Group) + Send + Sync) -> String {
    let (config, _) = parts(&wide());
    let config = &config.of_rank(2).unwrap();
    let group = &Arc::new(Group::new(2, limit));
    let join = |rank: usize| {
        let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, LIMITS);
        let ops = CudaOps::new(&device_of_models(1), &ops_config, Dtype::F16, KernelChoice::default());
        ops.unwrap().with_ranks(group, rank, config, &LIMITS).unwrap()
    };
    let joined = &Barrier::new(2);
    std::thread::scope(|scope| {
        let instead = &instead;
        scope.spawn(move || {
            let ops = join(1);
            joined.wait();
            instead(group);
            drop(ops);
        });
        let mut ops = join(0);
        // From here on rank 1 does not free what rank 0 writes to.
        group.start();
        joined.wait();
        let (mut part, mut x) = (ops.new_tensor(1, 8).unwrap(), ops.new_tensor(1, 8).unwrap());
        let batch = ops.new_batch(&LIMITS).unwrap();
        ops.add_ranks(Rows { batch: &batch, n: 1, padded: 1 }, &mut part, &mut x).unwrap();
        ops.read(1, &x).unwrap_err().to_string()
    })
}

#[test]
fn a_rank_that_hears_nothing_gives_up_and_says_of_whom() {
    let error = error_of_a_lonely_rank(Duration::from_millis(300), |_| ());
    assert!(error.contains("rank 0 has waited 0.3 s for rank 1"), "{error}");
}

#[test]
fn a_rank_that_fails_ends_the_waiting_of_others() {
    let error = error_of_a_lonely_rank(Duration::from_secs(600), |group| group.fail("rank 1: broken"));
    assert!(error.contains("another rank has failed"), "{error}");
}
