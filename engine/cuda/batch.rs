//! The index arrays of a batch on the device: one copy a step.

use super::device::Device;
use super::memory::{DeviceBuffer, PinnedBuffer};
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use qernel_core::batch::{Batch, BatchLimits};
use std::ops::Range;
use std::rc::Rc;

/// Arrays begin at multiples of this many u32: 16 bytes.
const ALIGNMENT: usize = 4;
/// How many arrays there are, for the room that alignment takes.
const ARRAYS: usize = 12;
/// The fewest pages a sequence that a decode step has room for.
const MIN_BUCKET_BLOCKS: usize = 8;

/// What the launches of a step depend on: steps of one bucket have their arrays at the same places and the same grids.
///
/// Decode steps with as many sequences are of one bucket for nearly any length of them ([`Shape::in_bucket`]). Steps with a
/// prefill are where all their lengths are the same: chunks of a long prompt are those of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket(Shape);

/// What a step does.
pub(super) enum StepKind {
    /// Every sequence has one row.
    Decode,
    /// Every sequence has several.
    Prefill,
    Mixed,
}

impl Bucket {
    /// What the step does.
    pub(super) fn kind(&self) -> StepKind {
        if self.0.is_decode() {
            StepKind::Decode
        } else if self.0.rows.single_rows.is_empty() {
            StepKind::Prefill
        } else {
            StepKind::Mixed
        }
    }

    /// Whether rows of the step have logits.
    pub(super) fn has_logits(&self) -> bool {
        self.0.num_logits > 0
    }
}

/// The index arrays of the newest upload, and what launches must know of them on the host.
pub struct CudaBatch {
    staging: PinnedBuffer,
    indices: DeviceBuffer<u32>,
    limits: BatchLimits,
    pub(super) shape: Shape,
}

/// Counts, bounds and the places of the arrays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub num_tokens: usize,
    pub num_sequences: usize,
    pub num_logits: usize,
    pub max_blocks: usize,
    /// Tokens in the cache of the longest sequence.
    pub max_kv: usize,
    pub rows: RowSplit,
    /// Of the rows whose logits are wanted, where these are some but not all, and the last of their sequences; else 0 rows.
    pub wanted: RowSplit,
    /// One more than the largest entry of each array; 0 where it is empty.
    pub token_bound: usize,
    pub drawn_bound: usize,
    pub position_bound: usize,
    pub slot_bound: usize,
    pub page_bound: usize,
    pub logit_row_bound: usize,
    pub state_slot_bound: usize,
    tokens: Range<usize>,
    drawn_rows: Range<usize>,
    positions: Range<usize>,
    sequence_of_token: Range<usize>,
    slots: Range<usize>,
    query_start: Range<usize>,
    kv_len: Range<usize>,
    block_table: Range<usize>,
    logit_rows: Range<usize>,
    state_slots: Range<usize>,
    wanted_sequence_of_token: Range<usize>,
    wanted_query_start: Range<usize>,
}

/// Which rows are their sequence's only one: attention has kernels for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct RowSplit {
    pub num_rows: usize,
    /// From the first row that is its sequence's only one to behind the last such.
    pub single_rows: Range<usize>,
    /// Tokens in the cache of the longest sequence that has one row.
    pub max_kv_single: usize,
    /// Whether a sequence has more than one row.
    pub has_multiple: bool,
}

/// All rows of a batch or some, as attention sees them.
pub(super) struct BatchRows<'a> {
    pub split: &'a RowSplit,
    /// `[num_rows]`
    pub sequence_of_token: DevicePtr<u32>,
    /// `[num_sequences + 1]`
    pub query_start: DevicePtr<u32>,
}

impl CudaBatch {
    pub(super) fn new(device: &Rc<Device>, limits: &BatchLimits) -> Result<Self> {
        let BatchLimits { max_num_tokens, max_num_sequences, max_num_logits, max_blocks } = *limits;
        let capacity = 5 * max_num_tokens
            + 4 * max_num_sequences
            + 2
            + super::tensor::elements(max_num_sequences, max_blocks)?
            + 2 * max_num_logits
            + ARRAYS * ALIGNMENT;
        Ok(Self {
            staging: PinnedBuffer::new(device, capacity * 4)?,
            indices: DeviceBuffer::zeroed(device, capacity)?,
            limits: *limits,
            shape: Shape::default(),
        })
    }

