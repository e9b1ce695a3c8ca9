//! The lanes of a warp, which need no shared memory to tell each other something.

use cuda_std::prelude::*;

/// `out[block]` is the sum of the block's 32 values of `x`. Any 1-d grid of blocks of one warp.
///
/// # Safety
/// Blocks are as above; `x` holds a value for each thread, `out` one for each block; they do not overlap.
#[kernel(max_threads = 32)]
pub unsafe fn sum_shuffled(x: *const f32, out: *mut f32) {
    // SAFETY: a place for each thread and block; all lanes come to each shuffle.
    unsafe {
        let mut sum = *x.add(thread::index_1d() as usize);
        sum += warp::shuffle_xor(sum, 16);
        sum += warp::shuffle_xor(sum, 8);
        sum += warp::shuffle_xor(sum, 4);
        sum += warp::shuffle_xor(sum, 2);
        sum += warp::shuffle_xor(sum, 1);
        if thread::thread_idx_x() == 0 {
            *out.add(thread::block_idx_x() as usize) = sum;
        }
    }
}

/// [`sum_shuffled`] whose first shuffle is for those alone who need its answer.
///
/// # Safety
/// As for [`sum_shuffled`].
#[kernel(max_threads = 32)]
pub unsafe fn sum_shuffled_in_branch(x: *const f32, out: *mut f32) {
    // SAFETY: none: the lanes that are asked are not there.
    unsafe {
        let mut sum = *x.add(thread::index_1d() as usize);
        if thread::thread_idx_x() < 16 {
            sum += warp::shuffle_down(sum, 16);
        }
        sum += warp::shuffle_down(sum, 8);
        sum += warp::shuffle_down(sum, 4);
        sum += warp::shuffle_down(sum, 2);
        sum += warp::shuffle_down(sum, 1);
        if thread::thread_idx_x() == 0 {
            *out.add(thread::block_idx_x() as usize) = sum;
        }
    }
}
