//! A model whose block that drafts is in a file of its own, as llama.cpp's converter writes it with `--mtp`.

use qernel::error::Error;
use qernel::gguf::write::Writer;
use qernel::load::{DeviceChoice, DraftChoice, LoadedModel, RunnerOptions};
use qernel::testing::TinyModel;
use std::path::{Path, PathBuf};

/// What a sidecar has copies of.
const COPIES: [&str; 3] = ["token_embd.weight", "output_norm.weight", "output.weight"];

/// The model without its block, and the block with copies of what it shares.
pub fn apart(model: &TinyModel) -> [Writer; 2] {
    let key = |key: &str| format!("{}.{key}", model.architecture);
    let block = format!("blk.{}.", model.num_hidden_layers);
    let names: Vec<String> = model.gguf().tensors().map(|tensor| tensor.name().to_owned()).collect();
    let [mut alone, mut sidecar] = [model.writer(), model.writer()];
    alone.remove_metadata(&key("nextn_predict_layers"));
    alone.set_metadata(&key("block_count"), model.num_hidden_layers as u32);
    for name in &names {
        if name.starts_with(&block) {
            alone.remove_tensor(name);
        } else if !COPIES.contains(&name.as_str()) {
            sidecar.remove_tensor(name);
        }
    }
    [alone, sidecar]
}

/// Writes a file to a folder.
pub fn write(folder: &Path, name: &str, file: &Writer) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, file.to_bytes()).unwrap();
    path
}

/// Opens the model of a file, for two sequences, whose block drafts three tokens at a time.
pub fn open(path: &Path, device: DeviceChoice, drafts: DraftChoice) -> Result<LoadedModel, Error> {
    let options = RunnerOptions {
        device,
        drafts,
        max_drafts: 3,
        max_model_len: Some(256),
        max_num_tokens: Some(64),
        max_num_sequences: 2,
        max_num_logits: 8,
        checkpoints: 4,
        ..RunnerOptions::default()
    };
    LoadedModel::open(Some(path), &options, &mut |_, _| ())
}
