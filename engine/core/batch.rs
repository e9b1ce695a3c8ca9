//! A ragged batch: the rows that one forward pass computes, from any number of sequences.

use crate::kv_layout::{PAGE_SIZE, pages_for};
use std::sync::Arc;

/// In [`Batch::sampled_rows`]: the row's token is in [`Batch::tokens`].
pub const GIVEN: u32 = u32::MAX;

/// An adapter of a sequence, and what its updates are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterScale {
    /// Its number among those that were loaded.
    pub adapter: u32,
    /// At most [`AdapterScale::MAX`] either way.
    pub scale: f32,
}

impl AdapterScale {
    /// The largest scale, far above any that is of use: what is computed with it stays a number.
    pub const MAX: f32 = 100.0;

    /// Whether the scale is one that is taken.
    pub fn is_in_range(&self) -> bool {
        self.scale.abs() <= Self::MAX
    }
}

/// The adapters of a sequence: each once, in the order of their numbers, none with a scale of 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterSet(Arc<[AdapterScale]>);

impl AdapterSet {
    /// These adapters; of one that comes twice the last.
    pub fn new(adapters: &[AdapterScale]) -> Self {
        let mut set: Vec<AdapterScale> = Vec::with_capacity(adapters.len());
        for &adapter in adapters.iter().rev() {
            if set.iter().all(|other| other.adapter != adapter.adapter) {
                set.push(adapter);
            }
        }
        set.retain(|adapter| adapter.scale != 0.0);
        set.sort_unstable_by_key(|adapter| adapter.adapter);
        Self(set.into())
    }

    /// Each of them.
    pub fn adapters(&self) -> &[AdapterScale] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scale of an adapter, 0 where it is none of them.
    pub fn scale(&self, adapter: u32) -> f32 {
        self.0.iter().find(|of| of.adapter == adapter).map_or(0.0, |of| of.scale)
    }
}

/// What one step computes. Prefill, a chunk of a prefill and decode differ only in how many rows a sequence has.
///
/// Sequence `s` owns the rows `query_start[s] .. query_start[s + 1]`; they are its newest tokens, so row `r` has the
/// position `kv_len[s] - (query_start[s + 1] - r)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[num_tokens]` token ids.
    pub tokens: Vec<u32>,
    /// `[num_tokens]` row of the draw before, where the row's token is the one drawn there and the host does not know it yet;
    /// [`GIVEN`] elsewhere.
    pub sampled_rows: Vec<u32>,
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
    /// `[num_sequences]` the slot of each sequence in the layers that keep one, below [`BatchLimits::max_num_sequences`]; no two share
    /// one.
    pub state_slots: Vec<u32>,
    /// `[num_sequences]` the adapters of each sequence; empty where none has any.
    pub adapters: Vec<AdapterSet>,
    /// Rows that need logits, ascending.
    pub logit_rows: Vec<u32>,
    /// Whether tokens are drafted, or drafts verified: the few rows of a sequence are then computed as one row is, where a device has kernels for
    /// that, and not as a prompt's.
    pub drafts: bool,
}

/// The rows that one sequence has in a batch.
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// The newest tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them: how many tokens of the sequence are in the cache already.
    pub position: usize,
    /// The sequence's pages, at least `ceil((position + tokens.len()) / PAGE_SIZE)`.
    pub pages: &'a [u32],
    pub logits: LogitRows,
}

/// Which rows of a sequence need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a chunk of a prefill that is not the last.
    None,
    /// The last one, from which the next token is drawn.
    Last,
    /// So many of the last ones, no more than there are.
    Newest(u32),
    /// Every one.
    All,
}

