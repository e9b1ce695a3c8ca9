//! The forward pass on the GPU against the same pass on the CPU, and against itself in other batches.
//!
//! Run with `cargo test --release --features gpu-tests`, where there is a GPU (`tests/common/gpu.rs`).

#[path = "common/compare.rs"]
mod compare;
#[path = "common/gpu.rs"]
mod gpu;

use compare::nmse;
use gpu::device;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::{Config, ExpertSizes, LinearSizes};
use qernel::cpu::CpuOps;
use qernel::cuda::{self, CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::formats::MatrixFormat;
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::{ModelRunner, Runner};
use qernel::ops::OpsConfig;
use qernel::testing::{Random, TinyModel};
use qernel::weights::Weights;
use std::rc::Rc;

const MAX_MODEL_LEN: usize = 512;
const NUM_PAGES: usize = 64;
const LIMITS: BatchLimits = BatchLimits {
    max_num_tokens: 512,
    max_num_sequences: 8,
    max_num_logits: 512,
    max_blocks: pages_for(MAX_MODEL_LEN),
};

fn parts(model: &TinyModel) -> (Config, Weights, OpsConfig) {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let ops_config = OpsConfig::new(&config, MAX_MODEL_LEN, LIMITS);
    (config, weights, ops_config)
}

/// The model with matrices in the format of its file.
fn on_gpu(device: &Rc<Device>, model: &TinyModel, kernels: &str) -> Box<dyn Runner> {
    on_gpu_as(device, model, cuda::compute_dtype(&parts(model).1), kernels)
}

fn on_gpu_as(device: &Rc<Device>, model: &TinyModel, dtype: Dtype, kernels: &str) -> Box<dyn Runner> {
    let (config, weights, ops_config) = parts(model);
    let choice = KernelChoice::parse(kernels).unwrap();
    let ops = CudaOps::new(device, &ops_config, dtype, choice).unwrap();
    let layout = kv_layout(&config, dtype, NUM_PAGES).unwrap();
    Box::new(ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap())
}

fn on_cpu(model: &TinyModel) -> Box<dyn Runner> {
    let (config, weights, ops_config) = parts(model);
    let ops = CpuOps::new(&ops_config).unwrap();
    let layout = kv_layout(&config, Dtype::F32, NUM_PAGES).unwrap();
    Box::new(ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap())
}

/// Random tokens of the vocabulary.
fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed, "tokens");
    (0..count).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect()
}

/// Pages for sequence `s`: 16 of its own, in descending order.
fn pages(s: usize) -> Vec<u32> {
    (0..16).map(|i| (NUM_PAGES - 1 - 16 * s - i) as u32).collect()
}

/// The logits of all `tokens` of one sequence, computed in chunks of at most `chunk` rows.
fn logits(runner: &mut dyn Runner, s: usize, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let pages = pages(s);
    let mut logits = Vec::new();
    for (i, chunk_tokens) in tokens.chunks(chunk).enumerate() {
        let rows =
            SequenceRows { tokens: chunk_tokens, position: i * chunk, pages: &pages, logits: LogitRows::All };
        logits.extend(runner.logits(&Batch::new(&[rows])).unwrap());
    }
    logits
}

/// What the project allows: for f32 only the order of additions and the exponential differ from the CPU's; the CPU
/// keeps activations in f32 where the GPU rounds them to the format of the weights.
fn allowed(format: MatrixFormat) -> f64 {
    match format {
        MatrixFormat::F32 => 1e-10,
        MatrixFormat::Bf16 => 4e-4,
        // What products of other formats read is f16.
        _ => 1e-5,
    }
}

fn assert_close(case: &str, format: MatrixFormat, found: &[f32], expected: &[f32]) {
    let error = nmse(found, expected);
    assert!(error <= allowed(format), "{case}: normalised mean squared error {error:e}");
}

