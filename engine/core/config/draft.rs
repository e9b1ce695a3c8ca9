//! Blocks of a model that draft further tokens: what of them a file has.

use super::Config;
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// What a block that drafts need not share with the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DraftTensors {
    /// The norm before the head.
    pub norm: bool,
    /// The head.
    pub head: bool,
    /// The embedding.
    pub embedding: bool,
}

impl Config {
    /// The same with the first of the layers that draft further tokens.
    ///
    /// # Errors
    /// [`Error::Model`] if the file has none.
    pub fn with_draft(self, gguf: &Gguf) -> Result<Self> {
        if self.num_nextn_predict_layers == 0 {
            return Err(Error::Model(format!(
                "--spec-type mtp needs a file with a block that drafts tokens; this one has no `{}.nextn_predict_layers`: take a file that was \
                 made with its MTP block, put the file of the block (mtp-….gguf) beside it or name that by --model-draft, or leave the option out",
                self.architecture
            )));
        }
        let i = self.num_hidden_layers;
        let has = |name: &str| gguf.tensor(&format!("blk.{i}.nextn.{name}.weight")).is_some();
        let (norm, head) = (has("shared_head_norm"), has("shared_head_head"));
        Ok(Self { draft: Some(DraftTensors { norm, head, embedding: has("embed_tokens") }), ..self })
    }

    /// Whether the file has a block that drafts, and not the model that it drafts for.
    pub fn is_block_alone(&self, gguf: &Gguf) -> bool {
        self.has_block(gguf) && !gguf.tensors().any(|tensor| tensor.name().starts_with("blk.0."))
    }

    /// Whether the file has the first of the layers that draft further tokens.
    pub fn has_block(&self, gguf: &Gguf) -> bool {
        let name = format!("blk.{}.nextn.eh_proj.weight", self.num_hidden_layers);
        self.num_nextn_predict_layers > 0 && gguf.tensor(&name).is_some()
    }

    /// Whether a tensor of that name is one of the layers behind the last that draft further tokens.
    pub fn is_draft_tensor(&self, name: &str) -> bool {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        let first = self.num_hidden_layers;
        layer.is_some_and(|layer| (first..first + self.num_nextn_predict_layers).contains(&layer))
    }
}
