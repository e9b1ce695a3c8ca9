//! The engine on a GPU as it is served: steps recorded as CUDA graphs and replayed, steps that run ahead of their tokens,
//! sequences that join, are cancelled and give their pages up. Each must give the tokens that launches one by one give.
//!
//! Run with `cargo test --release --features gpu-tests`, where there is a GPU (`tests/common/gpu.rs`).

#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/life.rs"]
mod life;

use gpu::device;
use life::{CROWDED, Capacity, Life, ROOMY, assert_crowded, choir, crowd};
use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::engine::Engine;
use qernel::testing::TinyModel;
use std::rc::Rc;

fn on_gpu(device: &Rc<Device>, dtype: Dtype, capacity: Capacity, kernels: &str) -> Engine {
    model_on_gpu(device, "qwen2", dtype, capacity, kernels)
}

fn model_on_gpu(
    device: &Rc<Device>,
    architecture: &'static str,
    dtype: Dtype,
    capacity: Capacity,
    kernels: &str,
) -> Engine {
    let choice = KernelChoice::parse(kernels).unwrap();
    let model = TinyModel { architecture, format: dtype.into(), ..TinyModel::default() };
    let engine = life::engine(&model, dtype, capacity, |config| {
        CudaOps::new(device, config, dtype, choice.clone()).unwrap()
    });
    assert_eq!(engine.runner().runs_ahead(), !kernels.contains("step=") || kernels.contains("step=ahead"));
    engine
}

/// All formats; one where kernels are hundreds of times slower (`gpu-bundle/run --sanitizer`).
fn dtypes() -> &'static [Dtype] {
    if std::env::var_os("QERNEL_TEST_SMALL").is_some() { &[Dtype::F16] } else { &Dtype::ALL }
}

/// A life with those kernels, and how many of its steps were replayed.
fn live(engine: &mut Engine, life: impl Fn(&mut Engine) -> Life) -> (Life, u64) {
    let life = life(engine);
    (life, engine.runner().num_replays())
}

/// Where all sequences begin and end together, a step has the same rows however it is queued: the kernels are those that run by
/// default. Three sequences take the fused operations, twelve the separate ones and cuBLAS.
#[test]
fn neither_graphs_nor_running_ahead_change_a_token() {
    let Some(device) = device() else { return };
    for &dtype in dtypes() {
        for sequences in [3, 12] {
            let choir = |engine: &mut Engine| choir(engine, sequences);
            let (expected, replays) = live(&mut on_gpu(&device, dtype, ROOMY, "step=launches"), choir);
            assert_eq!(replays, 0);
            for kernels in ["step=graph", "step=ahead", ""] {
                let case = format!("{dtype}, {sequences} sequences, {kernels:?}");
                let (found, replays) = live(&mut on_gpu(&device, dtype, ROOMY, kernels), choir);
                assert_eq!(found.answers, expected.answers, "{case}");
                assert_eq!(found.steps, expected.steps, "{case}");
                // Decoding is recorded when it comes a second time, prompts when they come a third time; each once more where
                // a buffer has moved meanwhile. The last step of prompts at least is replayed.
                let told = found.steps - replays;
                assert!((3..=5).contains(&told), "{case}: {told} of {} not replayed", found.steps);
            }
        }
    }
}

/// Recorded or not, the same steps: kernels of the default, on which a row's bits may depend on the rows beside it.
#[test]
fn graphs_change_no_token_of_a_crowd() {
    let Some(device) = device() else { return };
    for &dtype in dtypes() {
        let (expected, replays) = live(&mut on_gpu(&device, dtype, CROWDED, "step=launches"), crowd);
        assert_crowded(&expected);
        assert_eq!(replays, 0);
        let (found, replays) = live(&mut on_gpu(&device, dtype, CROWDED, "step=graph"), crowd);
        assert_crowded(&found);
        assert_eq!(found.answers, expected.answers, "{dtype}");
        assert!(replays > 10, "{dtype}: {replays} of {} replayed", found.steps);
    }
}

