//! Threads and blocks.

use cuda_std::prelude::*;

/// `out[i] = 100 * block + thread`, `i` counting the threads of all blocks. Any 1-d grid.
///
/// # Safety
/// `out` holds a value for each thread of the grid.
#[kernel]
pub unsafe fn numbers(out: *mut u32) {
    let (block, thread) = (thread::block_idx_x(), thread::thread_idx_x());
    let i = block * thread::block_dim_x() + thread;
    // SAFETY: a place for each thread.
    unsafe { *out.add(i as usize) = 100 * block + thread };
}
