//! Logits of a prompt, beside the requests of an engine.

use super::Engine;
use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::error::{Error, Result};
use crate::kv_cache::PageList;

impl Engine {
    /// The logits behind each of `tokens`, row-major `[tokens.len(), vocab_size]`, while no request waits or runs. Nothing of
    /// it stays in the prefix cache.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no token, one that the model does not have, more than the context, or a request that has
    /// not ended; [`Error::Device`] if the device fails.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if self.scheduler.has_work() || self.embedding.is_some() {
            return Err(Error::Request(
                "logits are computed between requests, and one has not ended: step or cancel it first".into(),
            ));
        }
        self.check_text(tokens)?;
        self.discard();
        let mut pages = PageList::default();
        let pool = self.scheduler.pool_mut();
        assert!(pages.grow(tokens.len(), pool), "the pool holds a sequence as long as the context");
        let logits = self.logits_in(tokens, pages.pages());
        pages.clear(&[], self.scheduler.pool_mut());
        logits
    }

    /// Refuses a text that is empty, longer than the context, or has tokens that the model does not have.
    pub(super) fn check_text(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.runner.vocab_size();
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::Request(format!(
                "the prompt has the token {token}, but the model has only tokens 0 to {}",
                vocab_size - 1
            )));
        }
        if !(1..=self.max_model_len).contains(&tokens.len()) {
            return Err(Error::Request(format!(
                "the prompt has {} tokens; expected 1 to {}, the context",
                tokens.len(),
                self.max_model_len
            )));
        }
        Ok(())
    }

    /// As [`Engine::logits`], of some tokens at once; K and V go to `pages`.
    fn logits_in(&mut self, tokens: &[u32], pages: &[u32]) -> Result<Vec<f32>> {
        let limits = *self.runner.limits();
        let chunk = limits.max_num_tokens.min(limits.max_num_logits);
        let mut logits = Vec::new();
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            let rows = SequenceRows { tokens, position: i * chunk, pages, logits: LogitRows::All };
            let batch = Batch::new(&[rows]).with_adapters([self.adapters.clone()]);
            logits.extend(self.runner.logits(&batch)?);
        }
        Ok(logits)
    }
}
