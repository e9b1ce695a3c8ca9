//! What drafts, and the file of a model that does for another.

use crate::{ModelData, open_gguf};
use qernel_core::config::Config;
use qernel_core::disk::Access;
use qernel_core::engine::NgramOptions;
use qernel_core::error::{Error, Result};
use qernel_core::gguf::Gguf;
use qernel_core::tokenizer::Tokenizer;
use qernel_core::weights::Weights;
use std::path::{Path, PathBuf};

/// What drafts tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DraftChoice {
    /// The block behind the model's last layer, in its file or in one beside it (`mtp-….gguf`); a model without one is refused.
    #[default]
    Mtp,
    /// The same, in this file.
    MtpOf(PathBuf),
    /// The same, but where the model's file has none the one in this file.
    MtpElse(PathBuf),
    /// What followed the last tokens where they came before.
    Ngram(NgramOptions),
    /// The model of this file or folder, on the same device. Its vocabulary must be the same.
    Model(PathBuf),
}

/// Tokens that one vocabulary may have more than the other: the same vocabulary is padded to different lengths in models of different sizes.
const MOST_PADDING: usize = 256;

/// A model that drafts, read and not loaded.
pub struct DraftFile {
    path: PathBuf,
    gguf: Gguf,
    config: Config,
    weights: Weights,
}

impl DraftFile {
    /// Opens the file or the folder.
    ///
    /// # Errors
    /// What is wrong with it, by its name.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = open_gguf(Some(path), Access::Map)?;
        let config = Config::from_gguf(&gguf)?;
        let weights = Weights::from_gguf(&gguf, &config)?;
        Ok(Self { path: path.to_owned(), gguf, config, weights })
    }

    /// What it is loaded from.
    pub fn data(&self) -> ModelData<'_> {
        ModelData { weights: &self.weights, config: &self.config }
    }

    /// Refuses a vocabulary that differs from `expected`, in more than the padding at its end.
    ///
    /// # Errors
    /// [`Error::Request`] that says in what; [`Error::Tokenizer`] if the file has none.
    pub fn expect_vocabulary(&self, expected: &Tokenizer) -> Result<()> {
        let path = self.path.display();
        let found = Tokenizer::from_gguf(&self.gguf)?;
        let sizes = [found.vocab_size(), expected.vocab_size()];
        if sizes[0].abs_diff(sizes[1]) > MOST_PADDING {
            return Err(Error::Request(format!(
                "--model-draft {path}: its vocabulary has {} tokens, the model's {}: a model that drafts needs the same",
                sizes[0], sizes[1]
            )));
        }
        let count = sizes[0].min(sizes[1]) as u32;
        let texts = |id| [&found, expected].map(|tokenizer| tokenizer.token_bytes(id).unwrap_or_default());
        let differ = |&id: &u32| {
            let [found, expected] = texts(id);
            found != expected
        };
        let Some(id) = (0..count).find(differ) else { return Ok(()) };
        let [found, expected] = texts(id).map(String::from_utf8_lossy);
        Err(Error::Request(format!(
            "--model-draft {path}: token {id} of its vocabulary is {found:?}, of the model's {expected:?}: a model that drafts needs the same"
        )))
    }
}
