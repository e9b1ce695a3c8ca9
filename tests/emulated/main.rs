//! Every kernel in every format and variant, and the forward pass, on an emulated device: the same cases as on a GPU, as
//! far as they are small, with every access checked (see `cuda_std::emulation`). No GPU is needed.
//!
//! `QERNEL_TEST_SEEDS=100` repeats the cases with so many seeds, of which inputs and schedules are drawn;
//! `QERNEL_TEST_WORK` leaves out cases of more work.

#[path = "../common/compare.rs"]
mod compare;
mod drafts;
#[allow(dead_code, reason = "the CPU's half")]
#[path = "../common/golden_formats.rs"]
mod golden_formats;
#[allow(dead_code, reason = "a choir is too much for emulation")]
#[path = "../common/life.rs"]
mod life;
mod lora;
#[path = "../gpu_kernels/operations.rs"]
mod operations;
mod range;
mod ranks;
mod ranks_of_hybrids;
#[path = "../common/sidecar.rs"]
mod sidecar;
mod stages;
mod steps;

use compare::nmse;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::{Config, ExpertSizes};
use qernel::cpu::CpuOps;
use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::formats::MatrixFormat;
use qernel::kv_format::{KvFormat, KvFormats};
use qernel::kv_layout::pages_for;
use qernel::lab::case::{SMALL_WORK, Session};
use qernel::lab::check::{CheckOptions, Outcome, check as check_cases, verify};
use qernel::load::kv_layout;
use qernel::model::{ARCHITECTURES, ModelRunner, Runner};
use qernel::ops::{Ops, OpsConfig};
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::testing::{Random, TinyModel};
use qernel::weights::Weights;
use std::rc::Rc;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn device(seed: u64) -> Rc<Device> {
    Rc::new(Device::emulated(cuda_std::emulation::Options { seed, ..Default::default() }))
}

/// One on which a number that f16 has no room for is a finding: operations have cases of such numbers, models none.
fn device_of_models(seed: u64) -> Rc<Device> {
    Rc::new(Device::emulated(cuda_std::emulation::Options { seed, range: true, ..Default::default() }))
}

fn check(op: &str) {
    let work = setting("QERNEL_TEST_WORK", SMALL_WORK);
    for seed in 1..=setting("QERNEL_TEST_SEEDS", 1) as u64 {
        let results = verify(&device(seed), op, seed, Some(work)).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(!results.is_empty(), "{op} has no case of {work} work");
    }
}

use operations::check_each;
qernel::cuda::for_each_operation!(check_each);

/// The operations that have kernels for repacked matrices, which are of f16, on a device that repacks none, as an A100.
#[test]
fn without_bulk_copies_matrices_stay_as_in_the_file() {
    for op in
        ["decode", "matmul_blocks", "norm_gate_up", "norm_matmul", "norm_qkv_rope", "repack", "row_norms"]
    {
        let device = Rc::new(Device::emulated_without_bulk_copies(cuda_std::emulation::Options::default()));
        let options = CheckOptions {
            op: Some(op.into()),
            dtype: Some(Dtype::F16),
            seed: 1,
            max_work: Some(SMALL_WORK / 4),
            ..CheckOptions::default()
        };
        let results = check_cases(&mut Session::new(&device), &options, &mut |_| ()).unwrap();
        for result in &results {
            let expected =
                if result.variant == "units" || op == "repack" { Outcome::Skipped } else { Outcome::Passed };
            // Other variants may have no kernel for a case.
            let is_right = result.outcome == expected || result.outcome == Outcome::Skipped;
            assert!(is_right, "{op}={} {}: {:?}", result.variant, result.shape, result.notes);
        }
        assert!(op == "repack" || results.iter().any(|r| r.outcome == Outcome::Passed), "{op}");
    }
}

#[test]
fn blocks_are_decoded_as_elsewhere() {
    golden_formats::check_device(&device(1));
}

const MAX_MODEL_LEN: usize = 128;
const NUM_PAGES: usize = 8;
const LIMITS: BatchLimits = BatchLimits {
    max_num_tokens: 64,
    max_num_sequences: 4,
    max_num_logits: 64,
    max_blocks: pages_for(MAX_MODEL_LEN),
};

fn runner<O: Ops + 'static>(
    model: &TinyModel,
    formats: impl Into<KvFormats>,
    ops: impl Fn(&OpsConfig) -> O,
) -> Box<dyn Runner> {
    let (config, weights) = parts(model);
    loaded(&config, &weights, formats, ops)
}

