//! Blocks that draft: multi-token prediction (MTP). A block behind the last layer takes what the model has computed of a token, and the token
//! that came of it, and says which comes next; what it says itself, it goes on from.
//!
//! DeepSeek-AI, *DeepSeek-V3 Technical Report* (2024), section 2.2, for the idea; docs/hybrids.md.

use super::build::{BufferRows::*, Build};
use super::decoder::{Buffers, Features};
use super::layer::Layer;
use super::{ModelRunner, Runner};
use crate::batch::Batch;
use crate::config::{Config, DraftTensors};
use crate::error::{Error, Result};
use crate::ops::parts::{self, Norm, NormMatmul};
use crate::ops::{Ops, Rows, Types, Work};
use crate::sampler::SamplingRow;

/// What the first token that is drafted goes on from, and those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftFrom {
    /// The rows of the last step, all of them, in their order: a row's token is the one that follows there.
    Step,
    /// The rows that needed logits in the last draft, in their order: a row's token is the one that was drafted.
    Draft,
}

/// The block, and what it writes besides the KV cache.
pub struct Draft<T: Types> {
    /// `[vocab_size, hidden_size]`; `None` where it is the model's.
    embed_tokens: Option<T::Weight>,
    embedding_norm: Norm<T::Vector>,
    hidden_norm: Norm<T::Vector>,
    /// `[hidden_size, hidden_size]`: of the embedding.
    embedding_proj: T::Weight,
    /// `[hidden_size, hidden_size]`: of what the model computed.
    hidden_proj: T::Weight,
    layer: Layer<T>,
    /// `None` where it is the model's.
    norm: Option<Norm<T::Vector>>,
    /// `[vocab_size, hidden_size]`; `None` where it is the model's.
    lm_head: Option<T::Weight>,
    /// The residual stream.
    x: T::Tensor,
    /// What is normed again.
    wide: T::Tensor,
}

/// What of the model the block shares.
pub struct Shared<'a, T: Types> {
    pub embed_tokens: &'a T::Weight,
    pub norm: &'a Norm<T::Vector>,
    pub lm_head: Option<&'a T::Weight>,
    /// The residual stream behind the last layer.
    pub x: &'a T::Tensor,
}

impl<T: Types> Draft<T> {
    /// Asks `b` for the first block behind the last layer.
    ///
    /// # Errors
    /// What `b` says.
    pub fn build<B: Build<T>>(
        b: &mut B,
        config: &Config,
        features: &Features,
        has: &DraftTensors,
    ) -> Result<Self> {
        let &Config { hidden_size, vocab_size, num_hidden_layers: i, rms_norm_eps: eps, .. } = config;
        let name = |name: &str| format!("blk.{i}.nextn.{name}");
        let embedding_norm = b.norm(features.norm, &name("enorm"), hidden_size, eps)?;
        let hidden_norm = b.norm(features.norm, &name("hnorm"), hidden_size, eps)?;
        let [embedding_proj, hidden_proj] = b.halves(&name("eh_proj.weight"), hidden_size, hidden_size)?;
        Ok(Self {
            embed_tokens: match has.embedding {
                true => Some(b.matrix(&name("embed_tokens.weight"), vocab_size, hidden_size)?),
                false => None,
            },
            embedding_norm,
            hidden_norm,
            embedding_proj,
            hidden_proj,
            layer: Layer::build(b, config, features, i)?,
            norm: match has.norm {
                true => Some(b.norm(features.norm, &name("shared_head_norm"), hidden_size, eps)?),
                false => None,
            },
            lm_head: match has.head {
                true => Some(b.matrix(&name("shared_head_head.weight"), vocab_size, hidden_size)?),
                false => None,
            },
            x: b.tensor(Tokens, hidden_size)?,
            wide: b.tensor(Tokens, hidden_size)?,
        })
    }
}

impl<O: Ops> Draft<O> {
    /// Tells the device each part once all is loaded; `layer` is how many there are before it.
    ///
    /// # Errors
    /// [`crate::Error::Range`] if the device has no room for its numbers.
    pub fn bound(&self, ops: &mut O, layer: usize) -> Result<()> {
        let name = format!("blk.{layer}");
        for norm in [&self.embedding_norm, &self.hidden_norm].into_iter().chain(&self.norm) {
            ops.bound_norm(&name, norm)?;
        }
        self.layer.bound(ops, &name)
    }

