//! A reduction in shared memory.

use cuda_std::prelude::*;

/// Threads of a block, and the values that it adds.
pub const TREE_BLOCK: u32 = 256;

/// `out[block]` is the sum of the block's 256 values of `x`. Any 1-d grid of blocks of 256.
///
/// # Safety
/// Blocks are as above; `x` holds a value for each thread, `out` one for each block; they do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn sum_tree(x: *const f32, out: *mut f32) {
    let values = shared_array![f32; TREE_BLOCK as usize];
    let t = thread::thread_idx_x();
    // SAFETY: `t + half` is below 256; between a value's writer and its reader is a barrier.
    unsafe {
        values.set(t, *x.add(thread::index_1d() as usize));
        let mut half = TREE_BLOCK / 2;
        while half > 0 {
            thread::sync_threads();
            if t < half {
                values.set(t, values.get(t) + values.get(t + half));
            }
            half /= 2;
        }
        if t == 0 {
            *out.add(thread::block_idx_x() as usize) = values.get(0);
        }
    }
}

/// [`sum_tree`] whose only barrier is before the loop.
///
/// # Safety
/// As for [`sum_tree`].
#[kernel(max_threads = 256)]
pub unsafe fn sum_tree_without_barrier(x: *const f32, out: *mut f32) {
    let values = shared_array![f32; TREE_BLOCK as usize];
    let t = thread::thread_idx_x();
    // SAFETY: none: what `t + half` adds up may be under way.
    unsafe {
        values.set(t, *x.add(thread::index_1d() as usize));
        thread::sync_threads();
        let mut half = TREE_BLOCK / 2;
        while half > 0 {
            if t < half {
                values.set(t, values.get(t) + values.get(t + half));
            }
            half /= 2;
        }
        if t == 0 {
            *out.add(thread::block_idx_x() as usize) = values.get(0);
        }
    }
}

/// [`sum_tree`] whose barrier is for those alone who have something to add.
///
/// # Safety
/// As for [`sum_tree`].
#[kernel(max_threads = 256)]
pub unsafe fn sum_tree_in_branch(x: *const f32, out: *mut f32) {
    let values = shared_array![f32; TREE_BLOCK as usize];
    let t = thread::thread_idx_x();
    // SAFETY: none: a barrier is for all threads of a block.
    unsafe {
        values.set(t, *x.add(thread::index_1d() as usize));
        thread::sync_threads();
        let mut half = TREE_BLOCK / 2;
        while half > 0 {
            if t < half {
                values.set(t, values.get(t) + values.get(t + half));
                thread::sync_threads();
            }
            half /= 2;
        }
        if t == 0 {
            *out.add(thread::block_idx_x() as usize) = values.get(0);
        }
    }
}