    /// Queues the copy of `batch`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is beyond the limits or its arrays contradict each other.
    pub(super) fn upload(&mut self, batch: &Batch) -> Result<()> {
        self.shape = Shape::default();
        let mut shape = Shape::check(batch, &self.limits)?;
        let mut writer = Writer { bytes: self.staging.wait()?, used: 0 };
        shape.tokens = writer.put(&batch.tokens);
        shape.drawn_rows = writer.put(&batch.drawn_rows);
        shape.positions = writer.put(&batch.positions);
        shape.sequence_of_token = writer.put(&batch.sequence_of_token);
        shape.slots = writer.put(&batch.slots);
        shape.query_start = writer.put(&batch.query_start);
        shape.kv_len = writer.put(&batch.kv_len);
        shape.block_table = writer.put_rows(&batch.block_table, batch.max_blocks, shape.max_blocks);
        shape.logit_rows = writer.put(&batch.logit_rows);
        shape.state_slots = writer.put(&batch.state_slots);
        if shape.wanted.num_rows > 0 {
            let wanted = batch.wanted();
            shape.wanted_sequence_of_token = writer.put(&wanted.sequence_of_token);
            shape.wanted_query_start = writer.put(&wanted.query_start);
        }
        let bytes = writer.used * 4;
        let target = DevicePtrMut::from_raw(self.indices.ptr_mut().as_raw());
        // SAFETY: `indices` has as many bytes as `staging`, and both live in this value.
        unsafe { self.staging.copy_to(bytes, target)? };
        self.shape = shape;
        Ok(())
    }

    /// Of the uploaded step; `None` where it has no rows.
    pub(super) fn bucket(&self) -> Option<Bucket> {
        (self.shape.num_tokens > 0).then(|| self.shape.bucket())
    }

    fn array(&self, range: &Range<usize>) -> DevicePtr<u32> {
        self.indices.ptr().add(range.start)
    }

    /// All rows.
    pub(super) fn rows(&self) -> BatchRows<'_> {
        let (sequence_of_token, query_start) = (self.sequence_of_token(), self.query_start());
        BatchRows { split: &self.shape.rows, sequence_of_token, query_start }
    }

    /// The rows whose logits are wanted, where these are some but not all, and the last of their sequences; else none.
    pub(super) fn wanted_rows(&self) -> BatchRows<'_> {
        BatchRows {
            split: &self.shape.wanted,
            sequence_of_token: self.array(&self.shape.wanted_sequence_of_token),
            query_start: self.array(&self.shape.wanted_query_start),
        }
    }

    /// `[num_tokens]`
    pub(super) fn tokens(&self) -> DevicePtr<u32> {
        self.array(&self.shape.tokens)
    }

    /// `[num_tokens]`
    pub(super) fn drawn_rows(&self) -> DevicePtr<u32> {
        self.array(&self.shape.drawn_rows)
    }

    /// `[num_tokens]`
    pub(super) fn positions(&self) -> DevicePtr<u32> {
        self.array(&self.shape.positions)
    }

    /// `[num_tokens]`
    pub(super) fn sequence_of_token(&self) -> DevicePtr<u32> {
        self.array(&self.shape.sequence_of_token)
    }

    /// `[num_tokens]`
    pub(super) fn slots(&self) -> DevicePtr<u32> {
        self.array(&self.shape.slots)
    }

    /// `[num_sequences + 1]`
    pub(super) fn query_start(&self) -> DevicePtr<u32> {
        self.array(&self.shape.query_start)
    }

    /// `[num_sequences]`
    pub(super) fn kv_len(&self) -> DevicePtr<u32> {
        self.array(&self.shape.kv_len)
    }

    /// `[num_sequences, max_blocks]`
    pub(super) fn block_table(&self) -> DevicePtr<u32> {
        self.array(&self.shape.block_table)
    }

    /// `[num_sequences]`
    pub(super) fn state_slots(&self) -> DevicePtr<u32> {
        self.array(&self.shape.state_slots)
    }

    /// `[num_logits]`
    pub(super) fn logit_rows(&self) -> DevicePtr<u32> {
        self.array(&self.shape.logit_rows)
    }
}

/// Appends arrays to the pinned buffer.
struct Writer<'a> {
    bytes: &'a mut [u8],
    /// u32 values so far.
    used: usize,
}

