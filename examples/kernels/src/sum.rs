//! A reduction: lanes of a warp by shuffles, warps of a block through shared memory, blocks by a second launch.

use cuda_std::prelude::*;

/// Threads of a block.
pub const SUM_BLOCK: u32 = 256;
/// Warps of a block.
pub const WARPS: usize = 8;

/// `out[block]` is the sum of what the block's threads find: of `x[i]` for `i < n` over the whole grid. Launched once more with
/// one block over `out`, it gives the sum itself. Any 1-d grid of blocks of [`SUM_BLOCK`] threads.
///
/// # Safety
/// Grid and block are as above; `x` holds `n` values, `out` one for each block; they do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn sum(n: u32, x: *const f32, out: *mut f32) {
    let of_warps = shared_array![f32; WARPS];
    // SAFETY: the caller's promise; every thread of the block comes here.
    unsafe {
        let sum = of_block(of_thread(n, x), 0.0, |value| warp::reduce_sum(value), of_warps, true);
        if thread::thread_idx_x() == 0 {
            *out.add(thread::block_idx_x() as usize) = sum;
        }
    }
}

/// [`sum`] as one writes it in a hurry: warps read what the others write without waiting for them. On a GPU it is right most of
/// the time. The emulator says what is wrong with it, and where.
///
/// # Safety
/// As for [`sum`].
#[kernel(max_threads = 256)]
pub unsafe fn sum_without_barrier(n: u32, x: *const f32, out: *mut f32) {
    let of_warps = shared_array![f32; WARPS];
    // SAFETY: none: that is what the emulator is to find.
    unsafe {
        if thread::thread_idx_x() < WARPS as u32 {
            of_warps.set(thread::thread_idx_x(), 0.0);
        }
        thread::sync_threads();
        let sum = of_block(of_thread(n, x), 0.0, |value| warp::reduce_sum(value), of_warps, false);
        if thread::thread_idx_x() == 0 {
            *out.add(thread::block_idx_x() as usize) = sum;
        }
    }
}

/// The sum of every value that is a grid further than the one before.
#[device]
#[inline(always)]
unsafe fn of_thread(n: u32, x: *const f32) -> f32 {
    let mut sum = 0.0;
    let mut i = thread::index_1d();
    while i < n {
        // SAFETY: below `n`.
        sum += unsafe { *x.add(i as usize) };
        i += thread::grid_dim_x() * thread::block_dim_x();
    }
    sum
}

/// Of the values of the block's threads one, in every thread; `of_warp` makes one of a warp's, for which `neutral` is nothing.
///
/// # Safety
/// Every thread of a block of [`WARPS`] warps comes here together, with a `barrier`; `of_warps` is nobody else's.
#[device]
#[inline(always)]
pub(crate) unsafe fn of_block(
    value: f32,
    neutral: f32,
    of_warp: impl Fn(f32) -> f32,
    of_warps: Shared<f32>,
    barrier: bool,
) -> f32 {
    let (warp, lane) = (thread::thread_idx_x() / 32, thread::thread_idx_x() % 32);
    let value = of_warp(value);
    if lane == 0 {
        // SAFETY: a place for each warp.
        unsafe { of_warps.set(warp, value) };
    }
    if barrier {
        thread::sync_threads();
    }
    // SAFETY: below the number of warps, all of which have written.
    let value = if lane < WARPS as u32 { unsafe { of_warps.get(lane) } } else { neutral };
    of_warp(value)
}

/// What two launches of [`sum`] must give, the first with `num_blocks` blocks. A value is added to others of its thread, five
/// times in its warp and five times in its block, and as often again in the second launch.
#[cfg(not(target_arch = "nvptx64"))]
pub fn sum_reference(x: &[f32], num_blocks: usize) -> crate::Expected {
    let of_threads =
        x.len().div_ceil(num_blocks * SUM_BLOCK as usize) + num_blocks.div_ceil(SUM_BLOCK as usize);
    crate::Expected::sum(x.iter().map(|&x| f64::from(x)), of_threads + 20)
}
