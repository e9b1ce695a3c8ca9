//! A ragged batch: the rows that one forward pass computes, from any number of sequences.

/// What one step computes. Prefill, a chunk of a prefill and decode differ only in how many rows a sequence has.
///
/// Sequence `s` owns the rows `query_start[s] .. query_start[s + 1]`; they are its newest tokens, so row `r` has the
/// position `kv_len[s] - (query_start[s + 1] - r)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[num_tokens]` token ids.
    pub tokens: Vec<u32>,
    /// `[num_tokens]` position of each token in its own sequence.
    pub positions: Vec<u32>,
    /// `[num_tokens]` index of the sequence that each row belongs to.
    pub sequence_of_token: Vec<u32>,
    /// `[num_tokens]` where K and V of each row go: `page * page_size + offset`. No two rows share a slot.
    pub slots: Vec<u32>,
    /// `[num_sequences + 1]` first row of each sequence, then `num_tokens`.
    pub query_start: Vec<u32>,
    /// `[num_sequences]` tokens of each sequence in the cache once this step has written its rows.
    pub kv_len: Vec<u32>,
    /// `[num_sequences, max_blocks]` pages of each sequence in order, padded with 0.
    pub block_table: Vec<u32>,
    /// Columns of `block_table`.
    pub max_blocks: usize,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Rows of the forward pass.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Sequences that have rows in it.
    pub fn num_sequences(&self) -> usize {
        self.kv_len.len()
    }

    /// Rows of the logits.
    pub fn num_logits(&self) -> usize {
        self.logit_rows.len()
    }
}

/// The most that a batch may hold; every buffer is sized from it at start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Rows of a step; also the length of a prefill chunk.
    pub max_num_tokens: usize,
    /// Sequences of a step.
    pub max_num_sequences: usize,
    /// Logit rows of a step; at least `max_num_sequences`.
    pub max_num_logits: usize,
    /// Pages of one sequence: `ceil(max_model_len / page_size)`.
    pub max_blocks: usize,
}
