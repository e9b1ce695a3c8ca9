//! Every kernel in every format and variant, and the forward pass, on an emulated device: the same cases as on a GPU, as
//! far as they are small, with every access checked (see `cuda_std::emulation`). No GPU is needed.
//!
//! `QERNEL_TEST_SEEDS=100` repeats the cases with so many seeds, of which inputs and schedules are drawn;
//! `QERNEL_TEST_WORK` leaves out cases of more work.

#[path = "common/compare.rs"]
mod compare;
#[path = "common/emulated_drafts.rs"]
mod drafts;
#[allow(dead_code, reason = "the CPU's half")]
#[path = "common/golden_formats.rs"]
mod golden_formats;
#[allow(dead_code, reason = "a choir is too much for emulation")]
#[path = "common/life.rs"]
mod life;
#[path = "gpu_kernels/operations.rs"]
mod operations;

use compare::nmse;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::{Config, ExpertSizes, LinearSizes};
use qernel::cpu::CpuOps;
use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::kv_format::{KvFormat, KvFormats};
use qernel::kv_layout::pages_for;
use qernel::lab::case::{SMALL_WORK, Session};
use qernel::lab::check::{CheckOptions, Outcome, check as check_cases, verify};
use qernel::load::{DeviceChoice, DtypeChoice, RunnerOptions, kv_layout, open_runner};
use qernel::model::{ARCHITECTURES, ModelRunner, Runner};
use qernel::ops::{Ops, OpsConfig};
use qernel::sampler::{NO_TOKEN, SamplingParams, SamplingRow};
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
    for &architecture in ARCHITECTURES.iter().filter(|name| !name.ends_with("vl")) {
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

/// Steps that take their tokens from the device give what steps do that wait for them.
#[test]
fn running_ahead_changes_no_token() {
    let model = TinyModel { format: MatrixFormat::F16, num_hidden_layers: 1, ..small() };
    same_tokens_ahead(&model, Dtype::F16.into());
    same_tokens_ahead(&model, KvFormats::both(KvFormat::Q8_0));
}

/// States move on once for each token, whoever joins, leaves or is crowded out.
#[test]
fn running_ahead_changes_no_token_of_a_hybrid() {
    same_tokens_ahead(&hybrid(), Dtype::F16.into());
}

fn hybrid() -> TinyModel {
    let linear = LinearSizes {
        linear_num_key_heads: 1,
        linear_num_value_heads: 2,
        linear_key_head_dim: 32,
        linear_value_head_dim: 32,
        linear_conv_kernel_dim: 4,
    };
    TinyModel {
        architecture: "qwen35",
        format: MatrixFormat::F16,
        hidden_size: 64,
        intermediate_size: 64,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        linear,
        ..TinyModel::default()
    }
}

fn same_tokens_ahead(model: &TinyModel, formats: KvFormats) {
    let lives = [("", true), ("step=graph", false)].map(|(kernels, ahead)| {
        let choice = KernelChoice::parse(kernels).unwrap();
        let ops = |config: &OpsConfig| {
            CudaOps::new(&device_of_models(5), config, Dtype::F16, choice.clone()).unwrap()
        };
        let mut engine = life::engine(model, formats, life::CROWDED, ops);
        assert_eq!(engine.runner().runs_ahead(), ahead);
        let life = life::crowd(&mut engine);
        life::assert_crowded(&life);
        assert_eq!(engine.runner().num_replays(), 0, "nothing is recorded in emulation");
        life
    });
    assert_eq!(lives[0].answers, lives[1].answers);
}

/// Rows that nobody drew, more rows than were drawn, and a third step before the first was taken.
#[test]
fn what_is_not_on_the_device_is_refused() {
    let ops = |config: &OpsConfig| {
        CudaOps::new(&device_of_models(3), config, Dtype::F16, KernelChoice::default()).unwrap()
    };
    let mut runner =
        runner(&TinyModel { format: MatrixFormat::F16, ..TinyModel::default() }, Dtype::F16, ops);
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let row = SamplingRow::new(greedy, 2);
    let at = |position, pages| SequenceRows { tokens: &[3], position, pages, logits: LogitRows::Last };
    let behind = |position| Batch { sampled_rows: vec![0], ..Batch::new(&[at(position, &[6])]) };
    let row = std::slice::from_ref(&row);
    assert!(matches!(runner.queue(&behind(0), row), Err(Error::Request(_))), "nothing was drawn");
    assert!(matches!(runner.take(), Err(Error::Request(_))), "nothing is queued");

    runner.queue(&Batch::new(&[at(0, &[6])]), row).unwrap();
    let wide = Batch { sampled_rows: vec![0, 0], ..Batch::new(&[at(1, &[6]), at(0, &[5])]) };
    let error = runner.queue(&wide, &[row[0].clone(), row[0].clone()]).unwrap_err();
    assert!(error.to_string().contains("the last draw had 1 rows"), "{error}");
    runner.discard();

    let first = runner.step(&Batch::new(&[at(0, &[6])]), row).unwrap();
    runner.queue(&behind(1), row).unwrap();
    runner.queue(&behind(2), row).unwrap();
    assert!(matches!(runner.queue(&behind(3), row), Err(Error::Request(_))), "two steps are queued");
    let second = runner.take().unwrap();
    let third = runner.take().unwrap();
    for (token, position, expected) in [(first[0], 1, &second), (second[0], 2, &third)] {
        let rows = SequenceRows { tokens: &[token], ..at(position, &[6]) };
        assert_eq!(&runner.step(&Batch::new(&[rows]), row).unwrap(), expected);
    }
}

/// The logits of a small model whose MLP has values `scale` times as large in between, on the CPU.
fn rescaled(format: Dtype, scale: f32) -> (TinyModel, Vec<f32>) {
    let model = TinyModel { format: format.into(), mlp_scale: scale, num_hidden_layers: 1, ..small() };
    let expected = logits(&mut *runner(&model, Dtype::F32, |config| CpuOps::new(config).unwrap()));
    (model, expected)
}

/// Weights and values that f16 does not have are scaled so that it does: fused and separate, one row and many.
#[test]
fn values_of_any_size_are_kept_in_the_range_of_f16() {
    let (_, ordinary) = rescaled(Dtype::Bf16, 1.0);
    let formats = [Dtype::Bf16, Dtype::F32];
    let scales = [4096.0, 65_536.0, 16_777_216.0, 1.0 / 16_777_216.0];
    // Every scale in one format, the largest in both.
    for (format, scale) in
        scales.map(|scale| (formats[0], scale)).into_iter().chain([(formats[1], scales[2])])
    {
        let (model, expected) = rescaled(format, scale);
        if format == Dtype::Bf16 {
            let error = nmse(&expected, &ordinary);
            assert!(error <= 1e-10, "times {scale}: the CPU computes another function: {error:e}");
        }
        for kernels in ["", "layer=separate"] {
            let choice = KernelChoice::parse(kernels).unwrap();
            let ops = |config: &OpsConfig| {
                CudaOps::new(&device_of_models(3), config, Dtype::F16, choice.clone()).unwrap()
            };
            let error = nmse(&logits(&mut *runner(&model, Dtype::F16, ops)), &expected);
            assert!(error <= 1e-5, "{format}, times {scale} {kernels:?}: {error:e}");
        }
    }
}

/// The bf16 model, one value of a matrix changed.
fn changed(name: &str, value: f32) -> (Config, Weights) {
    let (config, mut weights) = parts(&TinyModel { format: MatrixFormat::Bf16, ..TinyModel::default() });
    let mut matrix = weights.matrix(name).unwrap().clone();
    let mut data = matrix.data.to_vec();
    data[10..12].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    matrix.data = data.into();
    weights.replace(matrix).unwrap();
    (config, weights)
}

fn held_as((config, weights): &(Config, Weights), dtype: DtypeChoice) -> Result<Dtype, Error> {
    let options = RunnerOptions {
        device: DeviceChoice::Emulated,
        dtype,
        max_model_len: Some(32),
        max_num_tokens: Some(8),
        ..RunnerOptions::default()
    };
    open_runner(weights, config, &options, &mut |_, _| ())
        .map(|runner| runner.kv_layout().formats.float().unwrap())
}

/// What cannot be scaled: K and V go to the pages as they are. `auto` holds all as bf16 then, `f16` is refused.
#[test]
fn what_may_leave_the_range_of_f16_is_found_and_named() {
    let ordinary = changed("blk.1.attn_v.weight", 0.5);
    assert_eq!(held_as(&ordinary, DtypeChoice::Auto).unwrap(), Dtype::F16);
    assert_eq!(held_as(&ordinary, DtypeChoice::Bf16).unwrap(), Dtype::Bf16);
    // A weight that f16 does not have, in a matrix that is scaled.
    assert_eq!(held_as(&changed("blk.1.ffn_up.weight", -131_072.0), DtypeChoice::F16).unwrap(), Dtype::F16);
    for (name, what) in [("blk.1.attn_k.weight", "blk.1: K"), ("blk.0.attn_v.weight", "blk.0: V")] {
        let beyond = changed(name, 65_536.0);
        assert_eq!(held_as(&beyond, DtypeChoice::Auto).unwrap(), Dtype::Bf16);
        let error = held_as(&beyond, DtypeChoice::F16).unwrap_err();
        assert!(matches!(&error, Error::Range(text) if text.contains(what)), "{error}");
    }
}

/// A weight that is no number, or infinite, is named while the matrix is converted.
#[test]
fn weights_that_are_not_finite_are_named() {
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let error = held_as(&changed("blk.0.ffn_down.weight", value), DtypeChoice::Auto).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains("blk.0.ffn_down.weight")), "{error}");
    }
}

