//! A decoder on a device: what the engine calls once a step.
//!
//! [`qwen2`] is the forward pass, written once for every device. [`ModelRunner`] joins it with one implementation of
//! [`Ops`] and is the only [`Runner`]; the scheduler and the commands know `Box<dyn Runner>` and no device.

pub mod check;
pub mod open;
pub mod qwen2;
pub mod rope;

use crate::batch::{Batch, BatchLimits};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::ops::Ops;
use crate::sampler::{Logprobs, SamplingRow};
use crate::weights::Weights;
use qwen2::Qwen2;
use rayon::prelude::*;

/// What an implementation of [`Ops`] must know of the model and of the largest batch before the first operation.
#[derive(Clone, Debug, PartialEq)]
pub struct OpsConfig {
    pub num_attention_heads: usize,
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Values of one head of Q, K and V; even.
    pub head_dim: usize,
    pub rope_theta: f32,
    /// Longest sequence in tokens; rows of the [`rope::rope_table`].
    pub max_model_len: usize,
    pub limits: BatchLimits,
}

impl OpsConfig {
    /// The part of `config` that operations need, for sequences of at most `max_model_len` tokens.
    pub fn new(config: &Config, max_model_len: usize, limits: BatchLimits) -> Self {
        Self {
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rope_theta: config.rope_theta,
            max_model_len,
            limits,
        }
    }
}

/// A loaded model with its KV pages. It is made and used on one thread.
pub trait Runner {
    /// The largest batch it takes.
    fn limits(&self) -> &BatchLimits;

    /// Shape of the KV cache; `num_pages` is what the scheduler may hand out.
    fn kv_layout(&self) -> &KvLayout;

    /// Columns of the logits.
    fn vocab_size(&self) -> usize;

    /// Longest sequence in tokens, prompt and answer together.
    fn max_model_len(&self) -> usize;

    /// Runs one forward pass and draws one token for each of `batch.logit_rows`, in their order.
    ///
    /// # Errors
    /// [`Error::Request`] if the batch is beyond the limits or inconsistent, or `rows` has not one entry per logit
    /// row; [`Error::Device`] if the device fails.
    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>>;

    /// As [`Runner::step`], and does `meanwhile` while a device of its own computes, or before the step where there is none.
    /// A step that fails may not have done it.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn step_while(
        &mut self,
        batch: &Batch,
        rows: &[SamplingRow],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u32>> {
        meanwhile();
        self.step(batch, rows)
    }

    /// The log-probabilities of the last step, one entry for each of its rows; `None` where the row asked for none.
    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        Vec::new()
    }

    /// Runs one forward pass and returns the logits of `batch.logit_rows`, row-major `[num_logits, vocab_size]`.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>>;

    /// What it computes on, for people.
    fn device_name(&self) -> String;

    /// Bytes a second that the device reads from its memory, measured now: the ceiling of decoding. `None` for a
    /// device whose speed means nothing.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Device`] if it cannot be measured.
    fn read_bandwidth(&mut self) -> Result<Option<f64>>;
}

/// The decoder on the device that `O` stands for.
pub struct ModelRunner<O: Ops> {
    ops: O,
    model: Qwen2<O>,
    cache: O::KvCache,
    batch: O::Batch,
    limits: BatchLimits,
    layout: KvLayout,
    max_model_len: usize,
    /// Of the last step.
    logprobs: Vec<Option<Logprobs>>,
}

impl<O: Ops> ModelRunner<O> {
    /// Loads the weights and allocates everything that steps use. `progress` is called with the bytes of weights
    /// loaded so far and with their sum.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Device`] from the device, [`Error::Model`] if `layout` is not of this model.
    pub fn new(
        mut ops: O,
        weights: &Weights,
        config: &Config,
        ops_config: &OpsConfig,
        layout: KvLayout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let expected = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim);
        let found = (layout.num_layers, layout.num_key_value_heads, layout.head_dim);
        if expected != found {
            return Err(Error::Model(format!(
                "the KV cache must have (layers, key-value heads, head_dim) = {expected:?}, not {found:?}"
            )));
        }
        let limits = ops_config.limits;
        let model = Qwen2::load(&mut ops, weights, config, &limits, progress)?;
        let cache = ops.new_kv_cache(&layout)?;
        let batch = ops.new_batch(&limits)?;
        let max_model_len = ops_config.max_model_len;
        Ok(Self { ops, model, cache, batch, limits, layout, max_model_len, logprobs: Vec::new() })
    }

    /// The operations, to choose other kernels for the next step.
    pub fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Brings the batch to the device.
    fn upload(&mut self, batch: &Batch) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        check::check_batch(batch, &self.limits, &self.layout, vocab_size, self.max_model_len)?;
        self.ops.upload(batch, &mut self.batch)
    }
}

impl<O: Ops> Runner for ModelRunner<O> {
    fn limits(&self) -> &BatchLimits {
        &self.limits
    }

    fn kv_layout(&self) -> &KvLayout {
        &self.layout
    }

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        self.step_while(batch, rows, &mut || ())
    }

    fn step_while(
        &mut self,
        batch: &Batch,
        rows: &[SamplingRow],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u32>> {
        if rows.len() != batch.num_logits() {
            return Err(Error::Request(format!(
                "a step needs one sampling row per logit row: {} expected, {} given",
                batch.num_logits(),
                rows.len()
            )));
        }
        self.upload(batch)?;
        let (n, num_logits) = (batch.num_tokens(), batch.num_logits());
        let Self { ops, model, cache, batch, logprobs, .. } = self;
        logprobs.clear();
        let is_queue = ops.is_queue();
        if !is_queue {
            meanwhile();
        }
        if rows.is_empty() {
            ops.run_step(batch, &mut |ops| model.forward(ops, batch, n, num_logits, cache))?;
            if is_queue {
                meanwhile();
            }
            return Ok(Vec::new());
        }
        ops.prepare_sampling(model.logits(), rows)?;
        if rows.iter().any(|row| row.logprobs.is_some()) {
            // Drawing overwrites the logits, so they are read before; a recorded step has no pause for that.
            model.forward(ops, batch, n, num_logits, cache)?;
            if is_queue {
                meanwhile();
            }
            let wanted = rows.iter().enumerate().map(|(i, row)| {
                row.logprobs.map(|count| Ok((count, ops.read_row(i, model.logits())?))).transpose()
            });
            let wanted: Vec<Option<(usize, Vec<f32>)>> = wanted.collect::<Result<_>>()?;
            ops.draw(model.logits())?;
            let drawn = ops.drawn()?;
            *logprobs = wanted
                .into_par_iter()
                .zip(&drawn)
                .map(|(row, &token)| row.map(|(count, logits)| Logprobs::of(&logits, token, count)))
                .collect();
            return Ok(drawn);
        }
        ops.run_step(batch, &mut |ops| {
            model.forward(ops, batch, n, num_logits, cache)?;
            ops.draw(model.logits())
        })?;
        if is_queue {
            meanwhile();
        }
        ops.drawn()
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        std::mem::take(&mut self.logprobs)
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.upload(batch)?;
        let num_logits = batch.num_logits();
        self.model.forward(&mut self.ops, &self.batch, batch.num_tokens(), num_logits, &mut self.cache)?;
        if num_logits == 0 {
            return Ok(Vec::new());
        }
        self.ops.read(num_logits, self.model.logits())
    }

    fn device_name(&self) -> String {
        self.ops.device_name()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        self.ops.read_bandwidth()
    }
}
