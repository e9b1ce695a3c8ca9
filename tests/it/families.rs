//! Every architecture against files and float64 logits of another implementation.
//!
//! The files are those that a folder of golden files holds: `NAME.gguf` in f32, `NAME.json` (the tokens, how far the reference in
//! float32 is from itself in float64) and `NAME.npy` (float32 `[tokens, vocabulary]`). `QERNEL_FAMILIES` names the folder. Small models of
//! each architecture, whose logits stand beside them, are in `forward.rs` and need no folder. Files whose heads a GPU takes run on an emulated
//! device too.

use crate::compare::nmse;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::gguf::Gguf;
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::{ARCHITECTURES, ModelRunner, Runner};
use qernel::ops::{Ops, OpsConfig};
use qernel::weights::Weights;
use std::path::Path;
use std::rc::Rc;

const MAX_MODEL_LEN: usize = 128;

/// The logits of all positions, with `chunk` tokens a step.
pub fn logits<O: Ops>(
    config: &Config,
    weights: &Weights,
    tokens: &[u32],
    chunk: usize,
    dtype: Dtype,
    ops: impl Fn(&OpsConfig) -> O,
) -> Vec<f32> {
    let max_blocks = pages_for(MAX_MODEL_LEN);
    let limits = BatchLimits { max_num_tokens: 128, max_num_sequences: 1, max_num_logits: 128, max_blocks };
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(config, dtype, max_blocks).unwrap();
    let ops = ops(&ops_config);
    let mut runner = ModelRunner::new(ops, weights, config, &ops_config, layout, &mut |_, _| ()).unwrap();
    let pages: Vec<u32> = (0..max_blocks as u32).rev().collect();
    let chunks = tokens.chunks(chunk).enumerate();
    let step = |(i, tokens): (usize, &[u32])| {
        let rows = SequenceRows { tokens, position: i * chunk, pages: &pages, logits: LogitRows::All };
        runner.logits(&Batch::new(&[rows])).unwrap()
    };
    chunks.flat_map(step).collect()
}

/// The values of a float32 NumPy file, version 1.0.
pub fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(std::str::from_utf8(&bytes[10..header]).unwrap().contains("'<f4', 'fortran_order': False"));
    bytes[header..].as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
}

/// What is said of a file, and the tokens of its prompt.
fn facts(path: &Path) -> (serde_json::Value, Vec<u32>) {
    let facts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    let tokens = facts["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32);
    let tokens = tokens.collect();
    (facts, tokens)
}

#[test]
#[ignore = "needs QERNEL_FAMILIES, a folder of golden files"]
fn golden_files_of_the_families() {
    let folder =
        std::env::var_os("QERNEL_FAMILIES").expect("QERNEL_FAMILIES names the folder of golden files");
    let mut compared = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let gguf = Gguf::open(&path).unwrap();
        let architecture = gguf.require::<&str>("general.architecture").unwrap().to_owned();
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let loaded =
            Config::from_gguf(&gguf).and_then(|config| Ok((Weights::from_gguf(&gguf, &config)?, config)));
        let (weights, config) = match loaded {
            Ok(loaded) => loaded,
            Err(why) => {
                println!("{name}: refused: {why}");
                continue;
            }
        };
        let (facts, tokens) = facts(&path);
        let allowed = 4.0 * facts["float32_difference"].as_f64().unwrap();
        let expected = read_npy(&path.with_extension("npy"));
        for chunk in [tokens.len(), 65, 64, 7, 1] {
            let cpu = |config: &OpsConfig| CpuOps::new(config).unwrap();
            let found = logits(&config, &weights, &tokens, chunk, Dtype::F32, cpu);
            assert_eq!(found.len(), expected.len(), "{name}");
            let error = nmse(&found, &expected);
            assert!(error <= 1e-9, "{name}, {chunk} tokens a step: normalised mean squared error {error:e}");
            let difference = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
            let worst = found
                .iter()
                .zip(&expected)
                .map(difference)
                .fold(0.0, |worst: f64, x| if x <= worst { worst } else { x });
            println!("{name}, {chunk} tokens a step: {worst:.1e} of {allowed:.1e}");
            assert!(worst <= allowed, "{name}, {chunk} tokens a step: {worst:e}, allowed {allowed:e}");
        }
        // Layers that draft further tokens are not computed.
        let drafts = |tensor: &String| config.is_draft_tensor(tensor);
        let unused: Vec<_> = weights.unused.iter().filter(|tensor| !drafts(tensor)).collect();
        assert_eq!(unused, [""; 0], "{name}");
        assert_eq!(weights.unused.is_empty(), config.num_nextn_predict_layers == 0, "{name}");
        if matches!(config.head_dim, 32 | 64 | 128) && name != "every" {
            emulated(&name, &config, &weights, &tokens, &expected);
        }
        compared.push(name);
    }
    // The text parts of models that read pictures are others'.
    for architecture in ARCHITECTURES.iter().filter(|name| !name.contains("vl")) {
        assert!(
            compared.iter().any(|name| name == architecture),
            "no {architecture}; compared: {compared:?}"
        );
    }
}

/// The first tokens on an emulated device, in steps of several rows and of one.
fn emulated(name: &str, config: &Config, weights: &Weights, tokens: &[u32], expected: &[f32]) {
    let device =
        Rc::new(Device::emulated(cuda_std::emulation::Options { seed: 1, check: true, range: true }));
    let ops =
        |config: &OpsConfig| CudaOps::new(&device, config, Dtype::F32, KernelChoice::default()).unwrap();
    for (count, chunk) in [(12, 9), (3, 1)] {
        let found = logits(config, weights, &tokens[..count], chunk, Dtype::F32, ops);
        let error = nmse(&found, &expected[..found.len()]);
        println!("{name}, emulated, {chunk} tokens a step: NMSE {error:.1e}");
        assert!(error <= 1e-5, "{name}, emulated, {chunk} tokens a step: NMSE {error:e}");
    }
}
