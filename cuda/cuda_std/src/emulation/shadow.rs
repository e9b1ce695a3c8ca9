//! Shadow memory: who touched which bytes last.
//!
//! A [`Cell`] stands for two bytes. It holds the last write and two reads that nothing orders against each
//! other, each as one word:
//!
//! | bits | |
//! | --- | --- |
//! | 42 to 63 | the thread's clock |
//! | 17 to 41 | the thread, numbered over the grid |
//! | 3 to 16 | where in the source ([`site`](super::site)) |
//! | 2 | atomic |
//! | 0, 1 | which of the two bytes |
//!
//! Workers update cells without locks; a lost update can hide a race, never invent one, since what a thread
//! knows of others reached it through real synchronisation. Cells belong to one launch (for shared memory: one
//! block): each page has the generation it was last cleared for, and is cleared when it is first touched.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::boxed::Box;

use super::site::SITE_BITS;
use super::thread::Thread;

/// The largest clock, which marks the destination of a copy that nobody has waited for.
pub const PENDING: u32 = (1 << (64 - CLOCK_SHIFT)) - 1;
pub const CLOCK_SHIFT: u32 = 42;
pub const THREAD_SHIFT: u32 = 17;
pub const THREAD_BITS: u32 = CLOCK_SHIFT - THREAD_SHIFT;
pub const SITE_SHIFT: u32 = 3;
pub const ATOMIC: u64 = 4;
const BOTH_BYTES: u64 = 3;
const _: () = assert!(SITE_SHIFT + SITE_BITS == THREAD_SHIFT);

/// Bytes that a page stands for.
const PAGE: usize = 512;
/// In place of a generation, while a worker clears the page.
const CLEARING: u32 = u32::MAX;

/// The kinds of access, as bits.
pub const READ: u8 = 1;
pub const WRITE: u8 = 2;
pub const UPDATE: u8 = READ | WRITE;
/// With the others: an atomic access, which races with no other atomic one.
pub const ATOMICALLY: u8 = 4;
/// With `READ`: reading what nobody wrote is a defect.
pub const INITIALISED: u8 = 8;

struct Cell {
    write: AtomicU64,
    reads: [AtomicU64; 2],
}

/// Cells for a range of memory.
pub struct Shadow {
    cells: *mut Cell,
    layout: Layout,
    generations: Box<[AtomicU32]>,
}

// SAFETY: all access to the cells is atomic.
unsafe impl Send for Shadow {}
// SAFETY: as above.
unsafe impl Sync for Shadow {}

/// Why an access is wrong.
pub enum Conflict {
    /// With an earlier access, which nothing orders before this one.
    Race { earlier: u64, wrote: bool },
    /// Nobody wrote the bytes.
    Uninitialised,
}

