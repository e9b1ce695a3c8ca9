//! Every architecture against files and float64 logits of another implementation.
//!
//! The files are those that a folder of golden files holds: `NAME.gguf` in f32, `NAME.json` (the tokens, how far the reference in
//! float32 is from itself in float64) and `NAME.npy` (float32 `[tokens, vocabulary]`). `QERNEL_FAMILIES` names the folder. Small models of
//! each architecture, whose logits stand beside them, are in `forward.rs` and need no folder.

use qernel::batch::{Batch, BatchLimits, SequenceRows, WantedLogits};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::gguf::Gguf;
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::{ARCHITECTURES, ModelRunner, Runner};
use qernel::ops::OpsConfig;
use qernel::weights::Weights;
use std::path::Path;

const MAX_MODEL_LEN: usize = 128;

/// The logits of all positions, with `chunk` tokens a step.
fn logits(config: &Config, weights: &Weights, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let max_blocks = pages_for(MAX_MODEL_LEN);
    let limits = BatchLimits { max_num_tokens: 128, max_num_sequences: 1, max_num_logits: 128, max_blocks };
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(config, Dtype::F32, max_blocks).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    let mut runner = ModelRunner::new(ops, weights, config, &ops_config, layout, &mut |_, _| ()).unwrap();
    let pages: Vec<u32> = (0..max_blocks as u32).rev().collect();
    let chunks = tokens.chunks(chunk).enumerate();
    let step = |(i, tokens): (usize, &[u32])| {
        let rows = SequenceRows { tokens, position: i * chunk, pages: &pages, logits: WantedLogits::All };
        runner.logits(&Batch::new(&[rows])).unwrap()
    };
    chunks.flat_map(step).collect()
}

/// The values of a float32 NumPy file, version 1.0.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(std::str::from_utf8(&bytes[10..header]).unwrap().contains("'<f4', 'fortran_order': False"));
    bytes[header..].as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
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
        let facts: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let tokens: Vec<u32> =
            facts["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect();
        let allowed = 4.0 * facts["float32_difference"].as_f64().unwrap();
        let expected = read_npy(&path.with_extension("npy"));
        for chunk in [tokens.len(), 7, 1] {
            let found = logits(&config, &weights, &tokens, chunk);
            assert_eq!(found.len(), expected.len(), "{name}");
            let difference = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
            let worst = found
                .iter()
                .zip(&expected)
                .map(difference)
                .fold(0.0, |worst: f64, x| if x <= worst { worst } else { x });
            println!("{name}, {chunk} tokens a step: {worst:.1e} of {allowed:.1e}");
            assert!(worst <= allowed, "{name}, {chunk} tokens a step: {worst:e}, allowed {allowed:e}");
        }
        compared.push(name);
    }
    assert!(compared.iter().any(|name| name.starts_with("qwen2")), "compared: {compared:?}");
}
