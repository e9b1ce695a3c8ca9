//! What the host knows of a batch on the device: counts, bounds, and where its arrays are.

use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use qernel_core::batch::{Batch, BatchLimits};
use std::ops::Range;

/// The most rows of a sequence that decodes: one, and drafts to be verified.
const DECODE_ROWS: usize = 17;

/// The fewest pages a sequence that a decode step has room for.
const MIN_BUCKET_BLOCKS: usize = 8;

/// What the launches of a step depend on: steps of one bucket have their arrays at the same places and the same grids.
///
/// Decode steps with as many sequences and rows are of one bucket for nearly any length of them ([`Shape::in_bucket`]), and however the rows
/// are shared out. Steps with a prefill are where all their lengths are the same: chunks of a long prompt are those of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bucket(Shape);

/// What a step does.
pub(crate) enum StepKind {
    /// Every sequence has one row, or in a step with drafts [`DECODE_ROWS`] at most.
    Decode,
    /// Every sequence has more.
    Prefill,
    Mixed,
}

impl Bucket {
    /// What the step does.
    pub(crate) fn kind(&self) -> StepKind {
        if self.0.is_decode() {
            StepKind::Decode
        } else if self.0.rows.decode_rows.is_empty() {
            StepKind::Prefill
        } else {
            StepKind::Mixed
        }
    }

    /// Whether rows of the step have logits.
    pub(crate) fn has_logits(&self) -> bool {
        self.0.num_logits > 0
    }
}

/// Counts, bounds and the places of the arrays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub num_tokens: usize,
    pub num_sequences: usize,
    pub num_logits: usize,
    pub max_blocks: usize,
    /// Tokens in the cache of the longest sequence.
    pub max_kv: usize,
    pub rows: RowSplit,
    /// Of the rows that need logits, where these are some but not all, and the last of their sequences; else 0 rows.
    pub only_logit_rows: RowSplit,
    /// One more than the largest entry of each array; 0 where it is empty.
    pub token_bound: usize,
    pub sampled_row_bound: usize,
    pub position_bound: usize,
    pub slot_bound: usize,
    pub page_bound: usize,
    pub logit_row_bound: usize,
    pub state_slot_bound: usize,
    pub(super) tokens: Range<usize>,
    pub(super) sampled_rows: Range<usize>,
    pub(super) positions: Range<usize>,
    pub(super) sequence_of_token: Range<usize>,
    pub(super) slots: Range<usize>,
    pub(super) query_start: Range<usize>,
    pub(super) kv_len: Range<usize>,
    pub(super) block_table: Range<usize>,
    pub(super) logit_rows: Range<usize>,
    pub(super) state_slots: Range<usize>,
    pub(super) logit_rows_sequence_of_token: Range<usize>,
    pub(super) logit_rows_query_start: Range<usize>,
    /// The adapters that rows have.
    pub(super) adapters: Vec<AdapterRows>,
}

/// Where the scales of an adapter are, f32: of all rows, and of those that need logits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AdapterRows {
    pub adapter: u32,
    pub of_all: Range<usize>,
    pub of_logit_rows: Range<usize>,
}

/// Which rows are of sequences that decode: attention has kernels for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RowSplit {
    pub num_rows: usize,
    /// The most rows of a sequence that decodes: one, or [`DECODE_ROWS`] in a step with drafts.
    pub most_rows: usize,
    /// From the first row of such a sequence to behind the last.
    pub decode_rows: Range<usize>,
    /// Tokens in the cache of the longest of those sequences.
    pub max_kv_decode: usize,
    /// Whether a sequence has more than one row.
    pub has_multiple: bool,
    /// Whether a sequence has more than these.
    pub has_long: bool,
}