/// A row whose logits are no numbers draws nothing; the rows beside it, the step behind it and whoever gets its pages are as ever.
#[test]
fn a_row_without_numbers_draws_nothing_and_leaves_the_others_alone() {
    const BROKEN: u32 = 77;
    fn sequence<'a>(tokens: &'a [u32], pages: &'a [u32]) -> SequenceRows<'a> {
        SequenceRows { tokens, position: 0, pages, logits: LogitRows::Last }
    }
    let model = TinyModel { format: MatrixFormat::F16, tie_word_embeddings: false, ..TinyModel::default() };
    let (config, mut weights) = parts(&model);
    let mut embedding = weights.matrix("token_embd.weight").unwrap().clone();
    let mut data = embedding.data.to_vec();
    let row = BROKEN as usize * 2 * embedding.cols;
    data[row..row + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    embedding.data = data.into();
    weights.replace(embedding).unwrap();

    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let drawing = |temperature| SamplingRow::new(SamplingParams { temperature, ..params.clone() }, 3);
    for (kernels, temperature) in
        [("", 0.0), ("argmax=plain,layer=separate", 0.0), ("", 0.9), ("sample=chain", 0.9)]
    {
        let choice = KernelChoice::parse(kernels).unwrap();
        let ops = |config: &OpsConfig| CudaOps::new(&device(3), config, Dtype::F16, choice.clone()).unwrap();
        let runner = &mut *loaded(&config, &weights, Dtype::F16, ops);
        let row = [drawing(temperature)];
        let expected = runner.step(&Batch::new(&[sequence(&[1, 2, 3], &[4])]), &row).unwrap();
        let both = [sequence(&[1, BROKEN, 3], &[5]), sequence(&[1, 2, 3], &[6])];
        let rows = [row[0].clone(), row[0].clone()];
        runner.queue(&Batch::new(&both), &rows).unwrap();
        // The step behind it takes what was drawn from the device.
        let next = [5, 6].map(|page| [page]);
        let next = next.each_ref().map(|pages| SequenceRows { position: 3, ..sequence(&[0], pages) });
        let next = Batch { sampled_rows: vec![0, 1], ..Batch::new(&next) };
        runner.queue(&next, &rows).unwrap();
        assert_eq!(runner.take().unwrap(), [NO_TOKEN, expected[0]], "{kernels:?}, {temperature}");
        assert_eq!(runner.take().unwrap().len(), 2);
        // On the pages of the broken one.
        let again = runner.step(&Batch::new(&[sequence(&[1, 2, 3], &[5])]), &row).unwrap();
        assert_eq!(again, expected, "{kernels:?}, {temperature}: what was left in the pages is read");
    }
}
