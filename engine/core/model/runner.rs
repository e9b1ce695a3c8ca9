//! What the engine knows of a model and its device.

use super::draft::DraftFrom;
use crate::batch::{AdapterScale, AdapterSet, Batch, BatchLimits};
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, StateCopy};
use crate::sampler::{Logprobs, SamplingRow};
use crate::weights::DecodeBytes;

/// An adapter that was loaded with a model.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInfo {
    /// What requests call it.
    pub name: String,
    /// What its updates are multiplied with where nobody says otherwise.
    pub scale: f32,
}

/// How a runner gives out what it keeps of sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLayout {
    /// What the bytes mean: those of another layout mean something else.
    pub meaning: String,
    /// Of a page.
    pub page_bytes: usize,
    /// Of a copy of the slots of a sequence; 0 where no layer has slots.
    pub state_bytes: usize,
}

/// What is kept of a sequence somewhere, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A page.
    Page(u32),
    /// The copy of slots in this place.
    State(u32),
    /// The slots of a sequence themselves.
    Slot(u32),
}

/// A loaded model with its KV pages. It is made and used on one thread.
pub trait Runner {
    /// The largest batch it takes.
    fn limits(&self) -> &BatchLimits;

    /// Shape of the KV cache; `num_pages` is what the scheduler may hand out.
    fn kv_layout(&self) -> &KvLayout;

    /// Whether a layer keeps a slot for each sequence, which cannot be cut back: then no beginning is shared.
    fn has_slots(&self) -> bool {
        false
    }

    /// Copies of the slots of a sequence that may be kept.
    fn num_checkpoints(&self) -> usize {
        0
    }

    /// Queues copying the slots of a sequence to a place below [`Runner::num_checkpoints`].
    ///
    /// # Errors
    /// [`Error::Request`] if one of both does not exist; [`Error::Device`] if the device fails.
    fn save_state(&mut self, copy: StateCopy) -> Result<()> {
        Err(Error::Request(format!("this runner keeps no states: {copy:?}")))
    }

    /// Queues copying them back.
    ///
    /// # Errors
    /// As [`Runner::save_state`].
    fn load_state(&mut self, copy: StateCopy) -> Result<()> {
        self.save_state(copy)
    }

    /// How pages and copies of slots may be read and written; `None` where they stay where they are.
    fn kept_layout(&self) -> Option<KeptLayout> {
        None
    }

    /// What is kept there, as bytes, behind all steps that were queued.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such thing, or it stays where it is; [`Error::Device`] if the device fails.
    fn read_kept(&mut self, kept: Kept) -> Result<Vec<u8>> {
        Err(Error::Request(format!("this runner does not give {kept:?} out")))
    }

    /// Puts back what [`Runner::read_kept`] gave.
    ///
    /// # Errors
    /// As [`Runner::read_kept`]; [`Error::Request`] for another number of bytes.
    fn write_kept(&mut self, kept: Kept, bytes: &[u8]) -> Result<()> {
        Err(Error::Request(format!("this runner takes no {} bytes for {kept:?}", bytes.len())))
    }

    /// The adapters that were loaded with the model, by their numbers ([`Batch::adapters`]).
    fn adapters(&self) -> &[AdapterInfo] {
        &[]
    }

    /// All of them, each with its own scale.
    fn all_adapters(&self) -> AdapterSet {
        let scales =
            (0..).zip(self.adapters()).map(|(adapter, info)| AdapterScale { adapter, scale: info.scale });
        AdapterSet::new(&scales.collect::<Vec<_>>())
    }

    /// Columns of the logits.
    fn vocab_size(&self) -> usize;

    /// Longest sequence in tokens, prompt and answer together.
    fn max_model_len(&self) -> usize;

    /// Runs one forward pass and draws one token for each of `batch.logit_rows`, in their order;
    /// [`NO_TOKEN`](crate::sampler::NO_TOKEN) where the logits leave none.
    ///
    /// # Errors
    /// [`Error::Request`] if the batch is beyond the limits or inconsistent, or `rows` has not one entry per logit
    /// row; [`Error::Device`] if the device fails.
    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>>;

    /// The log-probabilities of the step whose tokens were given last, one entry for each of its rows; `None` where the row
    /// asked for none.
    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        Vec::new()
    }

    /// Steps so far that the device replayed as it had recorded them, instead of being told every operation.
    fn num_replays(&self) -> u64 {
        0
    }

    /// Whether a step may be [queued](Runner::queue) before the tokens of the one before are known.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Queues what [`Runner::step`] does. Rows may take the tokens of the step queued last ([`Batch::sampled_rows`]), whether or
    /// not those were taken; such a step draws for no more rows than that one.
    ///
    /// # Errors
    /// As [`Runner::step`]; [`Error::Request`] if two steps are waiting, a row of the last draw is missing, or the device does
    /// not run ahead. What is queued is to be [discarded](Runner::discard) then.
    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        let _ = (batch, rows);
        Err(Error::Request("this runner does not run ahead".into()))
    }

    /// Waits for the oldest queued step and takes its tokens.
    ///
    /// # Errors
    /// As [`Runner::step`]; [`Error::Request`] if none is queued.
    fn take(&mut self) -> Result<Vec<u32>> {
        Err(Error::Request("no step is queued".into()))
    }

    /// Prepares for steps of any size, after a few of different sizes: for what takes its time when it comes first.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn warm_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// Drops the tokens of all queued steps. What they write to the cache is written before what later steps do.
    fn discard(&mut self) {}

    /// Tokens that it can draft at a time ([`Runner::draft`]), at most; 0: none. Where a layer keeps slots there are as many places for copies
    /// behind [`Runner::num_checkpoints`] as sequences may run.
    fn max_drafts(&self) -> usize {
        0
    }

    /// Computes rows by the block that drafts and draws a token for each of `batch.logit_rows`, in their order. The tokens of the batch follow
    /// the rows that it goes on from, of which it has the positions. Between [`Runner::take`] and the next step.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn draft(&mut self, batch: &Batch, rows: &[SamplingRow], from: DraftFrom) -> Result<Vec<u32>> {
        let _ = (batch, rows, from);
        Err(Error::Request("this runner drafts nothing".into()))
    }

    /// Runs one forward pass and returns the logits of `batch.logit_rows`, row-major `[num_logits, vocab_size]`.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>>;

    /// Runs one forward pass without the head and returns the residual stream behind the last layer, before the norm that follows it, of
    /// `batch.logit_rows`, row-major `[num_logits, hidden_size]`.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        Err(Error::Request(format!("this runner has no hidden states: {} rows", batch.num_logits())))
    }

    /// As [`Runner::hidden`], of all rows of a batch that may name none: `[num_tokens, hidden_size]`. They need no room for logits, so that they
    /// may be as many as those of any step.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        Err(Error::Request(format!("this runner has no hidden states: {} rows", batch.num_tokens())))
    }

    /// What it computes on, for people.
    fn device_name(&self) -> String;

    /// Bytes of weights that a decode step reads, as they are held there.
    fn decode_bytes(&self) -> DecodeBytes {
        DecodeBytes::default()
    }

    /// Bytes a second that the device reads from its memory, measured now on the weights: the ceiling of decoding. `None` for a
    /// device whose speed means nothing.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Device`] if it cannot be measured.
    fn read_bandwidth(&mut self) -> Result<Option<f64>>;
}
