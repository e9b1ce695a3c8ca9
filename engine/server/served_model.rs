//! A model that is served, and what connections know of it.

use super::error::ApiError;
use super::grammar::Grammars;
use qernel_core::chat::ChatTemplate;
use qernel_core::disk::Watch;
use qernel_core::engine::pooling::Pooler;
use qernel_core::engine::{AdapterInfo, Engine, Fingerprint};
use qernel_core::error::{Error, Result};
use qernel_core::tokenizer::Tokenizer;
use std::sync::{Arc, OnceLock};

/// A model ready to be served. Made on the engine's thread, which it never leaves.
pub struct ServedModel {
    /// What answers.
    pub engine: Engine,
    /// Or why there is none that can be used: chat is refused then.
    pub template: Result<ChatTemplate>,
    /// What clients call it.
    pub name: String,
    /// Tells whether its file was changed while it is in use.
    pub watch: Watch,
    /// What it is known by, where its prefix cache may be kept.
    pub fingerprint: Option<Fingerprint>,
}

/// Refuses adapters that are called as the model is: nobody could ask for one of both.
pub(super) fn expect_other_names(name: &str, adapters: &[AdapterInfo]) -> Result<()> {
    match adapters.iter().find(|adapter| adapter.name == name) {
        Some(_) => Err(Error::Request(format!(
            "an adapter is called {name}, as the model is: give one of both another name (--lora NAME=FILE, --model-name)"
        ))),
        None => Ok(()),
    }
}

/// What connections know of the model.
pub struct ModelInfo {
    pub name: String,
    /// By their numbers; requests may name them.
    pub adapters: Vec<AdapterInfo>,
    pub tokenizer: Arc<Tokenizer>,
    /// Of texts whose vectors or scores are wanted.
    pub pooler: Option<Arc<Pooler>>,
    pub template: Result<ChatTemplate>,
    pub max_model_len: usize,
    /// A text with more bytes has more tokens than the context.
    pub max_prompt_bytes: usize,
    pub device: String,
    pub(super) watch: Watch,
    /// Made when first asked for: a large vocabulary takes its time.
    pub(super) grammars: OnceLock<Result<Grammars, String>>,
}

impl ModelInfo {
    /// What makes grammars over the vocabulary. The first call may take a second.
    ///
    /// # Errors
    /// 500 where the vocabulary is not fit.
    pub fn grammars(&self) -> Result<&Grammars, ApiError> {
        let grammars =
            self.grammars.get_or_init(|| Grammars::new(&self.tokenizer).map_err(|error| error.to_string()));
        grammars.as_ref().map_err(ApiError::server)
    }
}