impl Writer<'_> {
    /// Copies `values` to the next aligned place; the limits were checked, so there is room.
    fn put(&mut self, values: &[u32]) -> Range<usize> {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let end = start + values.len();
        let target = self.bytes[start * 4..end * 4].as_chunks_mut::<4>().0;
        for (to, value) in target.iter_mut().zip(values) {
            *to = value.to_ne_bytes();
        }
        self.used = end;
        start..end
    }

    /// Copies rows of `cols` values to rows of `stride`, the rest of which is 0.
    fn put_rows(&mut self, values: &[u32], cols: usize, stride: usize) -> Range<usize> {
        if cols == stride || cols == 0 {
            return self.put(values);
        }
        let start = self.used.next_multiple_of(ALIGNMENT);
        let end = start + values.len() / cols * stride;
        let target = self.bytes[start * 4..end * 4].as_chunks_mut::<4>().0;
        for (to, row) in target.chunks_mut(stride).zip(values.chunks(cols)) {
            let padded = row.iter().chain(std::iter::repeat(&0));
            to.iter_mut().zip(padded).for_each(|(to, value)| *to = value.to_ne_bytes());
        }
        self.used = end;
        start..end
    }
}

impl Shape {
    /// Checks what kernels rely on: the limits, that arrays have the lengths they must have, and that each row's
    /// sequence, position and pages fit together. Where the indices lead is checked by each launch against the
    /// buffers it gets, through the bounds.
    fn check(batch: &Batch, limits: &BatchLimits) -> Result<Self> {
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
            ("drawn_rows", batch.drawn_rows.len(), n),
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
        let wanted_are_last =
            batch.logit_rows.iter().enumerate().all(|(i, &row)| is_last_of_sequence(i, row as usize));
        let bound = |values: &[u32]| values.iter().max().map_or(0, |&value| value as usize + 1);
        Ok((Self {
            num_tokens: n,
            num_sequences: sequences,
            num_logits: batch.num_logits(),
            max_blocks,
            token_bound: bound(&batch.tokens),
            drawn_bound: batch.num_drawn(),
            position_bound: bound(&batch.positions),
            slot_bound: bound(&batch.slots),
            page_bound: bound(&batch.block_table),
            logit_row_bound: bound(&batch.logit_rows),
            state_slot_bound: bound(&batch.state_slots),
            max_kv: batch.kv_len.iter().max().map_or(0, |&len| len as usize),
            rows: RowSplit::of(batch),
            wanted: if wanted_are_last && (1..n).contains(&batch.num_logits()) {
                RowSplit::of(&batch.wanted())
            } else {
                RowSplit::default()
            },
            ..Self::default()
        })
        .in_bucket(limits))
    }

    /// All but the bounds, which launches check and nothing else.
    fn bucket(&self) -> Bucket {
        Bucket(Self {
            token_bound: 0,
            drawn_bound: 0,
            position_bound: 0,
            slot_bound: 0,
            page_bound: 0,
            logit_row_bound: 0,
            state_slot_bound: 0,
            ..self.clone()
        })
    }

    /// Whether every sequence has one row.
    fn is_decode(&self) -> bool {
        !self.rows.has_multiple && self.num_tokens > 0
    }

    /// The same with the room of its bucket for the block table, if every sequence has one row: eight buckets from one power of two to
    /// the next, or all that the limits allow. Attention looks at each row's own length and ignores the rest.
    fn in_bucket(mut self, limits: &BatchLimits) -> Self {
        if self.is_decode() {
            let step = (self.max_blocks.next_power_of_two() / 16).max(MIN_BUCKET_BLOCKS);
            self.max_blocks = self.max_blocks.next_multiple_of(step).min(limits.max_blocks);
            self.max_kv = self.max_blocks * PAGE_SIZE;
            self.rows.max_kv_single = self.max_kv;
            if self.wanted.num_rows > 0 {
                self.wanted.max_kv_single = self.max_kv;
            }
        }
        self
    }
}

impl RowSplit {
    fn of(batch: &Batch) -> Self {
        let mut split = Self { num_rows: batch.num_tokens(), ..Self::default() };
        for (s, &kv_len) in batch.kv_len.iter().enumerate() {
            let (start, end) = (batch.query_start[s] as usize, batch.query_start[s + 1] as usize);
            if end - start == 1 {
                let first = if split.single_rows.is_empty() { start } else { split.single_rows.start };
                split.single_rows = first..end;
                split.max_kv_single = split.max_kv_single.max(kv_len as usize);
            }
            split.has_multiple |= end - start > 1;
        }
        split
    }
}

