//! A decoder on a device: what the engine calls once a step.
//!
//! An architecture is one file here and a line in the [registry]; [`decoder`] has the forward pass of most, written once for every
//! device. [`ModelRunner`] joins a model with one implementation of [`Ops`] and is the only [`Runner`]; the scheduler and the
//! commands know `Box<dyn Runner>` and no device.

pub mod build;
pub mod check;
pub mod decoder;
pub mod delta_net;
pub mod draft;
mod gpt2;
pub mod layer;
mod llama;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod qwen3vl;
mod qwen3vlmoe;
pub mod registry;
mod runner;

use crate::batch::{Batch, BatchLimits};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, PAGE_SIZE, SlotLayout, StateCopy, StateLayout};
use crate::ops::{Ops, OpsConfig, Rows, Work};
use crate::sampler::{Logprobs, SamplingRow, host};
use crate::weights::{Adapter, DecodeBytes, Weights};
use build::Load;
use draft::DraftFrom;
use rayon::prelude::*;
use std::collections::VecDeque;

pub use registry::{ARCHITECTURES, Model, Published, published_config, published_names};
pub use runner::{AdapterInfo, Kept, KeptLayout, Runner};

/// A step whose tokens were not taken.
struct Queued {
    num_logits: usize,
    /// Where a row's logits are read by the host, one entry for each row.
    read: Vec<Option<ReadRow>>,
}

/// A row whose logits the host has read: to draw from them, for log-probabilities, or both.
struct ReadRow {
    row: SamplingRow,
    logits: Vec<f32>,
}

impl ReadRow {
    /// Whether the host reads a row: drawing overwrites the logits, so it reads before, and a recorded step has no pause for that.
    fn is_read(row: &SamplingRow) -> bool {
        row.logprobs.is_some() || row.host.is_some()
    }

    /// Those of `rows` that are read, one entry for each.
    fn read<O: Ops>(ops: &mut O, logits: &O::Tensor, rows: &[SamplingRow]) -> Result<Vec<Option<Self>>> {
        let mut read = |(i, row): (usize, &SamplingRow)| {
            let row = Self::is_read(row).then(|| row.clone());
            row.map(|row| Ok(Self { row, logits: ops.read_row(i, logits)? })).transpose()
        };
        rows.iter().enumerate().map(&mut read).collect()
    }

    /// What is drawn from rows that were read, in the place of what the device drew; and the log-probabilities.
    fn draw_all(read: Vec<Option<Self>>, tokens: &mut [u32]) -> Vec<Option<Logprobs>> {
        let of_row = |(row, token): (Option<Self>, &mut u32)| row.and_then(|row| row.draw(token));
        read.into_par_iter().zip(tokens).map(of_row).collect()
    }

    /// What is drawn from it, if the device has not; and the log-probabilities.
    fn draw(mut self, token: &mut u32) -> Option<Logprobs> {
        let scored = self.row.scored;
        let Some(host) = &self.row.host else {
            return self
                .row
                .logprobs
                .map(|count| Logprobs::of(&self.logits, scored.unwrap_or(*token), count));
        };
        // Drawing overwrites the logits.
        let logits = self.row.logprobs.map(|count| (count, self.logits.clone()));
        *token = host::sample(&mut self.logits, &self.row, host);
        logits.map(|(count, logits)| Logprobs::of(&logits, scored.unwrap_or(*token), count))
    }
}

