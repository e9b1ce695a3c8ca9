//! A model that is shared out over several emulated devices: the tokens and logits of one.

use crate::compare::nmse;
use crate::{logits, parts};
use qernel::batch::{Batch, LogitRows, SequenceRows};

use qernel::engine::{Engine, EngineConfig, Request};
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::load::{DeviceChoice, RunnerOptions, open_runner};
use qernel::model::Runner;
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::testing::TinyModel;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn options(ranks: usize) -> RunnerOptions {
    RunnerOptions {
        device: DeviceChoice::Emulated,
        max_model_len: Some(64),
        max_num_tokens: Some(64),
        max_num_sequences: 4,
        max_num_logits: 64,
        tensor_parallel: ranks,
        ..RunnerOptions::default()
    }
}

fn open(model: &TinyModel, ranks: usize) -> Box<dyn Runner> {
    let (config, weights) = parts(model);
    open_runner(&weights, &config, &options(ranks), &mut |_, _| ()).unwrap()
}

/// Heads for eight ranks.
fn wide() -> TinyModel {
    TinyModel {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 32,
        tie_word_embeddings: false,
        ..TinyModel::default()
    }
}

/// Sums are rounded elsewhere than on one device, and so is what products read: a few units of f16's 11 bits.
fn agrees(model: &TinyModel, ranks: usize, allowed: f64) {
    let expected = logits(&mut *open(model, 1));
    let found = logits(&mut *open(model, ranks));
    let error = nmse(&found, &expected);
    assert!(error <= allowed, "{} on {ranks} ranks: {error:e}, not {allowed:e}", model.architecture);
}

#[test]
fn the_forward_pass_of_ranks_agrees_with_that_of_one_device() {
    for ranks in [2, 4, 8] {
        agrees(&wide(), ranks, 1e-5);
    }
}

#[test]
fn a_greedy_answer_of_ranks_is_that_of_one_device() {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let answer = |ranks| {
        let mut engine = Engine::new(open(&wide(), ranks), None, EngineConfig::default()).unwrap();
        let request = Request { max_tokens: Some(8), sampling: greedy.clone(), text: false, ..Request::new(vec![5, 6, 7]) };
        engine.run_to_end(request, &AtomicBool::new(false), |_| std::ops::ControlFlow::Continue(())).unwrap().tokens
    };
    let expected = answer(1);
    assert_eq!(expected.len(), 8);
    assert_eq!(answer(2), expected);
}