fn models() -> Vec<TinyModel> {
    let mut models = Vec::new();
    for dtype in Dtype::ALL {
        for tie_word_embeddings in [true, false] {
            models.push(TinyModel { format: dtype.into(), tie_word_embeddings, ..TinyModel::default() });
        }
        // 7 heads on one, without bias; sizes that are no multiple of a vector.
        models.push(TinyModel {
            format: dtype.into(),
            hidden_size: 7 * 64,
            intermediate_size: 610,
            num_attention_heads: 7,
            num_key_value_heads: 1,
            attention_bias: false,
            ..TinyModel::default()
        });
        models.push(TinyModel {
            format: dtype.into(),
            head_dim: 128,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..TinyModel::default()
        });
    }
    if small() {
        models.truncate(4);
    }
    models
}

/// Whether the tests run where kernels are hundreds of times slower (`gpu-bundle/run --sanitizer`).
fn small() -> bool {
    std::env::var_os("QERNEL_TEST_SMALL").is_some()
}

fn describe(model: &TinyModel) -> String {
    let TinyModel { format, num_attention_heads, num_key_value_heads, head_dim, tie_word_embeddings, .. } =
        model;
    format!(
        "{format}, {num_attention_heads}:{num_key_value_heads} heads of {head_dim}, tied {tie_word_embeddings}"
    )
}

#[test]
fn logits_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    let tokens = tokens(1, 111);
    for model in models() {
        let expected = logits(&mut *on_cpu(&model), 0, &tokens, 512);
        for kernels in ["", "matmul=gemv", "matmul=plain,attention=plain,rms_norm=plain"] {
            if kernels == "matmul=gemv" && model.intermediate_size % 8 != 0 {
                continue;
            }
            let case = format!("{} {kernels}", describe(&model));
            let found = logits(&mut *on_gpu(&device, &model, kernels), 0, &tokens, 512);
            assert_close(&case, model.format, &found, &expected);
        }
    }
}

/// What the engine does where nothing else is asked for: as precise as a file in f16.
#[test]
fn bf16_models_held_as_f16_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    let tokens = tokens(1, 111);
    for model in models().into_iter().filter(|model| model.format == MatrixFormat::Bf16) {
        let expected = logits(&mut *on_cpu(&model), 0, &tokens, 512);
        // All at once, and in steps of one token, which are fused.
        for chunk in [512, 1] {
            let found = logits(&mut *on_gpu_as(&device, &model, Dtype::F16, ""), 0, &tokens, chunk);
            assert_close(
                &format!("{} as f16, chunks of {chunk}", describe(&model)),
                MatrixFormat::F16,
                &found,
                &expected,
            );
        }
    }
}

/// Weights and values that f16 does not have are scaled so that it does, on every path: the logits of a model whose MLP has values `scale`
/// times as large in between.
#[test]
fn values_of_any_size_are_kept_in_the_range_of_f16() {
    let Some(device) = device() else { return };
    let tokens = tokens(6, if small() { 12 } else { 70 });
    let heads_of_128 =
        TinyModel { head_dim: 128, num_attention_heads: 2, num_key_value_heads: 1, ..TinyModel::default() };
    let scales = [4096.0, 65_536.0, 16_777_216.0, 1.0 / 16_777_216.0];
    for model in [TinyModel::default(), heads_of_128] {
        for (format, scale) in
            [MatrixFormat::Bf16, MatrixFormat::F32].into_iter().flat_map(|format| scales.map(|s| (format, s)))
        {
            let model = TinyModel { format, mlp_scale: scale, ..model.clone() };
            let expected = logits(&mut *on_cpu(&model), 0, &tokens, 512);
            // Whole prompts, few rows (fused), one.
            for (kernels, chunk) in
                [("", 512), ("", 1), ("layer=separate", 7), ("layer=separate", 1), ("matmul=plain", 512)]
            {
                let runner = &mut *on_gpu_as(&device, &model, Dtype::F16, kernels);
                let found = logits(runner, 0, &tokens, chunk);
                let case = format!("{}, times {scale}, {kernels:?}, chunks of {chunk}", describe(&model));
                assert_close(&case, MatrixFormat::F16, &found, &expected);
            }
        }
    }
}