/// The decoder on the device that `O` stands for.
pub struct ModelRunner<O: Ops> {
    ops: O,
    model: Model<O>,
    vocab_size: usize,
    /// It has the head: logits are here, and what is drawn from them.
    has_head: bool,
    state: StateLayout,
    cache: O::KvCache,
    states: O::States,
    /// Copies of slots.
    checkpoints: O::States,
    num_checkpoints: usize,
    max_drafts: usize,
    /// Not all rows of the last draft needed logits.
    drafted_some: bool,
    batch: O::Batch,
    limits: BatchLimits,
    layout: KvLayout,
    max_model_len: usize,
    adapters: Vec<AdapterInfo>,
    decode_bytes: DecodeBytes,
    /// The steps whose tokens were not taken, oldest first.
    queued: VecDeque<Queued>,
    /// Rows whose sampled tokens the next step may take from the device.
    last_sampled: usize,
    /// Of the step whose tokens were taken last.
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
        let state = build::plan(config)?.state;
        let expected = state.pages(layout.formats, layout.num_pages)?;
        if expected != layout {
            return Err(Error::Model(format!("the KV cache must be {expected:?}, not {layout:?}")));
        }
        let limits = ops_config.limits;
        let model = Model::build(&mut Load::new(&mut ops, weights, &limits, progress), config)?;
        ops.finish_loading()?;
        let decode_bytes = weights.decode_bytes_of(|matrix| ops.matrix_bytes(matrix));
        model.bound(&mut ops)?;
        let cache = ops.new_kv_cache(&layout)?;
        let states = ops.new_states(&state.slots(limits.max_num_sequences)?)?;
        let checkpoints = ops.new_states(&SlotLayout::default())?;
        let batch = ops.new_batch(&limits)?;
        Ok(Self {
            ops,
            model,
            vocab_size: config.vocab_size,
            has_head: config.is_last_stage(),
            state,
            cache,
            states,
            checkpoints,
            num_checkpoints: 0,
            max_drafts: 0,
            drafted_some: false,
            batch,
            limits,
            layout,
            max_model_len: ops_config.max_model_len,
            adapters: (weights.adapters().iter())
                .map(|Adapter { name, scale, .. }| AdapterInfo { name: name.clone(), scale: *scale })
                .collect(),
            decode_bytes,
            queued: VecDeque::new(),
            last_sampled: 0,
            logprobs: Vec::new(),
        })
    }

    /// The same with room for `count` copies of the slots of a sequence, where a layer has slots.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is none.
    pub fn with_checkpoints(mut self, count: usize) -> Result<Self> {
        let kept = if self.max_drafts > 0 { self.limits.max_num_sequences } else { 0 };
        if self.state.has_slots() && count + kept > 0 {
            self.checkpoints = self.ops.new_states(&self.state.slots(count + kept)?)?;
            self.num_checkpoints = count;
        }
        Ok(self)
    }

    /// The same that drafts up to `count` tokens at a time, where the model has a block for it; before [`ModelRunner::with_checkpoints`].
    #[must_use]
    pub fn with_drafts(self, count: usize) -> Self {
        Self { max_drafts: count, ..self }
    }

    /// The operations, to choose other kernels for the next step.
    pub fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Refuses rows that take tokens which are not on the device.
    fn check_sampled_rows(&self, batch: &Batch, last_sampled: usize) -> Result<()> {
        let needed = batch.num_sampled_rows();
        if needed == 0 {
            return Ok(());
        }
        if !self.ops.runs_ahead() {
            return Err(Error::Request("this device takes tokens from the host alone".into()));
        }
        // More rows than before could move the buffer that the tokens are in.
        if needed.max(batch.num_logits()) > last_sampled {
            return Err(Error::Request(format!(
                "a batch that takes row {} of the last draw and draws {} tokens: the last draw had {last_sampled} rows",
                needed - 1,
                batch.num_logits()
            )));
        }
        Ok(())
    }

    /// Brings the batch to the device.
    fn upload(&mut self, batch: &Batch) -> Result<()> {
        let Self { limits, layout, vocab_size, max_model_len, adapters, .. } = &*self;
        check::check_batch(batch, limits, layout, *vocab_size, *max_model_len, adapters.len())?;
        self.ops.upload(batch, &mut self.batch)
    }
}

