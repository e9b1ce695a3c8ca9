//! Models in folders, as Hugging Face's hub has them: `config.json`, weights as safetensors, `tokenizer.json`.
//!
//! A folder becomes a [`Gguf`] in memory: its metadata, and tensors whose bytes are those of the mapped files, or are made of them when they are
//! asked for. What llama.cpp's converter does with names, orders and values of tensors is done here, so that all behind this knows one kind of
//! model, and [`crate::gguf::write`] can write it down.

mod adapter;
mod architecture;
mod config;
mod files;
mod fp8;
mod grouped;
mod json;
mod make;
mod names;
mod quantization;
mod reranker;
mod safetensors;
mod template;
mod tensors;
mod tokenizer;
mod wanted;

pub use adapter::{ADAPTER_CONFIG, open_adapter};
pub use wanted::{small_files, weight_files};

use crate::disk::Access;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use bytes::Bytes;
use std::path::Path;

/// What the folder of a model must have.
pub const CONFIG: &str = "config.json";

/// Opens the model of a folder.
///
/// # Errors
/// [`Error::Folder`] naming the file that is missing or malformed, or what of it is not implemented; [`Error::Io`] where a file cannot be read.
pub fn open(folder: &Path, access: Access) -> Result<Gguf> {
    let files = files::Files { folder, access };
    let config = json::Fields::read(&files, CONFIG)?.ok_or_else(|| {
        if folder.join(ADAPTER_CONFIG).is_file() {
            return Error::Folder(format!(
                "{} is an adapter, not a model: take --lora for it, and --model for the model that it is for",
                folder.display()
            ));
        }
        Error::Folder(format!(
            "{} has no {CONFIG}: expected a folder as Hugging Face's hub has them, or a GGUF file",
            folder.display()
        ))
    })?;
    let mut model = config::Model::new(&config)?;
    let (stored, watch) = safetensors::open_all(&files)?;
    model.num_drafts = names::num_drafts(model.architecture, stored.keys().map(String::as_str));
    let (mut tensors, file_type) = tensors::all(&model, stored)?;
    let mut metadata = model.metadata(&files, file_type)?;
    metadata.extend(tokenizer::metadata(&files, &model)?);
    reranker::add(&files, &model, &mut metadata, &mut tensors)?;
    Gguf::assembled(&metadata, tensors, watch)
}

/// What people call the model of a folder: the folder's name, or the model's where it is in the cache of Hugging Face's hub.
pub fn name(folder: &Path) -> Option<String> {
    files::Files { folder, access: Access::Map }.name()
}

/// The names of the tensors in a file of weights, which must hold all that its header says.
///
/// # Errors
/// [`Error::Folder`] where it does not.
pub fn tensor_names(weights: &Bytes) -> Result<Vec<String>> {
    let tensors = safetensors::read("the file", weights)?;
    Ok(tensors.into_iter().map(|(name, _)| name).collect())
}

/// A message about one file.
fn fault(file: &str, what: impl std::fmt::Display) -> Error {
    Error::Folder(format!("{file}: {what}"))
}
