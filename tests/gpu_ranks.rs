//! A model that is shared out over two GPUs: the logits and the tokens of one, with recorded steps and steps ahead; and one whose layers are,
//! by peer access and through host memory.
//!
//! Run with `cargo test --release --features gpu-tests`, where there are two GPUs that reach each other's memory; with one these tests say
//! that they are skipped.

#[path = "common/compare.rs"]
mod compare;
#[path = "common/gpu.rs"]
mod gpu;

use compare::nmse;
use qernel::batch::{Batch, LogitRows, SequenceRows};
use qernel::config::{Config, LinearSizes};
use qernel::cuda;
use qernel::dtype::Dtype;
use qernel::engine::{Engine, EngineConfig, Request};
use qernel::formats::MatrixFormat;
use qernel::load::{DeviceChoice, LayerSplit, RunnerOptions, open_runner};
use qernel::model::Runner;
use qernel::sampler::SamplingParams;
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

/// Whether there are two GPUs; says that the test is skipped if not.
fn has_two() -> bool {
    if gpu::first().is_none() {
        return false;
    }
    let found = cuda::probe().expect("the driver works").len();
    if found < 2 {
        gpu::skip("it needs two GPUs, and there is one");
    }
    found >= 2
}

/// Rows of tens of thousands of values in a step of a prompt, so that both ways of telling sums are taken.
fn model(format: MatrixFormat) -> TinyModel {
    TinyModel {
        format,
        hidden_size: 1024,
        intermediate_size: 2048,
        num_hidden_layers: 3,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 128,
        tie_word_embeddings: false,
        ..TinyModel::default()
    }
}

fn open(format: MatrixFormat, ranks: usize, kernels: &str) -> Box<dyn Runner> {
    open_with(&model(format), RunnerOptions { tensor_parallel: ranks, ..RunnerOptions::default() }, kernels)
}

/// The model on the GPUs that have so many of its layers each.
fn open_layers(model: &TinyModel, shares: &[f64], kernels: &str) -> Box<dyn Runner> {
    let layer_split = Some(LayerSplit::Shares(shares.to_vec()));
    open_with(model, RunnerOptions { layer_split, ..RunnerOptions::default() }, kernels)
}

fn open_with(model: &TinyModel, options: RunnerOptions, kernels: &str) -> Box<dyn Runner> {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let mut options = RunnerOptions {
        device: DeviceChoice::Cuda(None),
        max_model_len: Some(1024),
        max_num_tokens: Some(512),
        max_num_logits: 16,
        ..options
    };
    options.choose_kernels(kernels).unwrap();
    open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap()
}

/// The logits behind a prompt and behind each of a few tokens.
fn logits(runner: &mut dyn Runner) -> Vec<f32> {
    let tokens: Vec<u32> = (0..404).map(|i| i * 7 % TinyModel::VOCAB_SIZE as u32).collect();
    let pages: Vec<u32> = (0..13).collect();
    let mut all = Vec::new();
    for (position, end) in [(0, 400), (400, 401), (401, 402), (402, 403), (403, 404)] {
        let rows =
            SequenceRows { tokens: &tokens[position..end], position, pages: &pages, logits: LogitRows::Last };
        all.extend(runner.logits(&Batch::new(&[rows])).unwrap());
    }
    all
}

#[test]
fn logits_of_two_gpus_are_those_of_one() {
    if !has_two() {
        return;
    }
    // As in docs/precision.md: sums in another order, and what is rounded behind them.
    for (format, allowed) in [
        (Dtype::F16.into(), 1e-5),
        (Dtype::Bf16.into(), 1e-5),
        (MatrixFormat::Q4_K, 1e-4),
        (Dtype::F32.into(), 1e-8),
    ] {
        let expected = logits(&mut *open(format, 1, ""));
        for kernels in ["", "add_ranks=plain", "add_ranks=bulk"] {
            let found = logits(&mut *open(format, 2, kernels));
            let error = nmse(&found, &expected);
            assert!(error <= allowed, "{format}, {kernels:?}: {error:e}");
        }
    }
}