    /// Computes the rows `all` of a batch, whose tokens follow the rows that it goes on from, writes their K and V to `cache`, and leaves the
    /// logits of the rows `logit_rows` of them, of what comes behind these tokens, in `buffers.logits`.
    ///
    /// # Errors
    /// What the device says.
    #[allow(clippy::too_many_arguments, reason = "the block has these operands")]
    pub fn forward(
        &mut self,
        ops: &mut O,
        all: Rows<O::Batch>,
        logit_rows: Rows<O::Batch>,
        from: Work,
        shared: Shared<O>,
        buffers: &mut Buffers<O>,
        cache: &mut O::KvCache,
        states: &mut O::States,
    ) -> Result<()> {
        let Self { x, wide, .. } = self;
        let n = all.n;
        let own_norm = self.norm.as_ref().unwrap_or(shared.norm);

        // What the model, or the block itself, says of each row, as its head reads it.
        let normed = &mut buffers.scratch.normed;
        match from {
            Work::DraftOfRows => parts::normalise(ops, n, x, own_norm, normed)?, // [n, hidden_size]
            Work::DraftOfLogitRows => parts::normalise(ops, n, &buffers.last, own_norm, normed)?,
            Work::DraftOfStep | Work::Model => parts::normalise(ops, n, shared.x, shared.norm, normed)?,
        }
        ops.widen(n, normed, wide)?; // [n, hidden_size]
        parts::normalise(ops, n, wide, &self.hidden_norm, normed)?; // [n, hidden_size]
        ops.matmul(all.padded, normed, &self.hidden_proj, x)?; // [n, hidden_size]

        // The token that came of it.
        ops.embed(all.batch, self.embed_tokens.as_ref().unwrap_or(shared.embed_tokens), wide)?; // [n, hidden_size]
        parts::normalise(ops, n, wide, &self.embedding_norm, normed)?; // [n, hidden_size]
        ops.matmul_add(all, normed, &self.embedding_proj, x)?; // [n, hidden_size]

        // Rows of refused drafts come behind those that need logits, which are not their sequences' last ones then: they do not go on alone.
        self.layer.forward(ops, all, logit_rows, logit_rows.n == 0, x, buffers, cache, states)?;
        if logit_rows.n == 0 {
            return Ok(());
        }
        let some = logit_rows.n < n;
        if some {
            ops.gather_rows(all.batch, x, &mut buffers.last)?; // [num_logits, hidden_size]
        }
        let weight = self.lm_head.as_ref().or(shared.lm_head).unwrap_or(shared.embed_tokens);
        let head = NormMatmul { norm: own_norm, weight };
        let Buffers { last, last_normed, logits, logits_of_rank, .. } = buffers;
        let x = if some { last } else { x };
        // A head of its own is whole on each rank.
        let of_rank = logits_of_rank.as_mut().filter(|_| self.lm_head.is_none());
        parts::head(ops, logit_rows, &head, x, last_normed, of_rank, logits) // [num_logits, vocab_size]
    }
}

impl<O: Ops> ModelRunner<O> {
    /// [`Runner::draft`](super::Runner::draft)
    pub(super) fn draft_rows(
        &mut self,
        batch: &Batch,
        rows: &[SamplingRow],
        from: DraftFrom,
    ) -> Result<Vec<u32>> {
        if rows.len() != batch.num_logits() || !self.queued.is_empty() {
            return Err(Error::Request(format!(
                "drafts need a row for each of {} logits, and that no step is queued; found {} rows and {} steps",
                batch.num_logits(),
                rows.len(),
                self.queued.len()
            )));
        }
        // Steps cannot go on from tokens that were drafted.
        self.last_sampled = 0;
        self.upload(batch)?;
        let work = match from {
            DraftFrom::Step => Work::DraftOfStep,
            DraftFrom::Draft if self.drafted_some => Work::DraftOfLogitRows,
            DraftFrom::Draft => Work::DraftOfRows,
        };
        if !rows.is_empty() {
            self.drafted_some = rows.len() < batch.num_tokens();
        }
        self.queue_work(work, rows, batch.num_tokens())?;
        self.take()
    }
}