#[test]
fn prefill_in_chunks_and_token_by_token() {
    let Some(device) = device() else { return };
    let tokens = tokens(2, if small() { 20 } else { 70 });
    for model in models() {
        let case = describe(&model);
        // In a fixed order of addition a row's bits do not depend on the chunk it is in.
        let runner = &mut *on_gpu(&device, &model, fixed_order(&model));
        let whole = logits(runner, 0, &tokens, 512);
        for chunk in [1, 19, 33] {
            let found = logits(runner, 1, &tokens, chunk);
            assert!(same_bits(&found, &whole), "{case}: chunks of {chunk} change the bits");
        }
        // cuBLAS picks its algorithm by the number of rows: close, not the same bits.
        let runner = &mut *on_gpu(&device, &model, "");
        for chunk in [1, 19] {
            let found = logits(runner, 1, &tokens, chunk);
            assert_close(&format!("{case}: chunks of {chunk}"), model.format, &found, &whole);
        }
    }
}

#[test]
fn ragged_batches_compute_what_each_sequence_gets_alone() {
    let Some(device) = device() else { return };
    let prompts = [tokens(3, 1), tokens(4, 111), tokens(5, 40)];
    for model in models() {
        let case = describe(&model);
        for kernels in [fixed_order(&model), ""] {
            let runner = &mut *on_gpu(&device, &model, kernels);
            let alone: Vec<_> = prompts.iter().map(|prompt| logits(runner, 3, prompt, 512)).collect();
            // First the beginnings, then in one batch: a decode row, a chunk of 11 rows, a decode row.
            logits(runner, 1, &prompts[1][..100], 512);
            logits(runner, 2, &prompts[2][..39], 512);
            let starts = [0, 100, 39];
            let pages: Vec<_> = (0..3).map(pages).collect();
            let parts: Vec<_> = (0..3)
                .map(|s| SequenceRows {
                    tokens: &prompts[s][starts[s]..],
                    position: starts[s],
                    pages: &pages[s],
                    logits: LogitRows::Last,
                })
                .collect();
            let found = runner.logits(&Batch::new(&parts)).unwrap();
            for (s, found) in found.chunks(TinyModel::VOCAB_SIZE).enumerate() {
                let expected = &alone[s][alone[s].len() - TinyModel::VOCAB_SIZE..];
                let case = format!("{case} {kernels}: sequence {s}");
                if kernels.is_empty() {
                    assert_close(&case, model.format, found, expected);
                } else {
                    assert!(same_bits(found, expected), "{case}: a batch changes the bits");
                }
            }
        }
    }
}

/// Kernels that add in an order of their own, not one that depends on the number of rows: tensor cores for attention of single
/// rows too.
fn fixed_order(model: &TinyModel) -> &'static str {
    if model.format == MatrixFormat::F32 { "matmul=plain" } else { "matmul=plain,attention=mma16" }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Hybrids with the heads of published models, in whole prompts, in chunks and token by token.
#[test]
fn hybrids_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    let linear = LinearSizes {
        linear_num_key_heads: 1,
        linear_num_value_heads: 2,
        linear_key_head_dim: 128,
        linear_value_head_dim: 128,
        linear_conv_kernel_dim: 4,
    };
    let tokens = tokens(11, 150);
    for architecture in ["qwen35", "qwen35moe", "qwen3next"] {
        let heads = TinyModel {
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 256,
            // All of them: where a router's logits are within the roundings of its inputs another choice is as right.
            experts: ExpertSizes { num_experts: 4, num_experts_per_tok: 4, ..TinyModel::default().experts },
            ..TinyModel::default()
        };
        let model =
            TinyModel { architecture, format: MatrixFormat::F16, num_hidden_layers: 4, linear, ..heads };
        let expected = logits(&mut *on_cpu(&model), 0, &tokens, 150);
        for kernels in ["", "delta_rule=plain,causal_conv=plain,layer=separate"] {
            let mut runner = on_gpu(&device, &model, kernels);
            for chunk in [150, 64, 7, 1] {
                let found = logits(&mut *runner, 0, &tokens, chunk);
                let case = format!("{architecture} {kernels:?}, {chunk} tokens a step");
                let error = nmse(&found, &expected);
                println!("{case}: {error:e}");
                assert!(error <= 1e-5, "{case}: {error:e}");
            }
        }
    }
}
