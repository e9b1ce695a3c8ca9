//! What a scheduler chooses: steps of sequences.

use crate::batch::Batch;
use crate::kv_layout::StateCopy;
use crate::prefix_cache::Prefix;
use std::sync::Arc;

/// Names a sequence for the life of its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl std::fmt::Display for SequenceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One step: what to compute and for whom.
#[derive(Debug, Default)]
pub struct Step {
    pub batch: Batch,
    /// The sequences of `batch`, in its order.
    pub sequences: Vec<ScheduledSequence>,
    /// States that are to be kept before the step, for sequences that may have to go on from there.
    pub keeps: Vec<StateCopy>,
    /// States that sequences begin with, to be brought to their slots before the step.
    pub loads: Vec<StateCopy>,
    /// The same of states in host memory, with the slots that they go to.
    pub host_loads: Vec<(u32, Arc<Vec<u8>>)>,
    /// Copies behind these prefixes that host memory has room for: they are in their places until the step's own copies are made.
    pub evicted: Vec<(u32, Prefix)>,
}

/// The share of one sequence in a [`Step`].
#[derive(Clone, Copy, Debug)]
pub struct ScheduledSequence {
    pub id: SequenceId,
    pub num_rows: usize,
    /// The rows are of a prompt (or of tokens computed anew); otherwise it is the one token generated last.
    pub prefill: bool,
    /// A token is drawn from the last row.
    pub samples: bool,
    /// Rows of a prompt whose logits score the token behind each. They come before those from which tokens are drawn.
    pub num_scored: usize,
    /// The last rows are of so many tokens that were drafted: a token is drawn from each, and from the one before them.
    pub num_drafts: usize,
    /// Its state is to be copied behind the step.
    pub save: Option<StateCopy>,
}

impl ScheduledSequence {
    /// Tokens that are drawn for it.
    pub fn num_draws(&self) -> usize {
        if self.samples { 1 + self.num_drafts } else { 0 }
    }

    /// Its rows of logits.
    pub fn num_logits(&self) -> usize {
        self.num_scored + self.num_draws()
    }
}
