//! The forward pass on the CPU: against another implementation, and against itself in other batches.

use crate::compare::nmse;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::cpu::kernels::MatmulBlocks;
use qernel::cpu::simd::Isa;
use qernel::dtype::Dtype;
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::gguf::{GgmlType, Gguf};
use qernel::kv_format::{KvFormat, KvFormats};
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::{ModelRunner, Runner};
use qernel::ops::OpsConfig;
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use std::path::{Path, PathBuf};

/// The prompt of the golden files: 37 tokens, so that it ends on its second page.
const IDS: [u32; 37] = [
    284, 72, 101, 256, 33, 7, 200, 199, 5, 11, 286, 64, 90, 91, 92, 256, 31, 101, 101, 17, 250, 251, 3, 285,
    42, 43, 44, 45, 270, 271, 272, 9, 8, 7, 6, 140, 141,
];

const NUM_PAGES: usize = 16;
const MAX_MODEL_LEN: usize = 128;

/// A model, the file with the reference's logits, and the reference's greedy continuation.
struct Golden {
    model: TinyModel,
    file: &'static str,
    greedy: [u32; 4],
}

fn tiny(seed: u64, dtype: Dtype, heads: usize, kv_heads: usize, head_dim: usize, layers: usize) -> TinyModel {
    TinyModel {
        seed,
        format: dtype.into(),
        hidden_size: heads * head_dim,
        intermediate_size: heads * head_dim * 3 / 2,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        ..TinyModel::default()
    }
}

/// How the files were made: tests/data/forward/README.md.
fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            model: tiny(1, Dtype::F16, 4, 2, 64, 3),
            file: "heads4_kv2_dim64_f16_tied.npy",
            greedy: [182, 182, 182, 182],
        },
        Golden {
            model: TinyModel { tie_word_embeddings: false, ..tiny(2, Dtype::Bf16, 3, 1, 128, 2) },
            file: "heads3_kv1_dim128_bf16_untied.npy",
            greedy: [271, 61, 152, 246],
        },
        Golden {
            model: tiny(3, Dtype::F32, 7, 7, 24, 2),
            file: "heads7_kv7_dim24_f32_tied.npy",
            greedy: [63, 63, 63, 146],
        },
        // Heads that do not make up the hidden size: q_proj is [320, 192] and o_proj [192, 320].
        Golden {
            model: TinyModel { hidden_size: 192, intermediate_size: 288, ..tiny(4, Dtype::F16, 5, 1, 64, 2) },
            file: "heads5_kv1_dim64_hidden192_f16_tied.npy",
            greedy: [0, 24, 24, 24],
        },
        Golden {
            model: TinyModel {
                format: MatrixFormat::Q4_0,
                tie_word_embeddings: false,
                ..tiny(8, Dtype::F16, 3, 1, 64, 2)
            },
            file: "heads3_kv1_dim64_q4_0_untied.npy",
            greedy: [203, 132, 222, 3],
        },
        Golden {
            model: TinyModel {
                architecture: "qwen3",
                hidden_size: 192,
                intermediate_size: 288,
                ..tiny(5, Dtype::F16, 4, 2, 64, 3)
            },
            file: "qwen3_heads4_kv2_dim64_hidden192_f16.npy",
            greedy: [194, 41, 41, 41],
        },
        Golden {
            model: TinyModel {
                architecture: "llama",
                tie_word_embeddings: false,
                attention_bias: false,
                ..tiny(6, Dtype::F16, 4, 2, 64, 2)
            },
            file: "llama_heads4_kv2_dim64_f16_untied.npy",
            greedy: [222, 149, 222, 170],
        },
        Golden {
            model: TinyModel { format: MatrixFormat::Q8_0, ..tiny(7, Dtype::F16, 4, 2, 64, 2) },
            file: "heads4_kv2_dim64_q8_0_tied.npy",
            greedy: [54, 32, 54, 32],
        },
        Golden {
            model: TinyModel { architecture: "gpt2", ..tiny(9, Dtype::F16, 4, 4, 64, 2) },
            file: "gpt2_heads4_dim64_f16_tied.npy",
            greedy: [185, 185, 185, 118],
        },
        // Heads whose rows are put into another order, out of one tensor.
        Golden {
            model: TinyModel { architecture: "llama", fused_qkv: true, ..tiny(10, Dtype::F16, 4, 2, 64, 2) },
            file: "llama_fused_qkv_heads4_kv2_dim64_f16_tied.npy",
            greedy: [107, 279, 253, 253],
        },
        // The router's choice is clear by 0.013 in the logits.
        Golden {
            model: TinyModel { architecture: "qwen2moe", ..tiny(16, Dtype::F16, 4, 2, 64, 2) },
            file: "qwen2moe_heads4_kv2_dim64_f16_tied.npy",
            greedy: [29, 29, 29, 29],
        },
        // By 0.010.
        Golden {
            model: TinyModel {
                architecture: "qwen3moe",
                format: MatrixFormat::Q8_0,
                hidden_size: 192,
                intermediate_size: 288,
                tie_word_embeddings: false,
                ..tiny(21, Dtype::F16, 4, 2, 64, 2)
            },
            file: "qwen3moe_heads4_kv2_dim64_hidden192_q8_0_untied.npy",
            greedy: [91, 40, 74, 131],
        },
        // Hybrids: every second layer is of linear attention, with three heads of V for each of K.
        Golden {
            model: TinyModel { architecture: "qwen35", ..tiny(22, Dtype::F16, 4, 2, 64, 4) },
            file: "qwen35_heads4_kv2_dim64_f16_tied.npy",
            greedy: [82, 82, 18, 198],
        },
        // The router's choice is clear by 0.018.
        Golden {
            model: TinyModel { architecture: "qwen35moe", ..tiny(25, Dtype::F16, 4, 2, 64, 2) },
            file: "qwen35moe_heads4_kv2_dim64_f16_tied.npy",
            greedy: [52, 280, 115, 255],
        },
        // By 0.010.
        Golden {
            model: TinyModel {
                architecture: "qwen3next",
                format: MatrixFormat::Q8_0,
                hidden_size: 192,
                intermediate_size: 288,
                tie_word_embeddings: false,
                ..tiny(24, Dtype::F16, 4, 2, 64, 2)
            },
            file: "qwen3next_heads4_kv2_dim64_hidden192_q8_0_untied.npy",
            greedy: [212, 150, 197, 138],
        },
    ]
}