fn parts(model: &TinyModel) -> (Config, Weights) {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    (config, weights)
}

fn loaded<O: Ops + 'static>(
    config: &Config,
    weights: &Weights,
    formats: impl Into<KvFormats>,
    ops: impl Fn(&OpsConfig) -> O,
) -> Box<dyn Runner> {
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, LIMITS);
    let layout = kv_layout(config, formats, NUM_PAGES).unwrap();
    let runner =
        ModelRunner::new(ops(&ops_config), weights, config, &ops_config, layout, &mut |_, _| ()).unwrap();
    Box::new(runner)
}

/// The logits of a prompt, and of three more tokens one by one across the end of a page, the last two beside another
/// sequence.
fn logits(runner: &mut dyn Runner) -> Vec<f32> {
    let mut random = Random::new(7, "tokens");
    let tokens: Vec<u32> =
        (0..34).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect();
    let part = |range: std::ops::Range<usize>, pages| SequenceRows {
        tokens: &tokens[range.clone()],
        position: range.start,
        pages,
        logits: LogitRows::All,
    };
    let (first, second): (&[u32], &[u32]) = (&[5, 0], &[3]);
    let batches = [
        vec![part(0..31, first)],
        vec![part(31..32, first)],
        vec![part(32..33, first), part(0..1, second)],
        vec![part(33..34, first), part(1..2, second)],
    ];
    batches.iter().flat_map(|parts| runner.logits(&Batch::new(parts)).unwrap()).collect()
}

/// A model whose matrices are small: emulation takes its time.
fn small() -> TinyModel {
    TinyModel {
        hidden_size: 128,
        intermediate_size: 192,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        ..TinyModel::default()
    }
}

/// The whole model, prefill and decode, fused and separate: what the GPU runs, on the emulated device.
#[test]
fn the_forward_pass_of_floats_agrees_with_the_cpu() {
    const BOTH: [&str; 2] = ["", "layer=separate"];
    // Of the file, and on the device; bf16 as f16 takes the kernels of f16, f32 is never fused.
    let formats = [
        (Dtype::F16, Dtype::F16, &BOTH[..], 1e-5),
        (Dtype::Bf16, Dtype::F16, &BOTH[..1], 1e-5),
        (Dtype::Bf16, Dtype::Bf16, &BOTH[..], 4e-4),
        (Dtype::F32, Dtype::F32, &BOTH[..1], 1e-10),
    ];
    for (file, dtype, kernels, allowed) in formats {
        let model = TinyModel { format: file.into(), ..small() };
        assert_agrees(&model, dtype, kernels, allowed);
    }
}

#[test]
fn the_forward_pass_of_every_architecture_agrees_with_the_cpu() {
    // The text parts of models that read pictures are others'.
    for &architecture in ARCHITECTURES.iter().filter(|name| !name.contains("vl")) {
        assert_agrees(&TinyModel { architecture, ..small() }, Dtype::F16, &[""], 1e-5);
    }
    // Experts whose matrices are repacked.
    let experts = ExpertSizes { moe_intermediate_size: 256, num_experts: 4, ..TinyModel::default().experts };
    let in_units =
        TinyModel { architecture: "qwen3moe", format: MatrixFormat::Q4_K, experts, ..TinyModel::default() };
    assert_agrees(&in_units, Dtype::F16, &[""], 1e-5);
}

#[test]
fn the_forward_pass_of_every_format_agrees_with_the_cpu() {
    // All in one model, whose products read f16.
    let mix = MatrixFormat::ALL;
    let mixed = TinyModel { mix, intermediate_size: 512, num_hidden_layers: 4, ..TinyModel::default() };
    assert_agrees(&mixed, Dtype::F16, &[""], 1e-5);
    // Held as floats.
    let format = MatrixFormat::Q6_K;
    let small = TinyModel { format, intermediate_size: 256, num_hidden_layers: 1, ..TinyModel::default() };
    assert_agrees(&small, Dtype::F16, &["quantised=floats"], 1e-5);
}