impl Batch {
    /// Puts the rows of several sequences into one batch, in the order given, which is that of their slots too.
    ///
    /// # Panics
    /// If a sequence has too few pages for its rows.
    pub fn new(sequences: &[SequenceRows]) -> Self {
        let kv_len = |rows: &SequenceRows| rows.position + rows.tokens.len();
        let max_blocks = sequences.iter().map(|rows| pages_for(kv_len(rows))).max().unwrap_or(0);
        let mut batch = Self { query_start: vec![0], max_blocks, ..Self::default() };
        for (s, rows) in sequences.iter().enumerate() {
            for (position, &token) in (rows.position..).zip(rows.tokens) {
                batch.tokens.push(token);
                batch.sampled_rows.push(GIVEN);
                batch.positions.push(position as u32);
                batch.sequence_of_token.push(s as u32);
                batch.slots.push(
                    rows.pages[position / PAGE_SIZE] * PAGE_SIZE as u32 + (position % PAGE_SIZE) as u32,
                );
            }
            let (start, end) = (batch.query_start[s], batch.tokens.len() as u32);
            match rows.logits {
                LogitRows::None => {}
                LogitRows::Last => batch.logit_rows.push(end - 1),
                LogitRows::Newest(count) => {
                    batch.logit_rows.extend(end.saturating_sub(count).max(start)..end)
                }
                LogitRows::All => batch.logit_rows.extend(start..end),
            }
            batch.query_start.push(end);
            batch.state_slots.push(s as u32);
            batch.kv_len.push(kv_len(rows) as u32);
            batch.block_table.extend_from_slice(&rows.pages[..pages_for(kv_len(rows))]);
            batch.block_table.resize((s + 1) * max_blocks, 0);
        }
        batch
    }

    /// The same with the adapters of each sequence.
    #[must_use]
    pub fn with_adapters(self, adapters: impl IntoIterator<Item = AdapterSet>) -> Self {
        let mut adapters: Vec<_> = adapters.into_iter().collect();
        if adapters.iter().all(AdapterSet::is_empty) {
            adapters.clear();
        }
        Self { adapters, ..self }
    }

    /// The scale that an adapter has in row `row` of the `n` that a part of a layer works on: all rows, or those that need logits.
    pub fn adapter_scale(&self, adapter: u32, row: usize, n: usize) -> f32 {
        let row = if n == self.num_tokens() {
            Some(row)
        } else {
            self.logit_rows.get(row).map(|&row| row as usize)
        };
        let sequence = row.and_then(|row| self.sequence_of_token.get(row));
        let set = sequence.and_then(|&sequence| self.adapters.get(sequence as usize));
        set.map_or(0.0, |set| set.scale(adapter))
    }

    /// The rows that need logits as a batch of their own, over the same sequences. They are the last rows of their sequences,
    /// as [`LogitRows`] has them.
    pub fn only_logit_rows(&self) -> Self {
        let of = |values: &[u32]| self.logit_rows.iter().map(|&row| values[row as usize]).collect();
        let sequence_of_token: Vec<u32> = of(&self.sequence_of_token);
        let first_of = |s: usize| sequence_of_token.partition_point(|&of_row| (of_row as usize) < s) as u32;
        Self {
            tokens: of(&self.tokens),
            sampled_rows: of(&self.sampled_rows),
            positions: of(&self.positions),
            slots: of(&self.slots),
            query_start: (0..=self.num_sequences()).map(first_of).collect(),
            kv_len: self.kv_len.clone(),
            block_table: self.block_table.clone(),
            max_blocks: self.max_blocks,
            state_slots: self.state_slots.clone(),
            adapters: self.adapters.clone(),
            logit_rows: (0..self.num_logits() as u32).collect(),
            drafts: self.drafts,
            sequence_of_token,
        }
    }

    /// Rows of the forward pass.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Sequences that have rows in it.
    pub fn num_sequences(&self) -> usize {
        self.kv_len.len()
    }