fn load(model: &TinyModel) -> (Config, Weights) {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    (config, weights)
}

fn runner_of(config: &Config, weights: &Weights, isa: Isa, kv: impl Into<KvFormats>) -> ModelRunner<CpuOps> {
    runner_with(config, weights, isa, kv, MatmulBlocks::Exact)
}

fn runner_with(
    config: &Config,
    weights: &Weights,
    isa: Isa,
    kv: impl Into<KvFormats>,
    blocks: MatmulBlocks,
) -> ModelRunner<CpuOps> {
    let limits = BatchLimits {
        max_num_tokens: 80,
        max_num_sequences: 4,
        max_num_logits: 80,
        max_blocks: pages_for(MAX_MODEL_LEN),
    };
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(config, kv, NUM_PAGES).unwrap();
    let ops = CpuOps::with_isa(&ops_config, isa).unwrap().with_blocks(blocks);
    let mut progress = (0, 0);
    let mut report = |loaded, total| progress = (loaded, total);
    let runner = ModelRunner::new(ops, weights, config, &ops_config, layout, &mut report).unwrap();
    assert_eq!(progress, (weights.num_bytes(), weights.num_bytes()), "loading ends at 100 %");
    runner
}

fn runner(model: &TinyModel) -> ModelRunner<CpuOps> {
    let (config, weights) = load(model);
    runner_of(&config, &weights, Isa::best(), Dtype::F32)
}

/// One sequence's rows with all logits.
fn rows<'a>(tokens: &'a [u32], position: usize, pages: &'a [u32]) -> SequenceRows<'a> {
    SequenceRows { tokens, position, pages, logits: LogitRows::All }
}

/// Logits of every position, `[tokens.len(), vocab_size]`, computed in one step on pages that are not in order.
fn whole(runner: &mut dyn Runner, tokens: &[u32]) -> Vec<f32> {
    runner.logits(&Batch::new(&[rows(tokens, 0, &[11, 3, 7])])).unwrap()
}