#[test]
fn logits_of_a_hybrid_on_two_gpus_are_those_of_one() {
    if !has_two() {
        return;
    }
    let linear = LinearSizes {
        linear_num_key_heads: 4,
        linear_num_value_heads: 12,
        linear_key_head_dim: 128,
        linear_value_head_dim: 128,
        linear_conv_kernel_dim: 4,
    };
    for format in [MatrixFormat::F16, MatrixFormat::Q4_K] {
        let model = TinyModel { architecture: "qwen35", linear, ..model(format) };
        let [expected, found] = [1, 2].map(|ranks| {
            let options = RunnerOptions { tensor_parallel: ranks, ..RunnerOptions::default() };
            logits(&mut *open_with(&model, options, ""))
        });
        // States carry on what was rounded before.
        let error = nmse(&found, &expected);
        assert!(error <= 1e-4, "{format}: {error:e}");
    }
}

/// 200 greedy tokens, and how many steps were replayed.
fn answer(runner: Box<dyn Runner>) -> (Vec<u32>, u64) {
    let mut engine = Engine::new(runner, None, EngineConfig::default()).unwrap();
    let prompt = (0..300).map(|i| i * 11 % TinyModel::VOCAB_SIZE as u32).collect();
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let request =
        Request { max_tokens: Some(200), text: false, ignore_eos: true, sampling, ..Request::new(prompt) };
    let never = AtomicBool::new(false);
    let completion = engine.run_to_end(request, &never, |_| ControlFlow::Continue(())).unwrap();
    (completion.tokens, engine.runner().num_replays())
}

#[test]
fn answers_of_two_gpus_are_the_same_however_steps_are_queued() {
    if !has_two() {
        return;
    }
    let answer = |ranks: usize, kernels: &str| answer(open(Dtype::F16.into(), ranks, kernels));
    let (expected, replays) = answer(2, "step=launches");
    assert_eq!((expected.len(), replays), (200, 0));
    for kernels in ["step=graph", "step=ahead", ""] {
        let (found, replays) = answer(2, kernels);
        assert_eq!(found, expected, "{kernels:?}");
        assert!(replays > 190, "{kernels:?}: {replays} of 200 replayed");
    }
}

/// The same kernels compute the same numbers where the products' library chooses no other one on a device of the same kind.
#[test]
fn logits_of_layers_on_two_gpus_are_those_of_one() {
    if !has_two() {
        return;
    }
    let hybrid = TinyModel { architecture: "qwen35", num_hidden_layers: 4, ..TinyModel::default() };
    let mixture = TinyModel { architecture: "qwen3moe", num_hidden_layers: 4, ..TinyModel::default() };
    let [floats, blocks] = [Dtype::F16.into(), MatrixFormat::Q4_K].map(model);
    for model in [floats, blocks, hybrid, mixture] {
        let expected = logits(&mut *open_layers(&model, &[1.0], "matmul=gemv"));
        for (shares, kernels) in [([1.0, 1.0], ""), ([2.0, 1.0], ""), ([1.0, 1.0], "hand_over=host")]
            .map(|(shares, kernels)| (shares, format!("matmul=gemv,{kernels}")))
        {
            let found = logits(&mut *open_layers(&model, &shares, &kernels));
            let error = nmse(&found, &expected);
            assert!(
                error == 0.0,
                "{} in {}, {shares:?}, {kernels:?}: {error:e}",
                model.architecture,
                model.format
            );
        }
    }
}

#[test]
fn answers_of_layers_on_two_gpus_are_those_of_one() {
    if !has_two() {
        return;
    }
    let model = model(Dtype::F16.into());
    let (expected, _) = answer(open_layers(&model, &[1.0], ""));
    for kernels in ["step=launches", "step=graph", "", "hand_over=host"] {
        let (found, replays) = answer(open_layers(&model, &[1.0, 1.0], kernels));
        assert_eq!(found, expected, "{kernels:?}");
        assert_eq!(replays > 190, kernels != "step=launches", "{kernels:?}: {replays} of 200 replayed");
    }
}
