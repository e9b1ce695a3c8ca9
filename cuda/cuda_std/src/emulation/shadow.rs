//! Shadow memory: who touched which bytes last.
//!
//! A [`Cell`] stands for 16, 4 or 2 bytes: the most that all accesses of its page (512 bytes) so far allow, so that
//! wide accesses take one cell. It holds the last write and two reads that nothing orders against each other,
//! each as one word:
//!
//! | bits | |
//! | --- | --- |
//! | 42 to 63 | the thread's clock |
//! | 17 to 41 | the thread, numbered over the grid |
//! | 3 to 16 | where in the source ([`site`](super::site)) |
//! | 2 | atomic |
//! | 0, 1 | which of two bytes; both in larger cells |
//!
//! Workers update cells without locks; a lost update can hide a race, never invent one, since what a thread
//! knows of others reached it through real synchronisation. Cells belong to one launch (for shared memory: one
//! block): each page has the generation it was last cleared for, and is cleared when it is first touched.

use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
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
/// Bytes that a cell stands for, by level.
const GRANULES: [usize; 3] = [16, 4, 2];
/// A page's state while a worker clears or splits it; otherwise its generation, times 4, plus its level.
const BUSY: u64 = u64::MAX;

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
    /// The cells of each level. Pages of memory that are never touched are never there.
    levels: [*mut Cell; 3],
    pages: Box<[AtomicU64]>,
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
        let levels = GRANULES.map(|granule| {
            let layout = Self::layout(pages, granule);
            // SAFETY: the layout is not empty; all-zero bytes are cells.
            let cells = unsafe { alloc_zeroed(layout) }.cast::<Cell>();
            if cells.is_null() {
                handle_alloc_error(layout);
            }
            cells
        });
        Self { levels, pages: (0..pages).map(|_| AtomicU64::new(0)).collect() }
    }

    fn layout(pages: usize, granule: usize) -> Layout {
        Layout::array::<Cell>(pages * PAGE / granule).expect("fits the address space")
    }

    /// The cells of a page at a level.
    #[inline(always)]
    fn cells(&self, page: usize, level: usize) -> &[Cell] {
        let count = PAGE / GRANULES[level];
        // SAFETY: every level has this many cells for each page.
        unsafe { core::slice::from_raw_parts(self.levels[level].add(page * count), count) }
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
        let atomic = if KIND & ATOMICALLY != 0 { ATOMIC } else { 0 };
        let stamp = thread.stamp.get() | u64::from(site) << SITE_SHIFT | atomic;
        let end = offset + size;
        let mut start = offset;
        while start < end {
            let page = start / PAGE;
            let stop = end.min((page + 1) * PAGE);
            let level = self.prepare(page, start | stop, generation);
            let granule = GRANULES[level];
            let (first, last) = (start % PAGE / granule, (stop - 1) % PAGE / granule);
            for (index, cell) in self.cells(page, level)[first..=last].iter().enumerate() {
                let mut bytes = BOTH_BYTES;
                let here = page * PAGE + (first + index) * granule;
                if (start | stop) & 1 != 0 {
                    bytes &= if here < start { 2 } else { 3 };
                    bytes &= if here + 2 > stop { 1 } else { 3 };
                }
                if let Err(conflict) = cell.touch::<KIND>(stamp | bytes, thread) {
                    return Err((conflict, here.max(offset)));
                }
            }
            start = stop;
        }
        Ok(())
    }

    /// Sets the last write of every cell of a range, without a check.
    pub fn mark(&self, offset: usize, size: usize, generation: u32, stamp: u64) {
        let (mut start, end) = (offset, offset + size);
        while start < end {
            let page = start / PAGE;
            let stop = end.min((page + 1) * PAGE);
            let level = self.prepare(page, start | stop, generation);
            let granule = GRANULES[level];
            for cell in &self.cells(page, level)[start % PAGE / granule..=(stop - 1) % PAGE / granule] {
                cell.write.store(stamp | BOTH_BYTES, Relaxed);
            }
            start = stop;
        }
    }

    /// The level of a page, after it was made ready for `generation` and for accesses whose bounds are multiples of
    /// what `bounds` is.
    #[inline(always)]
    fn prepare(&self, page: usize, bounds: usize, generation: u32) -> usize {
        let needed = if bounds & 15 == 0 {
            0
        } else if bounds & 3 == 0 {
            1
        } else {
            2
        };
        let state = self.pages[page].load(Acquire);
        let level = (state & 3) as usize;
        if state >> 2 == u64::from(generation) && level >= needed {
            return level;
        }
        self.renew(page, needed, generation)
    }

    #[cold]
    fn renew(&self, page: usize, needed: usize, generation: u32) -> usize {
        let place = &self.pages[page];
        let mut state = place.load(Acquire);
        loop {
            let (current, level) = (state >> 2 == u64::from(generation), (state & 3) as usize);
            if state == BUSY {
                core::hint::spin_loop();
                state = place.load(Acquire);
            } else if current && level >= needed {
                return level;
            } else if let Err(now) = place.compare_exchange(state, BUSY, Acquire, Acquire) {
                state = now;
            } else {
                let cells = self.cells(page, needed);
                if current {
                    // Each cell's history is that of all its parts.
                    let old = self.cells(page, level);
                    let parts = cells.len() / old.len();
                    for (index, cell) in cells.iter().enumerate() {
                        cell.copy(&old[index / parts]);
                    }
                } else {
                    cells.iter().for_each(Cell::clear);
                }
                place.store(u64::from(generation) << 2 | needed as u64, Release);
                return needed;
            }
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        for (cells, granule) in self.levels.into_iter().zip(GRANULES) {
            // SAFETY: allocated with this layout in `new`.
            unsafe { dealloc(cells.cast(), Self::layout(self.pages.len(), granule)) }
        }
    }
}

impl Cell {
    fn clear(&self) {
        self.write.store(0, Relaxed);
        self.reads.iter().for_each(|read| read.store(0, Relaxed));
    }

    fn copy(&self, from: &Self) {
        self.write.store(from.write.load(Relaxed), Relaxed);
        for (to, from) in self.reads.iter().zip(&from.reads) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

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
            let replaces = |read: u64| read == 0 || same_thread(read, stamp) || thread.is_plainly_after(read);
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
