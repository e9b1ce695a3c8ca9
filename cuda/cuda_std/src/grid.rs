//! What whole grids do: a barrier over all blocks, and overlap with the next kernel.
//!
//! Route on the device: the barrier is made of [`thread::sync_threads`] and `atomic`. `griddepcontrol` is an LLVM intrinsic
//! that may touch any memory, so that the compiler keeps loads and stores on their side of it; it is not
//! convergent and need not be, since each thread acts for itself.

use crate::atomic::{AtomicAdd, AtomicWord, Ordering, Scope};
use crate::{target, thread};

/// A barrier for all threads of a grid, in one word of global memory, used any number of times.
///
/// Every block adds 1 to the word, but block 0 adds 2^31 less the number of the others, so that the sum of
/// one use is 2^31: the highest bit flips when the last block arrives, and the other bits are back at their
/// start. So the word needs to be zeroed once, before its first launch, and never again. (The scheme is that
/// of CUDA's cooperative groups.)
#[derive(Clone, Copy)]
pub struct GridBarrier {
    word: *mut u32,
}

impl GridBarrier {
    /// The barrier in `word`.
    ///
    /// # Safety
    /// `word` leads to a `u32` of global memory that was zero before the first kernel that used it, and that
    /// one grid at a time uses, all of it to the end.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(word: *mut u32) -> Self {
        Self { word }
    }

    /// Waits for every thread of the grid. Global memory written by any of them before is seen by all after,
    /// as long as they do not read it through the read-only path (`load_nc…`).
    ///
    /// # Safety
    /// All blocks of the grid are resident at the same time (the launch is cooperative, or the grid is small
    /// enough), and every thread of each calls it.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn sync(self) {
        // SAFETY: the caller's promise here and in `new`.
        unsafe {
            let arrival = self.arrive();
            self.wait(arrival);
        }
    }

    /// The first half of [`sync`](Self::sync): work that needs nothing from other blocks fits between both.
    ///
    /// # Safety
    /// As for [`sync`](Self::sync), with one [`wait`](Self::wait) for each call.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    #[must_use]
    pub unsafe fn arrive(self) -> GridArrival {
        // The release below hands on what the whole block wrote, since the barrier orders it before.
        thread::sync_threads();
        let mut before = 0;
        if thread::index_in_block() == 0 {
            let others = thread::grid_dim_x() * thread::grid_dim_y() * thread::grid_dim_z() - 1;
            let share = if thread::index_of_block() == 0 { 0x8000_0000 - others } else { 1 };
            // SAFETY: the promise of `new`.
            before = unsafe { u32::fetch_add(self.word, share, Ordering::AcqRel, Scope::Device) };
        }
        GridArrival { before }
    }

    /// The second half of [`sync`](Self::sync).
    ///
    /// # Safety
    /// As for [`arrive`](Self::arrive).
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn wait(self, arrival: GridArrival) {
        if thread::index_in_block() == 0 {
            // SAFETY: the promise of `new`.
            while (unsafe { u32::load(self.word, Ordering::Acquire, Scope::Device) } ^ arrival.before) >> 31
                == 0
            {}
        }
        thread::sync_threads();
    }
}

/// What [`GridBarrier::wait`] waits with.
pub struct GridArrival {
    before: u32,
}

/// Lets the next kernel of the stream start when all blocks have called this or ended, if it was launched as
/// a programmatic dependent; otherwise nothing. sm_90.
///
/// Says nothing about memory: what the next kernel reads, it reads after [`wait_for_dependencies`].
#[inline(always)]
pub fn launch_dependents() {
    target::griddepcontrol_launch_dependents();
}

/// Waits until the kernels before this one have finished and their memory is visible, if this one was
/// launched as a programmatic dependent; otherwise nothing. sm_90.
#[inline(always)]
pub fn wait_for_dependencies() {
    target::griddepcontrol_wait();
}
