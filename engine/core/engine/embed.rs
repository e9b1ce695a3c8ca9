//! Vectors and scores of texts, between the steps of requests.

use super::Engine;
use super::pooling::{Pooler, Pooling};
use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::error::{Error, Result};
use crate::kv_cache::PageList;
use std::sync::Arc;

impl Engine {
    /// The same with what makes vectors of its model's rows.
    #[must_use]
    pub fn with_pooler(self, pooler: Arc<Pooler>) -> Self {
        Self { pooler: Some(pooler), ..self }
    }

    /// What makes vectors of the model's rows, where there is such a thing.
    pub fn pooler(&self) -> Option<&Arc<Pooler>> {
        self.pooler.as_ref()
    }

    /// The vector of a text, or one for each of its tokens ([`Pooling::None`]), or its score ([`Pooling::Rank`], one value). `None` where the
    /// requests that run leave no room for it now: then after some of their steps. Nothing of it stays in the prefix cache.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no token, one that the model does not have, more than the context, or no classifier to score with;
    /// [`Error::Device`] if the device fails.
    pub fn embed(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(pooler) = self.pooler.clone() else {
            return Err(Error::Request("this engine makes no vectors".to_owned()));
        };
        self.check_text(tokens)?;
        // The states of recurrent layers are in slots, all of which may be in use.
        if self.runner.has_slots() && self.scheduler.has_work() {
            return Ok(None);
        }
        let mut pages = PageList::default();
        if !pages.grow(tokens.len(), self.scheduler.pool_mut()) {
            return Ok(None);
        }
        self.discard();
        let rows = self.hidden_in(tokens, pages.pages(), pooling.needs_all());
        pages.clear(&[], self.scheduler.pool_mut());
        pooler.pool(pooling, &rows?).map(Some)
    }

    /// The residual stream behind the last layer, of all tokens or the last; K and V go to `pages`.
    fn hidden_in(&mut self, tokens: &[u32], pages: &[u32], all: bool) -> Result<Vec<f32>> {
        let limits = *self.runner.limits();
        let chunk =
            if all { limits.max_num_tokens.min(limits.max_num_logits) } else { limits.max_num_tokens };
        let num_chunks = tokens.len().div_ceil(chunk);
        let mut rows = Vec::new();
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            let logits = match (all, i + 1 == num_chunks) {
                (true, _) => LogitRows::All,
                (false, true) => LogitRows::Last,
                (false, false) => LogitRows::None,
            };
            let batch = Batch::new(&[SequenceRows { tokens, position: i * chunk, pages, logits }]);
            rows.extend(self.runner.hidden(&batch)?);
        }
        Ok(rows)
    }
}