impl<O: Ops> ModelRunner<O> {
    /// Queues work on the batch that was uploaded, of `n` rows, and the draw of a token for each of `rows`, those that need logits.
    fn queue_work(&mut self, work: Work, rows: &[SamplingRow], n: usize) -> Result<()> {
        let num_logits = rows.len();
        let Self { ops, model, has_head, cache, states, batch, limits, .. } = self;
        let batch = &*batch;
        let [all, logit_rows] = rows_of(ops, limits, batch, n, num_logits);
        let mut compute = |ops: &mut O, model: &mut Model<O>| match work {
            Work::Model => model.forward(ops, all, logit_rows, cache, states),
            _ => model.draft(ops, all, logit_rows, work, cache, states),
        };
        if work == Work::Model {
            ops.receive_rows(n, model.residual(false))?;
        }
        let mut read = Vec::new();
        if rows.is_empty() {
            ops.run_step(batch, work, &mut |ops| compute(ops, model))?;
        } else if rows.iter().any(ReadRow::is_read) {
            ops.prepare_sampling(model.logits(), rows)?;
            compute(ops, model)?;
            read = ReadRow::read(ops, model.logits(), rows)?;
            ops.queue_sampling(model.logits())?;
            ops.copy_tokens_to_host()?;
        } else {
            ops.prepare_sampling(model.logits(), rows)?;
            ops.run_step(batch, work, &mut |ops| {
                compute(ops, model)?;
                ops.queue_sampling(model.logits())
            })?;
            ops.copy_tokens_to_host()?;
        }
        if work == Work::Model {
            ops.send_rows(n, model.residual(false))?;
        }
        if *has_head {
            self.queued.push_back(Queued { num_logits, read });
        }
        Ok(())
    }
}

impl<O: Ops> ModelRunner<O> {
    /// Rows whose logits are computed here.
    fn num_logits(&self, batch: &Batch) -> usize {
        if self.has_head { batch.num_logits() } else { 0 }
    }

    /// The residual stream behind the layers of the batch that was uploaded, of `n` rows of which `some` go on to the end: `read` of them.
    fn read_hidden(&mut self, n: usize, some: usize, read: usize) -> Result<Vec<f32>> {
        let [all, mut logit_rows] = rows_of(&self.ops, &self.limits, &self.batch, n, some);
        let Self { ops, model, cache, states, .. } = self;
        if some == n {
            logit_rows = all; // They may be more than have room for logits.
        }
        ops.receive_rows(n, model.residual(false))?;
        model.layers(ops, all, logit_rows, cache, states)?;
        ops.send_rows(n, model.residual(false))?;
        if read == 0 { Ok(Vec::new()) } else { ops.read(read, model.residual(some < n)) }
    }
}

/// The `n` rows of a batch, and the `num_logits` of them that need logits. Products may have a few rows more, which nobody reads.
fn rows_of<'a, O: Ops>(
    ops: &O,
    limits: &BatchLimits,
    batch: &'a O::Batch,
    n: usize,
    num_logits: usize,
) -> [Rows<'a, O::Batch>; 2] {
    [(n, limits.max_num_tokens), (num_logits, limits.max_num_logits)].map(|(n, most)| Rows {
        batch,
        n,
        padded: ops.product_rows(n).min(most),
    })
}

impl<O: Ops> Runner for ModelRunner<O> {
    fn limits(&self) -> &BatchLimits {
        &self.limits
    }

    fn kv_layout(&self) -> &KvLayout {
        &self.layout
    }

    fn has_slots(&self) -> bool {
        self.state.has_slots()
    }

    fn num_checkpoints(&self) -> usize {
        self.num_checkpoints
    }

    fn save_state(&mut self, StateCopy { slot, place }: StateCopy) -> Result<()> {
        self.ops.copy_state(&self.states, slot as usize, &mut self.checkpoints, place as usize)
    }

    fn load_state(&mut self, StateCopy { slot, place }: StateCopy) -> Result<()> {
        self.ops.copy_state(&self.checkpoints, place as usize, &mut self.states, slot as usize)
    }