    /// Rows that the draw before must have had: one more than the largest of `sampled_rows`, 0 where every token is given.
    pub fn num_sampled_rows(&self) -> usize {
        let rows = self.sampled_rows.iter().filter(|&&row| row != GIVEN);
        rows.max().map_or(0, |&row| row as usize + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_rows_alone_are_a_batch_of_the_same_sequences() {
        let rows = |tokens, position, pages, logits| SequenceRows { tokens, position, pages, logits };
        let batch = Batch::new(&[
            rows(&[1, 2, 3], 30, &[4, 5], LogitRows::Last),
            rows(&[6, 7], 0, &[2], LogitRows::None),
            rows(&[8, 9], 3, &[0], LogitRows::All),
        ]);
        let alone = batch.only_logit_rows();
        assert_eq!((&alone.tokens[..], &alone.positions[..]), (&[3, 8, 9][..], &[32, 3, 4][..]));
        assert_eq!(
            (&alone.sequence_of_token[..], &alone.query_start[..]),
            (&[0, 2, 2][..], &[0, 1, 1, 3][..])
        );
        assert_eq!((&alone.kv_len, &alone.slots[..]), (&batch.kv_len, &[5 * 32, 3, 4][..]));
        assert_eq!(alone.logit_rows, [0, 1, 2]);
    }

    #[test]
    fn rows_have_the_adapters_of_their_sequences() {
        let scaled = |adapter, scale| AdapterScale { adapter, scale };
        let set = AdapterSet::new(&[scaled(3, 1.0), scaled(1, 0.5), scaled(3, -2.0), scaled(0, 0.0)]);
        assert_eq!(set.adapters(), [scaled(1, 0.5), scaled(3, -2.0)]);
        let rows = |tokens, logits| SequenceRows { tokens, position: 0, pages: &[0], logits };
        let batch = Batch::new(&[rows(&[1, 2], LogitRows::None), rows(&[3, 4, 5], LogitRows::Last)]);
        assert!(
            batch.clone().with_adapters([AdapterSet::default(), AdapterSet::default()]).adapters.is_empty()
        );
        let batch = batch.with_adapters([AdapterSet::default(), set]);
        let scales = |adapter, n| (0..n).map(|row| batch.adapter_scale(adapter, row, n)).collect::<Vec<_>>();
        assert_eq!(scales(3, 5), [0.0, 0.0, -2.0, -2.0, -2.0]);
        assert_eq!((scales(1, 1), scales(2, 1)), (vec![0.5], vec![0.0]), "the row that needs logits");
    }

    /// A decode row at position 33, a chunk of a prefill, and a short prompt.
    #[test]
    fn ragged_rows() {
        let decode = SequenceRows { tokens: &[5], position: 33, pages: &[3, 1], logits: LogitRows::Last };
        let chunk =
            SequenceRows { tokens: &[6, 7], position: 31, pages: &[2, 4, 9], logits: LogitRows::None };
        let prompt = SequenceRows { tokens: &[8, 9], position: 0, pages: &[7], logits: LogitRows::All };
        let batch = Batch::new(&[decode, chunk, prompt]);
        let expected = Batch {
            tokens: vec![5, 6, 7, 8, 9],
            sampled_rows: vec![GIVEN; 5],
            positions: vec![33, 31, 32, 0, 1],
            sequence_of_token: vec![0, 1, 1, 2, 2],
            slots: vec![33, 95, 128, 224, 225],
            query_start: vec![0, 1, 3, 5],
            kv_len: vec![34, 33, 2],
            block_table: vec![3, 1, 2, 4, 7, 0],
            max_blocks: 2,
            state_slots: vec![0, 1, 2],
            adapters: Vec::new(),
            logit_rows: vec![0, 3, 4],
            drafts: false,
        };
        assert_eq!((batch.num_sampled_rows(), &batch), (0, &expected));
        let taken = Batch { sampled_rows: vec![2, GIVEN, GIVEN, 0, GIVEN], ..batch };
        assert_eq!(taken.num_sampled_rows(), 3);
    }
}
