//! The asynchronous proxy: what bulk copies from shared memory and `wgmma` read must have been fenced by whoever wrote it with ordinary stores or
//! `cp.async`.

use std::format;

use super::block::Block;
use super::report::Defect;
use super::thread::{Place, Thread};

/// Bytes that one note stands for.
pub const GRANULE: usize = 16;
const TICK_BITS: u32 = 29;
const THREAD_BITS: u32 = 11;
const GENERATION_BITS: u32 = u64::BITS - TICK_BITS - THREAD_BITS;

impl Block {
    /// The first bits of its notes.
    fn notes(&self) -> u64 {
        u64::from(self.generation.get()) & ((1 << GENERATION_BITS) - 1)
    }

    /// Fences of the block so far.
    fn ticks(&self) -> u64 {
        self.fences.get() & ((1 << TICK_BITS) - 1)
    }

    /// Notes that a copy's bytes are there now.
    pub fn note_landing(&self, offset: usize, size: usize) {
        for place in &self.stores[granules(offset, size)] {
            let note = place.get();
            if note >> (THREAD_BITS + TICK_BITS) == self.notes() {
                place.set(note >> TICK_BITS << TICK_BITS | self.ticks());
            }
        }
    }
}

fn granules(offset: usize, size: usize) -> core::ops::Range<usize> {
    offset / GRANULE..(offset + size).div_ceil(GRANULE)
}

impl Thread {
    /// Notes that this thread wrote a range of shared memory by the ordinary proxy, and how many fences there were.
    #[inline]
    pub fn note_store(&self, offset: usize, size: usize) {
        let block = self.block();
        let note = (block.notes() << THREAD_BITS | u64::from(self.index)) << TICK_BITS | block.ticks();
        block.stores[granules(offset, size)].iter().for_each(|place| place.set(note));
    }

    /// Notes that a range is written by the asynchronous proxy.
    pub fn note_bulk_store(&self, offset: usize, size: usize) {
        self.block().stores[granules(offset, size)].iter().for_each(|place| place.set(0));
    }

    /// `fence.proxy.async`.
    pub fn fence_proxy(&self) {
        let block = self.block();
        block.fences.set(block.fences.get() + 1);
        self.last_fence.set(block.ticks());
    }

    /// Checks a range that the asynchronous proxy is about to read for this thread: behind each store there must be a fence, of whoever wrote or of this
    /// thread.
    pub fn check_fences(&self, offset: usize, size: usize, place: Place) {
        let block = self.block();
        if !block.checks.get() {
            return;
        }
        let range = granules(offset, size);
        let first = range.start;
        for (i, note) in block.stores[range].iter().enumerate() {
            let note = note.get();
            let (writer, then) =
                (note >> TICK_BITS & ((1 << THREAD_BITS) - 1), note & ((1 << TICK_BITS) - 1));
            let is_fenced =
                || block.threads[writer as usize].last_fence.get() > then || self.last_fence.get() > then;
            if note >> (THREAD_BITS + TICK_BITS) == block.notes() && !is_fenced() {
                let what = block.describe_shared((first + i) * GRANULE);
                let writer = block.threads[writer as usize].position;
                let detail = format!(
                    "{what} was written by thread {writer:?} without a fence_proxy_async behind it; what reads it here does so by the asynchronous proxy"
                );
                self.fail(Defect::UnfencedProxy, place, detail);
            }
        }
    }
}