    fn kept_layout(&self) -> Option<KeptLayout> {
        let pages = KvLayout { num_pages: 0, ..self.layout };
        let slots = self.state.slots(0).ok()?;
        Some(KeptLayout {
            meaning: format!("{} {PAGE_SIZE} {pages:?} {slots:?}", self.ops.order()),
            page_bytes: pages.page_bytes(),
            state_bytes: slots.slot_bytes(),
        })
    }

    fn read_kept(&mut self, kept: Kept) -> Result<Vec<u8>> {
        match kept {
            Kept::Page(page) => self.ops.read_page(&self.cache, page as usize),
            Kept::State(place) => self.ops.read_slot(&self.checkpoints, place as usize),
            Kept::Slot(slot) => self.ops.read_slot(&self.states, slot as usize),
        }
    }

    fn write_kept(&mut self, kept: Kept, bytes: &[u8]) -> Result<()> {
        match kept {
            Kept::Page(page) => self.ops.write_page(&mut self.cache, page as usize, bytes),
            Kept::State(place) => self.ops.write_slot(&mut self.checkpoints, place as usize, bytes),
            Kept::Slot(slot) => self.ops.write_slot(&mut self.states, slot as usize, bytes),
        }
    }

    fn adapters(&self) -> &[AdapterInfo] {
        &self.adapters
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        self.discard();
        self.queue(batch, rows)?;
        self.take()
    }

    fn num_replays(&self) -> u64 {
        self.ops.num_replays()
    }

    fn runs_ahead(&self) -> bool {
        self.ops.runs_ahead()
    }

    fn warm_up(&mut self) -> Result<()> {
        self.ops.warm_up(self.limits.max_num_tokens)
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        let last_sampled = std::mem::take(&mut self.last_sampled);
        if rows.len() != batch.num_logits() {
            return Err(Error::Request(format!(
                "a step needs one sampling row per logit row: {} expected, {} given",
                batch.num_logits(),
                rows.len()
            )));
        }
        self.check_sampled_rows(batch, last_sampled)?;
        self.upload(batch)?;
        let rows = if self.has_head { rows } else { &[] };
        self.queue_work(Work::Model, rows, batch.num_tokens())?;
        self.last_sampled = batch.num_logits();
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        let Some(Queued { num_logits, read }) = self.queued.pop_front() else {
            return Err(Error::Request("no step is queued whose tokens could be taken".into()));
        };
        let mut sampled = if num_logits == 0 { Vec::new() } else { self.ops.take_tokens()? };
        self.logprobs = ReadRow::draw_all(read, &mut sampled);
        Ok(sampled)
    }

    fn discard(&mut self) {
        self.queued.clear();
        self.ops.discard_tokens();
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        std::mem::take(&mut self.logprobs)
    }

    fn max_drafts(&self) -> usize {
        self.max_drafts
    }

    fn draft(&mut self, batch: &Batch, rows: &[SamplingRow], from: DraftFrom) -> Result<Vec<u32>> {
        self.draft_rows(batch, rows, from)
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.upload(batch)?;
        let (n, num_logits) = (batch.num_tokens(), self.num_logits(batch));
        let [all, logit_rows] = rows_of(&self.ops, &self.limits, &self.batch, n, num_logits);
        let Self { ops, model, .. } = self;
        ops.receive_rows(n, model.residual(false))?;
        model.forward(ops, all, logit_rows, &mut self.cache, &mut self.states)?;
        ops.send_rows(n, model.residual(false))?;
        if num_logits == 0 {
            return Ok(Vec::new());
        }
        ops.read(num_logits, model.logits())
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.upload(batch)?;
        let (n, num_logits) = (batch.num_tokens(), self.num_logits(batch));
        self.read_hidden(n, num_logits, num_logits)
    }

    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.upload(batch)?;
        let n = batch.num_tokens();
        self.read_hidden(n, n, if self.has_head { n } else { 0 })
    }

    fn device_name(&self) -> String {
        self.ops.device_name()
    }

    fn decode_bytes(&self) -> DecodeBytes {
        self.decode_bytes
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        self.ops.read_bandwidth()
    }
}