/// Refuses indices that lead outside of what an operation was given.
pub(super) fn expect_bound(op: &str, what: &str, bound: usize, limit: usize) -> Result<()> {
    if bound <= limit {
        return Ok(());
    }
    Err(Error::Request(format!("{op}: {what} {} must be below {limit}", bound - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_layout::pages_for;
    use qernel_core::batch::{SequenceRows, WantedLogits};

    const LIMITS: BatchLimits =
        BatchLimits { max_num_tokens: 8, max_num_sequences: 4, max_num_logits: 4, max_blocks: 3 };

    /// One row, two rows, one row, one row.
    fn batch() -> Batch {
        let row =
            |position, pages| SequenceRows { tokens: &[9], position, pages, logits: WantedLogits::Last };
        Batch::new(&[
            row(33, &[3, 1]),
            SequenceRows { tokens: &[4, 5], position: 0, pages: &[2], logits: WantedLogits::None },
            row(5, &[6]),
            row(0, &[7]),
        ])
    }

    #[test]
    fn single_rows_and_bounds_are_known_on_the_host() {
        let shape = Shape::check(&batch(), &LIMITS).unwrap();
        assert_eq!(shape.rows.single_rows, 0..5);
        assert_eq!((shape.rows.max_kv_single, shape.max_kv, shape.rows.has_multiple), (34, 34, true));
        assert_eq!((shape.token_bound, shape.position_bound, shape.page_bound), (10, 34, 8));
        assert_eq!((shape.slot_bound, shape.logit_row_bound), (7 * PAGE_SIZE + 1, 5));
        let prefill = SequenceRows { tokens: &[1, 2], position: 3, pages: &[0], logits: WantedLogits::None };
        let shape = Shape::check(&Batch::new(&[prefill]), &LIMITS).unwrap();
        assert_eq!((shape.rows.single_rows, shape.max_kv, shape.rows.has_multiple), (0..0, 5, true));
    }

    #[test]
    fn decode_steps_share_a_bucket_whatever_their_lengths() {
        let limits = BatchLimits { max_blocks: 64, ..LIMITS };
        let bucket = |rows: &[(usize, usize)]| {
            let pages: Vec<u32> = (0..64).collect();
            let parts = rows.iter().map(|&(count, position)| SequenceRows {
                tokens: &[7, 8, 9][..count],
                position,
                pages: &pages[..pages_for(position + count)],
                logits: WantedLogits::Last,
            });
            Shape::check(&Batch::new(&parts.collect::<Vec<_>>()), &limits).unwrap().bucket()
        };
        assert_eq!(bucket(&[(1, 3), (1, 40)]), bucket(&[(1, 250), (1, 0)]), "lengths up to 8 pages");
        assert_ne!(bucket(&[(1, 3), (1, 40)]), bucket(&[(1, 256), (1, 0)]), "more pages");
        assert_ne!(bucket(&[(1, 3)]), bucket(&[(1, 3), (1, 3)]), "more sequences");
        assert_eq!(bucket(&[(3, 0), (1, 40)]), bucket(&[(3, 0), (1, 40)]));
        assert_ne!(bucket(&[(3, 0)]), bucket(&[(3, 1)]), "a prefill that reads another length");
        assert_ne!(bucket(&[(3, 0)]), bucket(&[(2, 1)]), "fewer rows that read the same length");
    }

    #[test]
    fn contradictions_are_refused() {
        let changes: [fn(&mut Batch); 11] = [
            |b| b.state_slots.clear(),
            |b| b.drawn_rows.clear(),
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

    #[test]
    fn arrays_are_packed_and_aligned() {
        let mut bytes = [0; 64];
        let mut writer = Writer { bytes: &mut bytes, used: 0 };
        assert_eq!(writer.put(&[1, 2, 3, 4, 5]), 0..5);
        assert_eq!(writer.put(&[6]), 8..9);
        assert_eq!(writer.put(&[]), 12..12);
        assert_eq!(bytes[32..36], 6u32.to_ne_bytes());
    }
}