/// Ahead of its tokens the engine takes other steps: one that joins waits for the step in flight, and a row of one that was
/// cancelled is thrown away. So the kernels are those whose bits do not depend on the rows beside.
#[test]
fn running_ahead_changes_no_token_of_a_crowd() {
    let Some(device) = device() else { return };
    for &dtype in dtypes() {
        let fixed = if dtype == Dtype::F32 { "matmul=plain" } else { "matmul=plain,attention=mma16" };
        let launches = format!("{fixed},step=launches");
        let (expected, replays) = live(&mut on_gpu(&device, dtype, CROWDED, &launches), crowd);
        assert_crowded(&expected);
        assert_eq!(replays, 0);
        for step in ["graph", "ahead"] {
            let kernels = format!("{fixed},step={step}");
            let (found, replays) = live(&mut on_gpu(&device, dtype, CROWDED, &kernels), crowd);
            assert_crowded(&found);
            assert_eq!(found.answers, expected.answers, "{dtype}, {kernels}");
            assert!(replays > 10, "{dtype}, {kernels}: {replays} of {} replayed", found.steps);
        }
        // In a room where nobody gives pages up.
        let (found, _) = live(&mut on_gpu(&device, dtype, ROOMY, fixed), crowd);
        assert_eq!(found.answers, expected.answers, "{dtype}, with room for all");
    }
}

/// States of recurrent layers move on once for each token: in recorded steps, in steps ahead, and with copies of them around steps.
#[test]
fn neither_graphs_nor_running_ahead_change_a_token_of_a_hybrid() {
    let Some(device) = device() else { return };
    let on_gpu = |room, kernels: &str| model_on_gpu(&device, "qwen35", Dtype::F16, room, kernels);
    for sequences in [3, 12] {
        let choir = |engine: &mut Engine| choir(engine, sequences);
        let (expected, replays) = live(&mut on_gpu(ROOMY, "step=launches"), choir);
        assert_eq!(replays, 0);
        for kernels in ["step=graph", "step=ahead", ""] {
            let (found, replays) = live(&mut on_gpu(ROOMY, kernels), choir);
            assert_eq!(found.answers, expected.answers, "{sequences} sequences, {kernels:?}");
            assert!(
                replays > 10,
                "{sequences} sequences, {kernels:?}: {replays} of {} replayed",
                found.steps
            );
        }
    }
    let fixed = "matmul=plain,attention=mma16";
    let (expected, _) = live(&mut on_gpu(CROWDED, &format!("{fixed},step=launches")), crowd);
    assert_crowded(&expected);
    for step in ["graph", "ahead"] {
        let (found, replays) = live(&mut on_gpu(CROWDED, &format!("{fixed},step={step}")), crowd);
        assert_crowded(&found);
        assert_eq!(found.answers, expected.answers, "{step}");
        assert!(replays > 10, "{step}: {replays} of {} replayed", found.steps);
    }
}

/// Steps that verify drafts and those that draft are recorded, whoever drafts, and change no token: kernels whose bits do not depend on
/// the rows beside.
#[test]
fn drafts_are_recorded_and_change_no_token() {
    let Some(device) = device() else { return };
    let fixed = "matmul=plain,layer=separate";
    let ops = |kernels: &str| {
        let choice = KernelChoice::parse(kernels).unwrap();
        let device = device.clone();
        move |config: &qernel::ops::OpsConfig| {
            CudaOps::new(&device, config, Dtype::F16, choice.clone()).unwrap()
        }
    };
    let choir = |engine: &mut Engine| choir(engine, 3);
    let model = TinyModel { silent_from: Some(1), ..TinyModel::default() };
    let draft = TinyModel { num_hidden_layers: 1, silent_from: None, ..model.clone() };
    let (expected, _) = live(&mut life::engine(&model, Dtype::F16, ROOMY, ops(fixed)), choir);
    for source in [Some(&draft), None] {
        for step in ["launches", "graph"] {
            let kernels = format!("{fixed},step={step}");
            let mut engine = life::engine_that_drafts(&model, source, Dtype::F16, ROOMY, ops(&kernels));
            let (found, replays) = live(&mut engine, choir);
            assert_eq!(found.answers, expected.answers, "{kernels}, a model: {}", source.is_some());
            let drafted: usize = found.timings.values().map(|timings| timings.draft_tokens).sum();
            assert!(drafted > 20, "{drafted}");
            assert_eq!(replays > found.steps / 4, step == "graph", "{replays} of {} replayed", found.steps);
        }
    }
    let hybrid = |draft| TinyModel { architecture: "qwen35", draft, ..TinyModel::default() };
    let own = Some(qernel::testing::TinyDraft::default());
    let (expected, _) = live(&mut life::engine(&hybrid(None), Dtype::F16, ROOMY, ops(fixed)), choir);
    for step in ["launches", "graph"] {
        let kernels = format!("{fixed},step={step}");
        let (found, replays) = live(&mut life::engine(&hybrid(own), Dtype::F16, ROOMY, ops(&kernels)), choir);
        assert_eq!(found.answers, expected.answers, "{kernels}");
        assert_eq!(replays > found.steps / 2, step == "graph", "{replays} of {} replayed", found.steps);
    }
}
