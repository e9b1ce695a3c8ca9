//! Vectors and scores of texts, between the steps of requests.

use super::Engine;
use super::pooling::{Pooled, Pooler, Pooling};
use crate::batch::{AdapterSet, Batch, LogitRows, SequenceRows};
use crate::error::{Error, Result};
use crate::kv_cache::PageList;
use std::sync::Arc;

/// Rows of a text that are computed at once where requests wait meanwhile: enough for the products of matrices to be fast ones.
const ROWS_BESIDE_REQUESTS: usize = 512;

/// A text whose vector is being made.
pub(super) struct Embedding {
    tokens: Vec<u32>,
    pooling: Pooling,
    pooler: Arc<Pooler>,
    /// Of its rows so far, `num_cached`.
    pooled: Pooled,
    num_cached: usize,
    pages: PageList,
    adapters: AdapterSet,
    /// Of recurrent layers, where the model has some.
    slot: Option<u32>,
}

impl Embedding {
    /// The batch of its next rows, at most `most`.
    fn batch(&self, most: usize) -> Batch {
        let end = self.tokens.len().min(self.num_cached + most);
        let is_last = end == self.tokens.len() && !self.pooling.needs_all();
        let rows = SequenceRows {
            tokens: &self.tokens[self.num_cached..end],
            position: self.num_cached,
            pages: self.pages.pages(),
            logits: if is_last { LogitRows::Last } else { LogitRows::None },
        };
        Batch { state_slots: vec![self.slot.unwrap_or(0)], ..Batch::new(&[rows]) }
            .with_adapters([self.adapters.clone()])
    }
}

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
    /// [`Error::Request`] if there is no token, one that the model does not have, more than the context, no classifier to score with, or
    /// another text that has [begun](Engine::begin_embedding); [`Error::Device`] if the device fails.
    pub fn embed(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Option<Vec<Vec<f32>>>> {
        if !self.begin_embedding(tokens, pooling)? {
            return Ok(None);
        }
        loop {
            if let Some(vectors) = self.advance_embedding()? {
                return Ok(Some(vectors));
            }
        }
    }

    /// Begins what [`Engine::embed`] does at once. It takes pages, and a slot where layers keep states, until it has ended; requests go on
    /// meanwhile. `false`, and nothing was done, where there is no room for it now.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    pub fn begin_embedding(&mut self, tokens: &[u32], pooling: Pooling) -> Result<bool> {
        let Some(pooler) = self.pooler.clone() else {
            return Err(Error::Request("this engine makes no vectors".to_owned()));
        };
        if self.embedding.is_some() {
            return Err(Error::Request(
                "the vector of another text is being made: end that first".to_owned(),
            ));
        }
        self.check_text(tokens)?;
        let pooled = pooler.begin(pooling)?;
        // What comes behind the first token changes nothing of its row.
        let tokens = if pooling == Pooling::Cls { &tokens[..1] } else { tokens };
        let mut pages = PageList::default();
        if !pages.grow(tokens.len(), self.scheduler.pool_mut()) {
            return Ok(false);
        }
        let slot = if self.runner.has_slots() { self.scheduler.lend_slot() } else { None };
        let tokens = tokens.to_vec();
        let adapters = self.adapters.clone();
        self.embedding =
            Some(Embedding { tokens, pooling, pooler, pooled, num_cached: 0, pages, adapters, slot });
        if self.runner.has_slots() && slot.is_none() {
            self.end_embedding();
            return Ok(false);
        }
        Ok(true)
    }

    /// Computes the next rows of the text that has begun: as many as a step takes, or some hundreds while requests wait for theirs. Gives what
    /// [`Engine::embed`] does once they were the last ones.
    ///
    /// # Errors
    /// [`Error::Request`] if none has begun; [`Error::Device`] if the device fails: it has ended then.
    pub fn advance_embedding(&mut self) -> Result<Option<Vec<Vec<f32>>>> {
        let most = if self.scheduler.has_work() { ROWS_BESIDE_REQUESTS } else { usize::MAX };
        let Some(embedding) = &self.embedding else {
            return Err(Error::Request("no text whose vector is wanted has begun".to_owned()));
        };
        let batch = embedding.batch(most.min(self.max_num_tokens));
        let rows = match embedding.pooling.needs_all() {
            true => self.runner.hidden_of_all(&batch),
            false => self.runner.hidden(&batch),
        };
        let rows = rows.inspect_err(|_| drop(self.end_embedding()))?;
        let Some(embedding) = &mut self.embedding else { return Ok(None) };
        embedding.pooler.add(&mut embedding.pooled, &rows);
        embedding.num_cached += batch.num_tokens();
        if embedding.num_cached < embedding.tokens.len() {
            return Ok(None);
        }
        Ok(self.end_embedding().map(|Embedding { pooler, pooled, .. }| pooler.finish(pooled)))
    }

    /// Ends what [`Engine::begin_embedding`] began, wherever it is.
    pub fn cancel_embedding(&mut self) {
        self.end_embedding();
    }

    /// Gives back what the text had.
    fn end_embedding(&mut self) -> Option<Embedding> {
        let mut embedding = self.embedding.take()?;
        embedding.pages.clear(&[], self.scheduler.pool_mut());
        embedding.slot.take().into_iter().for_each(|slot| self.scheduler.take_slot_back(slot));
        Some(embedding)
    }
}
