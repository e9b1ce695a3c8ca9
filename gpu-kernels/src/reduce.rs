//! Reductions over a block.

use cuda_std::prelude::*;

/// The sum of `value` over the block, in every thread. The order is fixed: a butterfly in each warp, then a
/// butterfly over the warps' sums.
///
/// Every thread of the block must call it together, and only once per launch since its scratch is one array. The
/// block is one-dimensional, a multiple of 32 threads.
#[device]
#[inline(always)]
pub fn block_sum(value: f32) -> f32 {
    let sums = shared_array![f32; 32];
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let value = warp::reduce_sum(value);
    if lane == 0 {
        // SAFETY: a block has at most 32 warps; each writes its own place.
        unsafe { sums.set(warp_id, value) }
    }
    thread::sync_threads();
    // SAFETY: every warp wrote its place before the barrier.
    let value = if lane < thread::block_dim_x() / 32 { unsafe { sums.get(lane) } } else { 0.0 };
    warp::reduce_sum(value)
}