/// Reads a float64 NumPy file, version 1.0.
fn read_npy(path: &Path) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(std::str::from_utf8(&bytes[10..10 + header]).unwrap().contains("'<f8', 'fortran_order': False"));
    bytes[10 + header..].chunks_exact(8).map(|v| f64::from_le_bytes(v.try_into().unwrap())).collect()
}

fn golden(file: &str) -> Vec<f64> {
    read_npy(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/forward").join(file))
}

/// Fails with the first place where the bits differ.
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let differs = found.iter().zip(expected).position(|(f, e)| f.to_bits() != e.to_bits());
    if let Some(i) = differs {
        let vocab_size = TinyModel::VOCAB_SIZE;
        panic!(
            "{what}: row {}, token {}: {} instead of {}",
            i / vocab_size,
            i % vocab_size,
            found[i],
            expected[i]
        );
    }
}

fn greedy() -> SamplingRow {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    SamplingRow::new(params, 0)
}

#[test]
fn logits_equal_the_reference() {
    for Golden { model, file, .. } in goldens() {
        let (config, weights) = load(&model);
        let expected = golden(file);
        for isa in Isa::available() {
            // Weights are exact in f32, so what is left is f32's rounding, 6e-8 an operation: measured 1.9e-13.
            let mut runner = runner_of(&config, &weights, isa, Dtype::F32);
            let error = nmse(&whole(&mut runner, &IDS), &expected);
            assert!(error <= 2e-12, "{file}, {isa:?}: NMSE {error:e}");
        }
    }
}

#[test]
fn kv_pages_cost_no_more_than_their_rounding() {
    for Golden { model, file, .. } in goldens() {
        let (config, weights) = load(&model);
        let expected = golden(file);
        // Rounding K and V to 11 (8) bits is a relative error of at most 4.9e-4 (3.9e-3), whose square is 2.4e-7
        // (1.5e-5); the residual stream carries part of it on.
        let [f16, bf16] = [Dtype::F16, Dtype::Bf16].map(KvFormat::Float);
        // Of 32 values with a scale each is off by up to half a 127th of the largest, two deviations or more: 2.7e-5 of K and of V, which
        // scores of random weights make more of; and where a router chooses, another expert.
        let dense = config.experts.is_none();
        let blocks = (has_whole_blocks(&config) && dense).then_some((KvFormat::Q8_0, 2e-4));
        for (kv, tolerance) in [(f16, 2.4e-7), (bf16, 1.5e-5)].into_iter().chain(blocks) {
            let kv = KvFormats::both(kv);
            let mut runner = runner_of(&config, &weights, Isa::best(), kv);
            let error = nmse(&whole(&mut runner, &IDS), &expected);
            assert!(error <= tolerance, "{file}, {kv} pages: NMSE {error:e}");
            assert!(error > 1e-10, "{file}, {kv} pages: NMSE {error:e}, were they rounded at all?");
        }
    }
}