/// The logits of `model` on a device with weights of `dtype`, with each choice of kernels, are the CPU's but for `allowed`; and steps of the engine, draws included,
/// run.
fn assert_agrees(model: &TinyModel, dtype: Dtype, kernels: &[&str], allowed: f64) {
    let file = format!("{} {}, {} formats", model.architecture, model.format, model.mix.len().max(1));
    let expected = logits(&mut *runner(model, Dtype::F32, |config| CpuOps::new(config).unwrap()));
    for kernels in kernels {
        let choice = KernelChoice::parse(kernels).unwrap();
        let ops =
            |config: &OpsConfig| CudaOps::new(&device_of_models(3), config, dtype, choice.clone()).unwrap();
        let mut runner = runner(model, dtype, ops);
        let found = logits(&mut *runner);
        let error = nmse(&found, &expected);
        assert!(error <= allowed, "{file} as {dtype} {kernels:?}: {error:e}");

        let rows = SequenceRows { tokens: &[1, 2], position: 0, pages: &[6], logits: LogitRows::Last };
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let row = SamplingRow::new(greedy, 2);
        let sampled = runner.step(&Batch::new(&[rows]), std::slice::from_ref(&row)).unwrap();
        assert!(sampled.len() == 1 && (sampled[0] as usize) < TinyModel::VOCAB_SIZE);
        let pages = &[6][..];
        let rows = SequenceRows { tokens: &sampled, position: 2, pages, logits: LogitRows::Last };
        let sampled = runner.step(&Batch::new(&[rows]), std::slice::from_ref(&row)).unwrap();
        assert!(sampled.len() == 1 && (sampled[0] as usize) < TinyModel::VOCAB_SIZE);
    }
}

/// K and V in eight bits, or one of them: what a GPU does of them against the CPU, each with such pages. Both are off by as much from
/// pages of f32, and from each other by less: a value that is rounded to f16 first may become the next integer.
#[test]
fn caches_of_eight_bits_agree_with_the_cpu() {
    let floats = KvFormat::Float(Dtype::F16);
    let [blocks, of_k, of_v] = [[KvFormat::Q8_0; 2], [KvFormat::Q8_0, floats], [floats, KvFormat::Q8_0]]
        .map(|[k, v]| KvFormats { k, v });
    let hybrid = TinyModel { architecture: "qwen35", num_attention_heads: 1, ..small() };
    let cases = [
        (small(), blocks, &["", "layer=separate", "attention=any"][..]),
        (TinyModel { head_dim: 32, num_attention_heads: 4, ..small() }, blocks, &[""]),
        (TinyModel { architecture: "qwen3", ..small() }, of_k, &[""]),
        (small(), of_v, &[""]),
        (hybrid, blocks, &[""]),
    ];
    for (model, formats, kernels) in cases {
        let model = TinyModel { format: MatrixFormat::F16, ..model };
        let cpu = |formats| logits(&mut *runner(&model, formats, |config| CpuOps::new(config).unwrap()));
        let (exact, expected) = (cpu(Dtype::F32.into()), cpu(formats));
        let cost = nmse(&expected, &exact);
        assert!(cost > 1e-9 && cost < 1e-3, "{} {formats}: {cost:e}", model.architecture);
        for kernels in kernels {
            let choice = KernelChoice::parse(kernels).unwrap();
            let ops = |config: &OpsConfig| {
                CudaOps::new(&device_of_models(3), config, Dtype::F16, choice.clone()).unwrap()
            };
            let error = nmse(&logits(&mut *runner(&model, formats, ops)), &expected);
            assert!(
                error <= 1e-5 + cost / 2.0,
                "{} {formats} {kernels:?}: {error:e} of {cost:e}",
                model.architecture
            );
        }
    }
}

/// What a chunk of a prompt that needs no logits leaves in such pages is there, of the last layer too.
#[test]
fn chunks_without_logits_are_kept_in_eight_bits() {
    let model = TinyModel { format: MatrixFormat::F16, ..small() };
    let ops = |config: &OpsConfig| {
        CudaOps::new(&device_of_models(3), config, Dtype::F16, KernelChoice::default()).unwrap()
    };
    let mut runner = runner(&model, KvFormats::both(KvFormat::Q8_0), ops);
    let tokens: Vec<u32> = (0..9).collect();
    let mut step = |range: std::ops::Range<usize>, pages: &[u32], logits| {
        let part = SequenceRows { tokens: &tokens[range.clone()], position: range.start, pages, logits };
        runner.logits(&Batch::new(&[part])).unwrap()
    };
    let whole = step(0..9, &[5], LogitRows::Last);
    step(0..7, &[3], LogitRows::None);
    step(7..8, &[3], LogitRows::None);
    let error = nmse(&step(8..9, &[3], LogitRows::Last), &whole);
    assert!(error <= 1e-5, "{error:e}");
}
