//! The index arrays of a batch on the device: one copy a step.

mod shape;

use super::device::Device;
use super::memory::{DeviceBuffer, PinnedBuffer};
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use qernel_core::batch::{AdapterSet, Batch, BatchLimits};
use shape::{AdapterRows, Shape};
pub(super) use shape::{Bucket, RowSplit, StepKind};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// Arrays begin at multiples of this many u32: 16 bytes.
const ALIGNMENT: usize = 4;
/// How many arrays there are, for the room that alignment takes.
const ARRAYS: usize = 12;
/// Pages a sequence that a table has room for at once, as far as the context goes: more than most models are made for.
const FIRST_BLOCKS: usize = (1 << 16) / PAGE_SIZE;

/// The index arrays of the newest upload, and what launches must know of them on the host. Their room grows with the block table: what a
/// file claims to be made for costs nothing until it is used.
pub struct CudaBatch {
    device: Rc<Device>,
    staging: PinnedBuffer,
    indices: DeviceBuffer<u32>,
    /// Entries of a block table that there is room for.
    table_room: usize,
    limits: BatchLimits,
    pub(super) shape: Shape,
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
        let mut batch = Self {
            device: device.clone(),
            staging: PinnedBuffer::new(device, 1)?,
            indices: DeviceBuffer::zeroed(device, 1)?,
            table_room: 0,
            limits: *limits,
            shape: Shape::default(),
        };
        let first = limits.max_blocks.clamp(1, FIRST_BLOCKS);
        batch.grow(super::tensor::elements(limits.max_num_sequences.max(1), first)?)?;
        Ok(batch)
    }

    /// Has room for a block table of `entries` from now on, and for twice as many as before if it had not. Answers whether the arrays are
    /// elsewhere now.
    ///
    /// # Errors
    /// [`Error::Memory`] from the device or the host.
    fn grow(&mut self, entries: usize) -> Result<bool> {
        if entries <= self.table_room {
            return Ok(false);
        }
        let BatchLimits { max_num_tokens, max_num_sequences, max_num_logits, max_blocks } = self.limits;
        let most = max_num_sequences.saturating_mul(max_blocks);
        let room = entries.max(most.min(2 * self.table_room));
        let others = 5 * max_num_tokens + 4 * max_num_sequences + 2 + 2 * max_num_logits;
        let capacity = room + others + ARRAYS * ALIGNMENT;
        // The old ones go first: memory is planned for one table of the whole context.
        self.table_room = 0;
        self.staging = PinnedBuffer::new(&self.device, 1)?;
        self.indices = DeviceBuffer::zeroed(&self.device, 1)?;
        self.staging = PinnedBuffer::new(&self.device, capacity * 4)?;
        self.indices = DeviceBuffer::zeroed(&self.device, capacity)?;
        self.table_room = room;
        Ok(true)
    }

    /// Queues the copy of `batch`. Answers whether the arrays are elsewhere now.
    ///
    /// # Errors
    /// [`Error::Request`] if it is beyond the limits or its arrays contradict each other, [`Error::Memory`] if there is no room for its
    /// block table.
    pub(super) fn upload(&mut self, batch: &Batch) -> Result<bool> {
        self.shape = Shape::default();
        let mut shape = Shape::check(batch, &self.limits)?;
        let adapters: BTreeSet<u32> =
            batch.adapters.iter().flat_map(AdapterSet::adapters).map(|of| of.adapter).collect();
        let scales = adapters.len() * (shape.num_tokens + shape.num_logits + 2 * ALIGNMENT);
        let moved = self.grow(shape.num_sequences * shape.max_blocks + scales)?;
        let mut writer = Writer { bytes: self.staging.wait()?, used: 0 };
        shape.tokens = writer.put(&batch.tokens);
        shape.sampled_rows = writer.put(&batch.sampled_rows);
        shape.positions = writer.put(&batch.positions);
        shape.sequence_of_token = writer.put(&batch.sequence_of_token);
        shape.slots = writer.put(&batch.slots);
        shape.query_start = writer.put(&batch.query_start);
        shape.kv_len = writer.put(&batch.kv_len);
        shape.block_table = writer.put_rows(&batch.block_table, batch.max_blocks, shape.max_blocks);
        shape.logit_rows = writer.put(&batch.logit_rows);
        shape.state_slots = writer.put(&batch.state_slots);
        if shape.only_logit_rows.num_rows > 0 {
            let alone = batch.only_logit_rows();
            shape.logit_rows_sequence_of_token = writer.put(&alone.sequence_of_token);
            shape.logit_rows_query_start = writer.put(&alone.query_start);
        }
        for adapter in adapters {
            let mut put = |n: usize| {
                let scale = |row| batch.adapter_scale(adapter, row, n).to_bits();
                writer.put(&(0..n).map(scale).collect::<Vec<_>>())
            };
            let (of_all, of_logit_rows) = (put(shape.num_tokens), put(shape.num_logits));
            shape.adapters.push(AdapterRows { adapter, of_all, of_logit_rows });
        }
        let bytes = writer.used * 4;
        let target = DevicePtrMut::from_raw(self.indices.ptr_mut().as_raw());
        // SAFETY: `indices` has as many bytes as `staging`, and both live in this value.
        unsafe { self.staging.copy_to(bytes, target)? };
        self.shape = shape;
        Ok(moved)
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

    /// The rows that need logits, where these are some but not all, and the last of their sequences; else none.
    pub(super) fn only_logit_rows(&self) -> BatchRows<'_> {
        BatchRows {
            split: &self.shape.only_logit_rows,
            sequence_of_token: self.array(&self.shape.logit_rows_sequence_of_token),
            query_start: self.array(&self.shape.logit_rows_query_start),
        }
    }

    /// `[num_tokens]`
    pub(super) fn tokens(&self) -> DevicePtr<u32> {
        self.array(&self.shape.tokens)
    }

    /// `[num_tokens]`
    pub(super) fn sampled_rows(&self) -> DevicePtr<u32> {
        self.array(&self.shape.sampled_rows)
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

    /// Whether a row has an adapter.
    pub(super) fn has_adapters(&self) -> bool {
        !self.shape.adapters.is_empty()
    }

    /// The scales that an adapter has in the rows that a part of a layer works on, all or those that need logits: f32 `[n]`. `None` where no
    /// row has it.
    pub(super) fn adapter_scales(&self, adapter: u32, n: usize) -> Result<Option<DevicePtr<f32>>> {
        let Some(rows) = self.shape.adapters.iter().find(|rows| rows.adapter == adapter) else {
            return Ok(None);
        };
        // Where all need logits both are the same.
        let range = [&rows.of_all, &rows.of_logit_rows].into_iter().find(|range| range.len() == n);
        let range = range.ok_or_else(|| {
            Error::Request(format!(
                "adapters: {n} rows are neither all of the batch nor those that need logits"
            ))
        })?;
        Ok(Some(self.array(range).cast()))
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
    use qernel_core::batch::{LogitRows, SequenceRows};

    const LIMITS: BatchLimits =
        BatchLimits { max_num_tokens: 8, max_num_sequences: 4, max_num_logits: 4, max_blocks: 3 };

    #[test]
    fn room_for_the_block_table_grows_as_pages_come() {
        let device = Rc::new(Device::emulated(cuda_std::emulation::Options::default()));
        let limits = BatchLimits { max_num_sequences: 2, max_blocks: 1 << 19, ..LIMITS };
        let mut on_device = CudaBatch::new(&device, &limits).unwrap();
        let first = on_device.indices.len();
        assert!(first < 2 * FIRST_BLOCKS + 200, "{first} values for a claim");
        let pages: Vec<u32> = (0..4 * FIRST_BLOCKS as u32).rev().collect();
        // A row each of one sequence that has so many pages, and of one that has one.
        let mut upload = |blocks: usize| {
            let row =
                |position, pages| SequenceRows { tokens: &[9], position, pages, logits: LogitRows::Last };
            let batch = Batch::new(&[row(blocks * PAGE_SIZE - 1, &pages[..blocks]), row(0, &[7])]);
            let moved = on_device.upload(&batch).unwrap();
            let cols = on_device.shape.max_blocks;
            let table = on_device.indices.read(on_device.shape.block_table.start, 2 * cols).unwrap();
            assert_eq!(table[..blocks], pages[..blocks]);
            assert_eq!(table[cols..][..2], [7, 0]);
            assert_eq!(on_device.indices.read(on_device.shape.kv_len.start, 2).unwrap()[1], 1);
            (moved, on_device.indices.len())
        };
        assert_eq!(upload(FIRST_BLOCKS), (false, first));
        let (moved, second) = upload(FIRST_BLOCKS + 1);
        assert!(moved && (first + 1..=3 * first).contains(&second), "{second}");
        assert_eq!(upload(2 * FIRST_BLOCKS - 200), (false, second), "twice as much at once");
        assert_eq!(upload(3), (false, second));
        assert!(upload(4 * FIRST_BLOCKS).0);

        let short = CudaBatch::new(&device, &LIMITS).unwrap();
        assert!(short.indices.len() < 200, "as much as a short context takes");
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
