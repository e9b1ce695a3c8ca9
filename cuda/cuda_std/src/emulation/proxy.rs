//! The asynchronous proxy: what bulk copies from shared memory and `wgmma` read must have been fenced by whoever wrote it with ordinary stores or
//! `cp.async`.

use std::format;

use super::report::Defect;
use super::thread::{Place, Thread};

/// Bytes that one note stands for.
pub const GRANULE: usize = 16;
const FENCE_BITS: u32 = 21;
const THREAD_BITS: u32 = 11;

impl Thread {
    /// What a note of this thread's looks like now: the block's generation, the thread, its fences.
    fn note(&self) -> u64 {
        let generation = u64::from(self.block().generation.get());
        (generation << THREAD_BITS | u64::from(self.index)) << FENCE_BITS
            | u64::from(self.fences.get()) & ((1 << FENCE_BITS) - 1)
    }

    /// Notes that this thread wrote a range of shared memory by the ordinary proxy.
    #[inline]
    pub fn note_store(&self, offset: usize, size: usize) {
        let note = self.note();
        for place in &self.block().stores[offset / GRANULE..(offset + size).div_ceil(GRANULE)] {
            place.set(note);
        }
    }

    /// Notes that a range is written by the asynchronous proxy.
    pub fn note_bulk_store(&self, offset: usize, size: usize) {
        for place in &self.block().stores[offset / GRANULE..(offset + size).div_ceil(GRANULE)] {
            place.set(0);
        }
    }

    /// `fence.proxy.async`.
    pub fn fence_proxy(&self) {
        self.fences.set(self.fences.get() + 1);
    }

    /// Checks a range that the asynchronous proxy is about to read.
    pub fn check_fences(&self, offset: usize, size: usize, place: Place) {
        let block = self.block();
        if !block.checks.get() {
            return;
        }
        let (generation, first) = (u64::from(block.generation.get()), offset / GRANULE);
        for (i, note) in block.stores[first..(offset + size).div_ceil(GRANULE)].iter().enumerate() {
            let note = note.get();
            let (writer, fences) =
                (note >> FENCE_BITS & ((1 << THREAD_BITS) - 1), note & ((1 << FENCE_BITS) - 1));
            let now = || u64::from(block.threads[writer as usize].fences.get()) & ((1 << FENCE_BITS) - 1);
            if note >> (THREAD_BITS + FENCE_BITS) == generation && now() == fences {
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
