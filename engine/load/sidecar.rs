//! Blocks that draft in files of their own, as llama.cpp's converter writes them with `--mtp`: `mtp-….gguf`, with the block's tensors, and copies of
//! the model's embedding, last norm and head.
//!
//! A model and its block become what one file with both is. So what is drafted, and what stays of it, is the same.

use crate::DraftChoice;
use crate::models_folder::{MOST_FILES, SIDECAR};
use qernel_core::config::Config;
use qernel_core::error::{Error, Result};
use qernel_core::gguf::{Gguf, PartName};
use qernel_core::model::build;
use qernel_core::weights::{EMBEDDING, Weights};
use std::fs;
use std::path::{Path, PathBuf};

/// What a block has a copy of, and what it is compared with.
const NORM: &str = "output_norm.weight";

/// A block of another file that fits the model.
struct Block {
    /// The block's tensors alone.
    tensors: Gguf,
    num_layers: usize,
    /// The last norm is the model's.
    is_of_model: bool,
}

/// The file with the block that `choice` names, or that is beside it where it has none itself. `None`: the file is what it is.
///
/// # Errors
/// [`Error::Model`] if the block is not one of such a model, if the file has one itself, and if there are several beside it; what opening says.
pub fn with_block(gguf: &Gguf, config: &Config, choice: &DraftChoice) -> Result<Option<Gguf>> {
    let has_one = config.has_block(gguf);
    let (path, block) = match choice {
        DraftChoice::MtpOf(path) if has_one => {
            return Err(Error::Model(format!(
                "--model-draft {}: the model's file has a block that drafts itself; leave the option out",
                path.display()
            )));
        }
        DraftChoice::MtpOf(path) => (path.clone(), Block::open(path, gguf, config)?),
        DraftChoice::MtpElse(path) if !has_one => (path.clone(), Block::open(path, gguf, config)?),
        DraftChoice::Mtp if !has_one => match beside(gguf, config)? {
            Some(found) => found,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    if !block.is_of_model {
        tracing::warn!(
            "{}: its copy of {NORM} is not the model's: the block may be that of another model, of whose drafts few stay",
            path.display()
        );
    }
    tracing::info!("tokens are drafted by the block of {}", path.display());
    let key = |name: &str| format!("{}.{name}", config.architecture);
    let mut joined = gguf.beside(block.tensors);
    // Few: a config has them.
    let blocks = (config.num_hidden_layers + block.num_layers) as u32;
    joined.set_metadata(&key("block_count"), &blocks.into())?;
    joined.set_metadata(&key("nextn_predict_layers"), &(block.num_layers as u32).into())?;
    Ok(Some(joined))
}

/// The block in the model's folder, and where it is.
fn beside(gguf: &Gguf, config: &Config) -> Result<Option<(PathBuf, Block)>> {
    let Some(path) = gguf.path() else { return Ok(None) };
    let named = own_name(path);
    let is_named = |path: &Path| path.file_name().and_then(|name| name.to_str()) == named.as_deref();
    let mut candidates = candidates(path);
    candidates.sort_by_key(|path| (!is_named(path), path.clone()));
    let (mut found, mut refused) = (Vec::new(), None);
    for path in candidates {
        match Block::open(&path, gguf, config) {
            Ok(block) => found.push((path, block)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match (found.len(), refused) {
        (0, Some(error)) => Err(Error::Model(format!(
            "--spec-type mtp: the model's file has no block that drafts, and what is beside it has none for it: {error}"
        ))),
        (0 | 1, _) => Ok(found.pop()),
        _ if is_named(&found[0].0) => Ok(Some(found.swap_remove(0))),
        _ => {
            let paths: Vec<_> = found.iter().map(|(path, _)| path.display().to_string()).collect();
            Err(Error::Model(format!(
                "--spec-type mtp: several files beside the model have a block for it: {}; take --model-draft for one of them",
                paths.join(", ")
            )))
        }
    }
}

/// The name of a block beside a model that nobody takes for another's.
fn own_name(model: &Path) -> Option<String> {
    let name = model.file_name()?.to_str()?;
    Some(match PartName::parse(name) {
        Some(part) => format!("{SIDECAR}{}.gguf", part.stem),
        None => format!("{SIDECAR}{name}"),
    })
}

/// The files beside a model whose names are those of blocks.
fn candidates(model: &Path) -> Vec<PathBuf> {
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_block = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_first = PartName::parse(name).is_none_or(|part| part.number == 1);
        name.starts_with(SIDECAR) && name.ends_with(".gguf") && is_first && path != model
    };
    entries.take(MOST_FILES).filter_map(|entry| Some(entry.ok()?.path())).filter(is_block).collect()
}

impl Block {
    /// The block of a file, for the model of `gguf`.
    fn open(path: &Path, gguf: &Gguf, config: &Config) -> Result<Self> {
        let file = Gguf::open(path)?;
        Self::of_file(&file, gguf, config).map_err(|error| match error {
            Error::Model(message) => Error::Model(format!("{}: {message}", path.display())),
            Error::Gguf(message) => Error::Gguf(format!("{}: {message}", path.display())),
            error => error,
        })
    }

    fn of_file(file: &Gguf, gguf: &Gguf, config: &Config) -> Result<Self> {
        let own = Config::from_gguf(file)?;
        if own.architecture != config.architecture {
            return Err(Error::Model(format!(
                "it is of a {}, and the model is a {}: take the block of that model",
                own.architecture, config.architecture
            )));
        }
        if !own.has_block(file) {
            return Err(Error::Model(format!(
                "it has no block that drafts tokens (`{}.nextn_predict_layers`, blk.N.nextn.eh_proj.weight): expected a file as \
                 convert_hf_to_gguf.py --mtp writes it; for a whole model that drafts leave --spec-type out",
                own.architecture
            )));
        }
        expect_same_sizes(file, &own, config)?;
        let tensors = file.with_only(|name| own.is_draft_tensor(name));
        let specs = build::plan(&own.clone().with_draft(file)?)?.tensors;
        let specs: Vec<_> = specs.into_iter().filter(|spec| own.is_draft_tensor(&spec.name)).collect();
        // Tells what is missing or has another shape, by names.
        Weights::find(&tensors, &specs)?;
        let norm = |gguf: &Gguf| gguf.tensor(NORM).map(|tensor| (tensor.ggml_type(), tensor.data()));
        let is_of_model = match (norm(file), norm(gguf)) {
            (Some((a, of_block)), Some((b, of_model))) => a != b || of_block? == of_model?,
            _ => true,
        };
        Ok(Self { tensors, num_layers: own.num_nextn_predict_layers, is_of_model })
    }
}

/// Refuses the block of a model of other sizes, by all that differ.
fn expect_same_sizes(file: &Gguf, own: &Config, model: &Config) -> Result<()> {
    let rows = |config: &Config| if file.tensor(EMBEDDING).is_some() { config.vocab_size } else { 0 };
    let sizes = |config: &Config| {
        [
            ("num_hidden_layers", config.num_hidden_layers),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.num_key_value_heads),
            ("head_dim", config.head_dim),
            ("num_experts", config.experts.map_or(0, |experts| experts.num_experts)),
            ("vocab_size", rows(config)),
        ]
    };
    let differ = |((name, found), (_, expected)): ((&str, usize), (&str, usize))| {
        (found != expected).then(|| format!("{name} {found} instead of {expected}"))
    };
    let differences: Vec<_> = sizes(own).into_iter().zip(sizes(model)).filter_map(differ).collect();
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::Model(format!(
            "its block is for another model: {}; take the file that was made of this one",
            differences.join(", ")
        ))),
    }
}
