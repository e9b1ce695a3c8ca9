//! What blocks can tell each other.

#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};
use cuda_std::prelude::*;

/// Adds the values of `x` to `*total`. Any 1-d grid of blocks of one warp.
///
/// # Safety
/// Blocks are as above; `x` holds a value for each thread; `total` is one value.
#[kernel(max_threads = 32)]
pub unsafe fn total(x: *const f32, total: *mut f32) {
    // SAFETY: a place for each thread; all lanes come to the reduction.
    unsafe {
        let sum = warp::reduce_sum(*x.add(thread::index_1d() as usize));
        if thread::thread_idx_x() == 0 {
            f32::add(total, sum, Ordering::Relaxed, Scope::Device);
        }
    }
}

/// [`total`] with `+=`: a load, an addition and a store, and other blocks between them.
///
/// # Safety
/// As for [`total`].
#[kernel(max_threads = 32)]
pub unsafe fn total_without_atomic(x: *const f32, total: *mut f32) {
    // SAFETY: none: every block has the same place.
    unsafe {
        let sum = warp::reduce_sum(*x.add(thread::index_1d() as usize));
        if thread::thread_idx_x() == 0 {
            *total += sum;
        }
    }
}