impl Shape {
    /// Checks what kernels rely on: the limits, that arrays have the lengths they must have, and that each row's
    /// sequence, position and pages fit together. Where the indices lead is checked by each launch against the
    /// buffers it gets, through the bounds.
    pub(super) fn check(batch: &Batch, limits: &BatchLimits) -> Result<Self> {
        let (n, sequences, max_blocks) = (batch.num_tokens(), batch.num_sequences(), batch.max_blocks);
        let too_large = n > limits.max_num_tokens
            || sequences > limits.max_num_sequences
            || batch.num_logits() > limits.max_num_logits
            || max_blocks > limits.max_blocks;
        if too_large {
            return Err(Error::Request(format!(
                "a batch of {n} rows, {sequences} sequences, {} logit rows and {max_blocks} pages a sequence is \
                 beyond {limits:?}",
                batch.num_logits()
            )));
        }
        let lengths = [
            ("sampled_rows", batch.sampled_rows.len(), n),
            ("positions", batch.positions.len(), n),
            ("sequence_of_token", batch.sequence_of_token.len(), n),
            ("slots", batch.slots.len(), n),
            ("query_start", batch.query_start.len(), sequences + 1),
            ("block_table", batch.block_table.len(), sequences * max_blocks),
            ("state_slots", batch.state_slots.len(), sequences),
        ];
        for (name, found, expected) in lengths {
            if found != expected {
                return Err(Error::Request(format!(
                    "batch: {name} has {found} entries instead of {expected}"
                )));
            }
        }
        if ![0, sequences].contains(&batch.adapters.len()) {
            return Err(Error::Request(format!(
                "batch: adapters has {} entries instead of {sequences}",
                batch.adapters.len()
            )));
        }
        for s in 0..sequences {
            let (start, end) = (batch.query_start[s] as usize, batch.query_start[s + 1] as usize);
            let kv_len = batch.kv_len[s] as usize;
            let fits = start <= end && end <= n && end - start <= kv_len && kv_len <= max_blocks * PAGE_SIZE;
            let consistent = |row: usize| {
                batch.sequence_of_token[row] as usize == s
                    && batch.positions[row] as usize == kv_len - (end - row)
            };
            if !fits || !(start..end).all(consistent) {
                return Err(Error::Request(format!(
                    "batch: sequence {s} has rows {start}..{end} and kv_len {kv_len} on at most {max_blocks} \
                     pages, which does not fit its sequence_of_token and positions"
                )));
            }
        }
        if batch.query_start[0] != 0 || batch.query_start[sequences] as usize != n {
            return Err(Error::Request(format!("batch: query_start must run from 0 to {n}")));
        }
        let is_last_of_sequence = |i: usize, row: usize| {
            let next = batch.logit_rows.get(i + 1).map_or(n, |&next| next as usize);
            row < n && next > row && (next == row + 1 || batch.query_start.contains(&(row as u32 + 1)))
        };
        let logit_rows_are_last =
            batch.logit_rows.iter().enumerate().all(|(i, &row)| is_last_of_sequence(i, row as usize));
        let bound = |values: &[u32]| values.iter().max().map_or(0, |&value| value as usize + 1);
        Ok((Self {
            num_tokens: n,
            num_sequences: sequences,
            num_logits: batch.num_logits(),
            max_blocks,
            token_bound: bound(&batch.tokens),
            sampled_row_bound: batch.num_sampled_rows(),
            position_bound: bound(&batch.positions),
            slot_bound: bound(&batch.slots),
            page_bound: bound(&batch.block_table),
            logit_row_bound: bound(&batch.logit_rows),
            state_slot_bound: bound(&batch.state_slots),
            max_kv: batch.kv_len.iter().max().map_or(0, |&len| len as usize),
            rows: RowSplit::of(batch),
            only_logit_rows: if logit_rows_are_last && (1..n).contains(&batch.num_logits()) {
                RowSplit::of(&batch.only_logit_rows())
            } else {
                RowSplit::default()
            },
            ..Self::default()
        })
        .in_bucket(limits))
    }

    /// All but the bounds, which launches check and nothing else.
    pub(super) fn bucket(&self) -> Bucket {
        Bucket(Self {
            token_bound: 0,
            sampled_row_bound: 0,
            position_bound: 0,
            slot_bound: 0,
            page_bound: 0,
            logit_row_bound: 0,
            state_slot_bound: 0,
            ..self.clone()
        })
    }

    /// Whether every sequence has so few rows.
    fn is_decode(&self) -> bool {
        !self.rows.has_long && self.num_tokens > 0
    }