impl Shadow {
    /// Cells for `bytes` bytes; those never touched take no memory.
    pub fn new(bytes: usize) -> Self {
        let pages = bytes.div_ceil(PAGE).max(1);
        let layout = Layout::array::<Cell>(pages * PAGE / 2).expect("fits the address space");
        // SAFETY: the layout is not empty; all-zero bytes are cells.
        let cells = unsafe { alloc_zeroed(layout) }.cast::<Cell>();
        if cells.is_null() {
            handle_alloc_error(layout);
        }
        Self { cells, layout, generations: (0..pages).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Notes an access of `KIND` and checks it against earlier ones. `offset + size` is inside the range.
    ///
    /// # Errors
    /// The conflict, and the offset of the first byte concerned.
    #[inline]
    pub fn touch<const KIND: u8>(
        &self,
        offset: usize,
        size: usize,
        generation: u32,
        thread: &Thread,
        site: u32,
    ) -> Result<(), (Conflict, usize)> {
        self.renew(offset, size, generation);
        let atomic = if KIND & ATOMICALLY != 0 { ATOMIC } else { 0 };
        let stamp = thread.stamp.get() | u64::from(site) << SITE_SHIFT | atomic;
        let (first, last) = (offset / 2, (offset + size - 1) / 2);
        for index in first..=last {
            let mut bytes = BOTH_BYTES;
            if (offset | size) & 1 != 0 {
                bytes &= if index * 2 < offset { 2 } else { 3 };
                bytes &= if index * 2 + 2 > offset + size { 1 } else { 3 };
            }
            // SAFETY: the index is inside the range.
            let cell = unsafe { &*self.cells.add(index) };
            if let Err(conflict) = cell.touch::<KIND>(stamp | bytes, thread) {
                return Err((conflict, (index * 2).max(offset)));
            }
        }
        Ok(())
    }

    /// Sets the last write of every cell of a range, without a check.
    pub fn mark(&self, offset: usize, size: usize, generation: u32, stamp: u64) {
        self.renew(offset, size, generation);
        for index in offset / 2..(offset + size).div_ceil(2) {
            // SAFETY: the index is inside the range.
            unsafe { &*self.cells.add(index) }.write.store(stamp | BOTH_BYTES, Relaxed);
        }
    }

    /// Clears the pages of a range that were last used by another generation.
    #[inline]
    fn renew(&self, offset: usize, size: usize, generation: u32) {
        for page in offset / PAGE..=(offset + size - 1) / PAGE {
            if self.generations[page].load(Acquire) != generation {
                self.clear(page, generation);
            }
        }
    }

    #[cold]
    fn clear(&self, page: usize, generation: u32) {
        let state = &self.generations[page];
        let mut seen = state.load(Acquire);
        while seen != generation {
            if seen == CLEARING {
                core::hint::spin_loop();
                seen = state.load(Acquire);
            } else if let Err(now) = state.compare_exchange(seen, CLEARING, Acquire, Acquire) {
                seen = now;
            } else {
                for index in page * PAGE / 2..(page + 1) * PAGE / 2 {
                    // SAFETY: the index is inside the range.
                    let cell = unsafe { &*self.cells.add(index) };
                    cell.write.store(0, Relaxed);
                    cell.reads[0].store(0, Relaxed);
                    cell.reads[1].store(0, Relaxed);
                }
                state.store(generation, Release);
                return;
            }
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.cells.cast(), self.layout) }
    }
}

impl Cell {
    #[inline(always)]
    fn touch<const KIND: u8>(&self, stamp: u64, thread: &Thread) -> Result<(), Conflict> {
        let concerns = |earlier: u64| {
            earlier & stamp & BOTH_BYTES != 0 && earlier & stamp & ATOMIC == 0 && !thread.is_after(earlier)
        };
        let write = self.write.load(Relaxed);
        if write == 0 {
            if KIND & INITIALISED != 0 {
                return Err(Conflict::Uninitialised);
            }
        } else if concerns(write) {
            return Err(Conflict::Race { earlier: write, wrote: true });
        }
        if KIND & WRITE != 0 {
            for slot in &self.reads {
                let read = slot.load(Relaxed);
                if read != 0 {
                    if concerns(read) {
                        return Err(Conflict::Race { earlier: read, wrote: false });
                    }
                    slot.store(0, Relaxed);
                }
            }
            self.write.store(stamp, Relaxed);
        } else {
            // A slot that is free, this thread's own, or ordered before: overwrite it. If both hold reads that
            // others do at the same time, either will do to catch a later write.
            let first = self.reads[0].load(Relaxed);
            let replaces = |read: u64| read == 0 || same_thread(read, stamp) || thread.is_after(read);
            if replaces(first) || !replaces(self.reads[1].load(Relaxed)) {
                self.reads[0].store(stamp, Relaxed);
            } else {
                self.reads[1].store(stamp, Relaxed);
            }
        }
        Ok(())
    }
}

/// Whether two stamps are of one thread.
#[inline(always)]
const fn same_thread(a: u64, b: u64) -> bool {
    (a ^ b) << (64 - CLOCK_SHIFT) >> (64 - CLOCK_SHIFT + THREAD_SHIFT) == 0
}

/// Clock, thread and site of a stamp.
pub const fn parts(stamp: u64) -> (u32, u32, u32) {
    (
        (stamp >> CLOCK_SHIFT) as u32,
        (stamp >> THREAD_SHIFT) as u32 & ((1 << THREAD_BITS) - 1),
        (stamp >> SITE_SHIFT) as u32 & ((1 << SITE_BITS) - 1),
    )
}
