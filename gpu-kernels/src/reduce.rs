//! Reductions over a block.

use cuda_std::prelude::*;

#[device]
#[device]
use core::ops::AddAssign;

/// A way to make one value of many, whose order does not matter or is fixed.
#[device]
pub trait Reduce<T> {
    /// Changes nothing.
    const NEUTRAL: T;

    /// Of the lanes' values one, in every lane. All lanes of the warp call it together.
    fn of_warp(value: T) -> T;
}

/// The sum.
#[device]
pub struct Sum;

/// The largest; of f32 that is a number.
#[device]
pub struct Max;

#[device]
impl Reduce<f32> for Sum {
    const NEUTRAL: f32 = 0.0;

    #[inline(always)]
    fn of_warp(value: f32) -> f32 {
        warp::reduce_sum(value)
    }
}

#[device]
impl Reduce<f32> for Max {
    const NEUTRAL: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of_warp(value: f32) -> f32 {
        warp::reduce_max(value)
    }
}

#[device]
impl Reduce<u64> for Max {
    const NEUTRAL: u64 = 0;

    #[inline(always)]
    fn of_warp(value: u64) -> u64 {
        warp::reduce(value, |a, b| if b > a { b } else { a })
    }
}

/// Of the values of a block's `num_warps` warps one, in every thread. The order is fixed: a butterfly in each warp, then one over
/// the warps' values.
///
/// # Safety
/// Every thread of the block, which is one-dimensional, calls it together; `of_warps` has a place for each warp, which nobody
/// reads or writes meanwhile: where it was used before, a barrier comes between.
#[device]
#[inline(always)]
pub unsafe fn block<R: Reduce<T>, T: Bits>(value: T, of_warps: Shared<T>, num_warps: u32) -> T {
    let (lane, value) = (warp::lane_id(), R::of_warp(value));
    // SAFETY: each warp writes its own place; all are written before the barrier.
    unsafe {
        if lane == 0 {
            of_warps.set(warp::warp_id(), value);
        }
        thread::sync_threads();
        R::of_warp(if lane < num_warps { of_warps.get(lane) } else { R::NEUTRAL })
    }
}

/// The sum of `value` over a block of any size; see [`block`]. Once in a launch, since its scratch is one array.
#[device]
#[inline(always)]
pub fn block_sum(value: f32) -> f32 {
    let of_warps = shared_array![f32; 32];
    // SAFETY: a block has at most 32 warps; nobody else has the array.
    unsafe { block::<Sum, f32>(value, of_warps, thread::block_dim_x() / 32) }
}

/// The sum over the threads before this one, and over the block's `num_warps` warps.
///
/// # Safety
/// As [`block`].
#[device]
#[inline(always)]
pub unsafe fn block_scan(value: u64, of_warps: Shared<u64>, num_warps: u32) -> (u64, u64) {
    let through = warp_inclusive_sum(value);
    // SAFETY: each warp writes its own place; all are written before the barrier.
    unsafe {
        if warp::lane_id() == 31 {
            of_warps.set(warp::warp_id(), through);
        }
        thread::sync_threads();
        // Each warp scans the sums of all, by shuffles.
        let lane = warp::lane_id();
        let sum = if lane < num_warps { of_warps.get(lane) } else { 0 };
        let sums = warp_inclusive_sum(sum);
        let before_warp = warp::shuffle_idx(sums - sum, warp::warp_id());
        (before_warp + through - value, warp::shuffle_idx(sums, 31))
    }
}

/// The sum over this and the lower lanes of the warp; all lanes call it together.
#[device]
pub fn warp_inclusive_sum<T: Bits + AddAssign>(mut value: T) -> T {
    let lane = warp::lane_id();
    let mut delta = 1;
    while delta < 32 {
        let lower = warp::shuffle_up(value, delta);
        if lane >= delta {
            value += lower;
        }
        delta *= 2;
    }
    value
}