    /// The same with the room of its bucket for the block table, if every sequence decodes: eight buckets from one power of two to
    /// the next, or all that the limits allow. Attention looks at each row's own length and ignores the rest.
    fn in_bucket(mut self, limits: &BatchLimits) -> Self {
        if self.is_decode() {
            let step = (self.max_blocks.next_power_of_two() / 16).max(MIN_BUCKET_BLOCKS);
            self.max_blocks = self.max_blocks.next_multiple_of(step).min(limits.max_blocks);
            self.max_kv = self.max_blocks * PAGE_SIZE;
            self.rows.max_kv_decode = self.max_kv;
            if self.only_logit_rows.num_rows > 0 {
                self.only_logit_rows.max_kv_decode = self.max_kv;
            }
        }
        self
    }
}

impl RowSplit {
    fn of(batch: &Batch) -> Self {
        let most_rows = if batch.drafts { DECODE_ROWS } else { 1 };
        let mut split = Self { num_rows: batch.num_tokens(), most_rows, ..Self::default() };
        for (s, &kv_len) in batch.kv_len.iter().enumerate() {
            let (start, end) = (batch.query_start[s] as usize, batch.query_start[s + 1] as usize);
            if (1..=most_rows).contains(&(end - start)) {
                let first = if split.decode_rows.is_empty() { start } else { split.decode_rows.start };
                split.decode_rows = first..end;
                split.max_kv_decode = split.max_kv_decode.max(kv_len as usize);
            }
            split.has_multiple |= end - start > 1;
            split.has_long |= end - start > most_rows;
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_layout::pages_for;
    use qernel_core::batch::{LogitRows, SequenceRows};

    const LIMITS: BatchLimits =
        BatchLimits { max_num_tokens: 64, max_num_sequences: 4, max_num_logits: 32, max_blocks: 3 };

    /// One row, two rows, one row, one row.
    fn batch() -> Batch {
        let row = |position, pages| SequenceRows { tokens: &[9], position, pages, logits: LogitRows::Last };
        Batch::new(&[
            row(33, &[3, 1]),
            SequenceRows { tokens: &[4, 5], position: 0, pages: &[2], logits: LogitRows::None },
            row(5, &[6]),
            row(0, &[7]),
        ])
    }

    #[test]
    fn rows_of_decoding_and_bounds_are_known_on_the_host() {
        let shape = Shape::check(&batch(), &LIMITS).unwrap();
        assert_eq!(shape.rows.decode_rows, 0..5);
        assert_eq!((shape.rows.max_kv_decode, shape.max_kv, shape.rows.has_multiple), (34, 34, true));
        let shape = Shape::check(&Batch { drafts: true, ..batch() }, &LIMITS).unwrap();
        assert_eq!(
            (shape.rows.decode_rows, shape.rows.has_multiple, shape.rows.has_long),
            (0..5, true, false)
        );
        assert_eq!((shape.rows.max_kv_decode, shape.max_kv), (3 * PAGE_SIZE, 3 * PAGE_SIZE));
        assert_eq!((shape.token_bound, shape.position_bound, shape.page_bound), (10, 34, 8));
        assert_eq!((shape.slot_bound, shape.logit_row_bound), (7 * PAGE_SIZE + 1, 5));
        let prefill = SequenceRows { tokens: &[1, 2], position: 3, pages: &[0], logits: LogitRows::None };
        let shape = Shape::check(&Batch::new(&[prefill]), &LIMITS).unwrap();
        assert_eq!((shape.rows.decode_rows, shape.max_kv, shape.rows.has_multiple), (0..0, 5, true));
        let prefill =
            SequenceRows { tokens: &[1; DECODE_ROWS + 1], position: 3, pages: &[0], logits: LogitRows::None };
        let shape = Shape::check(&Batch::new(&[prefill]), &LIMITS).unwrap();
        assert_eq!((shape.rows.decode_rows, shape.max_kv, shape.rows.has_long), (0..0, 21, true));
        let row = SequenceRows { tokens: &[9], position: 40, pages: &[3, 1], logits: LogitRows::Last };
        let shape = Shape::check(&Batch::new(&[prefill, row, prefill]), &LIMITS).unwrap();
        assert_eq!((shape.rows.decode_rows, shape.rows.max_kv_decode), (18..19, 41));
    }

    /// The bucket of sequences of so many rows behind so many tokens, of which so many need logits, perhaps in a step with drafts.
    fn bucket_of(rows: &[(usize, usize, LogitRows)], drafts: bool) -> Bucket {
        let limits = BatchLimits { max_blocks: 64, ..LIMITS };
        let pages: Vec<u32> = (0..64).collect();
        let parts = rows.iter().map(|&(count, position, logits)| SequenceRows {
            tokens: &[7; 32][..count],
            position,
            pages: &pages[..pages_for(position + count)],
            logits,
        });
        let batch = Batch { drafts, ..Batch::new(&parts.collect::<Vec<_>>()) };
        Shape::check(&batch, &limits).unwrap().bucket()
    }

    #[test]
    fn decode_steps_share_a_bucket_whatever_their_lengths() {
        let bucket = |rows: &[(usize, usize)]| {
            let rows = rows.iter().map(|&(count, position)| (count, position, LogitRows::Last));
            bucket_of(&rows.collect::<Vec<_>>(), false)
        };
        assert_eq!(bucket(&[(1, 3), (1, 40)]), bucket(&[(1, 250), (1, 0)]), "lengths up to 8 pages");
        assert_ne!(bucket(&[(1, 3), (1, 40)]), bucket(&[(1, 256), (1, 0)]), "more pages");
        assert_ne!(bucket(&[(1, 3)]), bucket(&[(1, 3), (1, 3)]), "more sequences");
        assert_eq!(bucket(&[(3, 0), (1, 40)]), bucket(&[(3, 0), (1, 40)]));
        assert_ne!(bucket(&[(3, 0)]), bucket(&[(3, 1)]), "a prefill that reads another length");
        assert_ne!(bucket(&[(3, 0)]), bucket(&[(2, 1)]), "fewer rows that read the same length");
    }

    /// Steps that verify drafts, and those that draft behind them, are decode steps: recorded, for any length.
    #[test]
    fn steps_with_drafts_share_buckets_too() {
        use LogitRows::{Last, Newest, None};
        let bucket = |rows: &[(usize, usize, LogitRows)]| bucket_of(rows, true);
        let is_decode = |bucket: &Bucket| matches!(bucket.kind(), StepKind::Decode);
        let verified = bucket(&[(4, 3, Newest(4))]);
        assert!(is_decode(&verified));
        assert_eq!(verified, bucket(&[(4, 200, Newest(4))]), "another length");
        assert_ne!(verified, bucket(&[(3, 200, Newest(3))]), "fewer drafts");
        assert_ne!(verified, bucket(&[(4, 200, Newest(3))]), "a row that is taken in once more");
        let shared = bucket(&[(4, 3, Newest(4)), (1, 50, Newest(1))]);
        assert_eq!(shared, bucket(&[(2, 90, Newest(2)), (3, 7, Newest(3))]), "rows shared out otherwise");
        assert_ne!(shared, bucket(&[(4, 3, Newest(4)), (1, 50, Newest(1)), (1, 0, Last)]));
        assert_eq!(bucket(&[(4, 3, None)]), bucket(&[(4, 99, None)]), "rows that nobody drafts behind");
        assert!(is_decode(&bucket(&[(DECODE_ROWS, 0, Newest(16))])));
        assert!(!is_decode(&bucket(&[(DECODE_ROWS + 1, 0, Newest(16))])));
        assert!(!is_decode(&bucket(&[(20, 0, Last), (4, 3, Newest(4))])), "beside a prompt");
    }

    #[test]
    fn contradictions_are_refused() {
        let changes: [fn(&mut Batch); 11] = [
            |b| b.state_slots.clear(),
            |b| b.sampled_rows.clear(),
            |b| b.positions[0] = 32,
            |b| b.sequence_of_token[1] = 0,
            |b| b.slots.push(0),
            |b| b.query_start[1] = 7,
            |b| b.query_start[4] = 4,
            |b| b.kv_len[0] = 97,
            |b| b.kv_len[1] = 1,
            |b| b.block_table.clear(),
            |b| b.max_blocks = 4,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut batch = batch();
            change(&mut batch);
            assert!(matches!(Shape::check(&batch, &LIMITS), Err(Error::Request(_))), "change {i}");
        }
    }
}
