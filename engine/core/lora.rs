//! Adapters in files: GGUF as llama.cpp's converter writes them, and folders as PEFT saves them.

use crate::config::Config;
use crate::disk::Access;
use crate::error::{Error, Result};
use crate::folder;
use crate::formats::MatrixFormat;
use crate::gguf::{Gguf, Tensor};
use crate::weights::{Adapter, Half, Matrix, TensorSpec};
use std::path::Path;

/// What the metadata of an adapter say of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct AdapterMetadata {
    /// `adapter.type`
    pub kind: String,
    /// `general.architecture`: the model that it is for.
    pub architecture: Option<String>,
    /// `adapter.lora.alpha`: updates are multiplied with it, divided by their ranks; 0 leaves them as they are.
    pub alpha: f32,
}

impl AdapterMetadata {
    /// What a file says; `None` where it is no adapter.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a value that has the wrong type.
    pub fn of_gguf(gguf: &Gguf) -> Result<Option<Self>> {
        if gguf.get::<&str>("general.type")? != Some("adapter") {
            return Ok(None);
        }
        Ok(Some(Self {
            kind: gguf.get::<&str>("adapter.type")?.unwrap_or("unknown").to_owned(),
            architecture: gguf.get::<&str>("general.architecture")?.map(str::to_owned),
            alpha: gguf.get::<f32>("adapter.lora.alpha")?.unwrap_or(0.0),
        }))
    }
}

/// Opens the adapter of a file or of a folder, for the model of `config`, which takes updates of the matrices `adaptable`
/// ([`Plan::adaptable`](crate::model::build::Plan::adaptable)). Its matrices stay in the file.
///
/// # Errors
/// [`Error::Model`] that lists all that does not fit the model; [`Error::Gguf`], [`Error::Folder`] and [`Error::Io`] where the file cannot be
/// read.
pub fn open(
    path: &Path,
    access: Access,
    name: &str,
    config: &Config,
    adaptable: &[TensorSpec],
) -> Result<Adapter> {
    if path.is_dir() {
        return folder::open_adapter(path, access, name, config, adaptable);
    }
    of_gguf(&Gguf::open_by(path, access)?, name, config, adaptable)
}

/// The adapter of a GGUF file; as [`open`].
///
/// # Errors
/// As [`open`].
pub fn of_gguf(gguf: &Gguf, name: &str, config: &Config, adaptable: &[TensorSpec]) -> Result<Adapter> {
    let Some(AdapterMetadata { kind, architecture, alpha }) = AdapterMetadata::of_gguf(gguf)? else {
        let found = gguf.get::<&str>("general.type")?.unwrap_or("model");
        return Err(Error::Model(format!(
            "{name} is no adapter: general.type is {found:?}, expected \"adapter\"; a model is what --model takes"
        )));
    };
    let mut problems = Vec::new();
    if kind != "lora" {
        problems.push(format!("adapter.type is {kind:?}, expected \"lora\""));
    }
    if architecture.as_deref() != Some(config.architecture.as_str()) {
        let found = architecture.as_deref().unwrap_or("missing");
        problems.push(format!("general.architecture is {found}, that of the model {}", config.architecture));
    }
    let mut halves = Vec::new();
    for tensor in gguf.tensors() {
        match half(tensor)? {
            Ok(half) => halves.push(half),
            Err(problem) => problems.push(problem),
        }
    }
    // As the converter has it: without an alpha updates stay as they are.
    let scale = |_: &str, rank: usize| Ok(if alpha == 0.0 { 1.0 } else { alpha / rank as f32 });
    Adapter::of_halves(name, halves, adaptable, scale, problems)
}

/// A tensor as one of both matrices of an update, or what is wrong with it.
fn half(tensor: Tensor) -> Result<Result<Half, String>> {
    let name = tensor.name();
    let target = name.strip_suffix(".lora_a").map(|target| (target, false));
    let Some((target, is_b)) = target.or_else(|| Some((name.strip_suffix(".lora_b")?, true))) else {
        return Ok(Err(format!("{name}: expected tensors that end in .lora_a or .lora_b")));
    };
    let Some(format) = MatrixFormat::from_ggml(tensor.ggml_type()) else {
        return Ok(Err(format!("{name}: it is {}, which is not computed with", tensor.ggml_type())));
    };
    let &[rows, cols] = &tensor.shape()[..] else {
        return Ok(Err(format!("{name}: its shape is {:?}, expected a matrix", tensor.shape())));
    };
    // Fits: as many values as the file holds.
    let (rows, cols) = (rows as usize, cols as usize);
    let matrix = Matrix { name: name.to_owned(), format, rows, cols, scale: 1.0, data: tensor.data()? };
    Ok(Ok(Half { name: name.to_owned(), target: target.to_owned(), is_b, matrix }))
}