/// Whether heads are whole blocks of pages in eight bits.
fn has_whole_blocks(config: &Config) -> bool {
    config.head_dim.is_multiple_of(32)
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    // The portable code fuses multiply and add only where the compiler may assume the instruction.
    let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    for Golden { model, file, .. } in goldens() {
        let (config, weights) = load(&model);
        let blocks = has_whole_blocks(&config).then_some(KvFormat::Q8_0);
        for kv in [KvFormat::Float(Dtype::F32)].into_iter().chain(blocks).map(KvFormats::both) {
            let mut expected: Option<Vec<f32>> = None;
            for isa in Isa::available().into_iter().filter(|&isa| fused || isa != Isa::PORTABLE) {
                let found = whole(&mut runner_of(&config, &weights, isa, kv), &IDS);
                match &expected {
                    Some(expected) => assert_same(&format!("{file}, {isa:?}, {kv} pages"), &found, expected),
                    None => expected = Some(found),
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    for Golden { model, file, greedy: expected } in goldens() {
        let mut runner = runner(&model);
        let mut tokens = IDS.to_vec();
        let mut position = 0;
        while tokens.len() < IDS.len() + expected.len() {
            let rows = SequenceRows {
                tokens: &tokens[position..],
                position,
                pages: &[2, 9],
                logits: LogitRows::Last,
            };
            let next = runner.step(&Batch::new(&[rows]), &[greedy()]).unwrap();
            position = tokens.len();
            tokens.extend(next);
        }
        assert_eq!(tokens[IDS.len()..], expected, "{file}");
    }
}

#[test]
fn a_prefill_in_chunks_equals_the_whole() {
    for Golden { model, file, .. } in goldens() {
        let mut runner = runner(&model);
        let expected = whole(&mut runner, &IDS);
        // One row at a time is decoding; 13 rows and more take the other path of the matrix product.
        for chunk in [1, 5, 13, 32, 36] {
            let mut found = Vec::new();
            for (i, tokens) in IDS.chunks(chunk).enumerate() {
                let batch = Batch::new(&[rows(tokens, i * chunk, &[4, 0])]);
                found.extend(runner.logits(&batch).unwrap());
            }
            assert_same(&format!("{file}, chunks of {chunk}"), &found, &expected);
        }
    }
}

#[test]
fn ragged_sequences_in_one_batch_equal_each_alone() {
    for Golden { model, file, .. } in goldens() {
        let mut runner = runner(&model);
        let reversed: Vec<u32> = IDS.iter().rev().copied().collect();
        let sequences = [&IDS[..], &reversed[..33], &IDS[5..6], &reversed[2..9]];
        let alone: Vec<Vec<f32>> = sequences.iter().map(|tokens| whole(&mut runner, tokens)).collect();

        // The first two have most of their tokens in the cache already; one of them decodes, the other continues.
        let pages: [&[u32]; 4] = [&[6, 1], &[0, 15], &[8], &[3]];
        let cached = [36, 20, 0, 0];
        let first: Vec<_> = (0..2)
            .map(|s| SequenceRows {
                logits: LogitRows::None,
                ..rows(&sequences[s][..cached[s]], 0, pages[s])
            })
            .collect();
        assert!(runner.logits(&Batch::new(&first)).unwrap().is_empty());
        let second: Vec<_> = (0..4).map(|s| rows(&sequences[s][cached[s]..], cached[s], pages[s])).collect();
        let found = runner.logits(&Batch::new(&second)).unwrap();

        let expected: Vec<f32> =
            (0..4).flat_map(|s| alone[s][cached[s] * TinyModel::VOCAB_SIZE..].iter().copied()).collect();
        assert_same(file, &found, &expected);
    }
}

#[test]
fn only_wanted_rows_have_logits() {
    let mut runner = runner(&TinyModel::default());
    let all = whole(&mut runner, &IDS);
    let mut batch = Batch::new(&[rows(&IDS, 0, &[5, 14])]);
    batch.logit_rows = vec![0, 17, 36];
    let found = runner.logits(&batch).unwrap();
    let vocab_size = runner.vocab_size();
    let expected: Vec<f32> =
        [0, 17, 36].iter().flat_map(|r| &all[r * vocab_size..][..vocab_size]).copied().collect();
    assert_same("rows 0, 17 and 36", &found, &expected);
}

#[test]
fn no_bias_equals_a_bias_of_zero() {
    let mut writer = TinyModel::default().writer();
    for i in 0..TinyModel::default().num_hidden_layers {
        for (projection, rows) in [("q", 256), ("k", 128), ("v", 128)] {
            let name = format!("blk.{i}.attn_{projection}.bias");
            writer.remove_tensor(&name).tensor(&name, &[rows], GgmlType::F32, vec![0; 4 * rows as usize]);
        }
    }
    let gguf = Gguf::from_bytes(writer.to_bytes().into()).unwrap();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let expected = whole(&mut runner_of(&config, &weights, Isa::best(), Dtype::F32), &IDS);
    let without = TinyModel { attention_bias: false, ..TinyModel::default() };
    assert_same("without bias", &whole(&mut runner(&without), &IDS), &expected);
}

#[test]
fn malformed_batches_are_refused() {
    let mut runner = runner(&TinyModel::default());
    let batch = Batch::new(&[rows(&IDS, 0, &[0, 1])]);
    let one_row = runner.step(&batch, &[greedy()]);
    assert!(matches!(one_row, Err(Error::Request(_))), "37 logit rows and one sampling row");
    let unknown = Batch { tokens: vec![TinyModel::VOCAB_SIZE as u32; 37], ..batch.clone() };
    let error = runner.logits(&unknown).unwrap_err().to_string();
    assert!(error.contains("tokens[0] is 287, it must be below 287"), "{error}");
    let beyond = Batch::new(&[rows(&IDS, 0, &[0, NUM_PAGES as u32])]);
    assert!(matches!(runner.logits(&beyond), Err(Error::Request(_))));
    runner.logits(&batch).unwrap();
}

#[test]
fn the_logits_command_saves_every_position() {
    let folder = tempfile::tempdir().unwrap();
    let (model, save) = (folder.path().join("tiny.gguf"), folder.path().join("logits.npy"));
    let tiny = TinyModel::default();
    std::fs::write(&model, tiny.to_bytes()).unwrap();
    let ids: Vec<u32> = IDS.iter().chain(&IDS).copied().collect(); // 74 tokens are two chunks.
    let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .args(["logits", "--device", "cpu", "--ids", &list, "--model"])
        .arg(&model)
        .arg("--save")
        .arg(&save);
    command.assert().success().stdout("");

    let bytes = std::fs::read(&save).unwrap();
    assert!(bytes[..128].windows(17).any(|text| text == b"'shape': (74, 287"));
    let saved: Vec<f32> =
        bytes[128..].chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
    assert_same("saved", &saved, &whole(&mut runner(&tiny), &ids));
}

/// A model with matrices of every format that is multiplied in integers.
fn in_blocks() -> TinyModel {
    use MatrixFormat::*;
    TinyModel {
        mix: &[Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, Q3_K, Q2_K, IQ4_NL, IQ4_XS, MXFP4],
        intermediate_size: 512,
        ..tiny(9, Dtype::F16, 4, 2, 64, 4)
    }
}

/// Inputs in eight bits, 32 with a scale, are off by 0.4 % of their deviation: 2e-5 of the square in each product, some of which come one
/// behind the other.
#[test]
fn products_of_integers_cost_what_rounding_their_inputs_does() {
    let of_goldens = goldens().into_iter().filter(|golden| golden.model.format.float().is_none());
    let of_goldens = of_goldens.map(|Golden { model, file, .. }| (model, file, golden(file)));
    let (config, weights) = load(&in_blocks());
    let exact = whole(&mut runner_of(&config, &weights, Isa::best(), Dtype::F32), &IDS);
    let exact = exact.into_iter().map(f64::from).collect();
    for (model, name, expected) in of_goldens.chain([(in_blocks(), "all formats", exact)]) {
        let (config, weights) = load(&model);
        // Where two experts are nearly as good, the other one may be chosen, of eight with random weights: that is no rounding.
        let allowed = if config.experts.is_some() { 5e-2 } else { 1e-3 };
        for isa in Isa::available() {
            let mut runner = runner_with(&config, &weights, isa, Dtype::F32, MatmulBlocks::Int8);
            let error = nmse(&whole(&mut runner, &IDS), &expected);
            assert!(error <= allowed, "{name}, {isa:?}: NMSE {error:e}");
            assert!(error > 1e-7, "{name}, {isa:?}: NMSE {error:e}, were inputs rounded at all?");
        }
    }
}

#[test]
fn products_of_integers_do_not_depend_on_the_batch() {
    let (config, weights) = load(&in_blocks());
    let mut runner = runner_with(&config, &weights, Isa::best(), Dtype::F32, MatmulBlocks::Int8);
    let expected = whole(&mut runner, &IDS);
    for chunk in [1, 2, 5, 8, 9, 13] {
        let mut found = Vec::new();
        for (i, tokens) in IDS.chunks(chunk).enumerate() {
            found.extend(runner.logits(&Batch::new(&[rows(tokens, i * chunk, &[4, 0])])).unwrap());
        }
        assert_same(&format!("chunks of {chunk}"), &found, &expected);
    }
}
