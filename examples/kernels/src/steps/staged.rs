//! Copies to shared memory that run while the thread goes on, and fragments that are loaded from there.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    async_copy,
    mma::{self, MmaElement},
};

/// `c = a · bᵀ` as [`product_of_warp`](crate::steps::product_of_warp) has it, by way of shared memory.
///
/// # Safety
/// As there, with arrays that are aligned to 16 bytes.
#[kernel(max_threads = 32)]
pub unsafe fn product_staged(a: *const f16, b: *const f16, c: *mut f32) {
    let (tile_a, tile_b) = (shared_array![f16; 16 * 16], shared_array![f16; 8 * 16]);
    let lane = thread::thread_idx_x();
    // SAFETY: 16 bytes of `a` for each lane, of `b` for half of them; tiles are read when all copies are there.
    unsafe {
        async_copy::copy_16(tile_a.add(8 * lane), a.add(8 * lane as usize));
        if lane < 16 {
            async_copy::copy_16(tile_b.add(8 * lane), b.add(8 * lane as usize));
        }
        async_copy::wait_all(); // This thread's copies are there,
        thread::sync_threads(); // and now those of all threads.
        let a = mma::ldmatrix_x4(tile_a.add(16 * (lane % 16) + 8 * (lane / 16)));
        let b = mma::ldmatrix_x2(tile_b.add(16 * (lane % 8) + 8 * (lane / 8 % 2)));
        let sums = f16::mma_m16n8k16(a, b, [0.0; 4]);
        let to = c.add((8 * (lane / 4) + 2 * (lane % 4)) as usize);
        (*to, *to.add(1)) = (sums[0], sums[1]);
        (*to.add(64), *to.add(65)) = (sums[2], sums[3]);
    }
}

/// [`product_staged`] that takes the barrier for enough.
///
/// # Safety
/// As for [`product_staged`].
#[kernel(max_threads = 32)]
pub unsafe fn product_without_wait(a: *const f16, b: *const f16, c: *mut f32) {
    let (tile_a, tile_b) = (shared_array![f16; 16 * 16], shared_array![f16; 8 * 16]);
    let lane = thread::thread_idx_x();
    // SAFETY: none: copies may be under way when the tiles are read.
    unsafe {
        async_copy::copy_16(tile_a.add(8 * lane), a.add(8 * lane as usize));
        if lane < 16 {
            async_copy::copy_16(tile_b.add(8 * lane), b.add(8 * lane as usize));
        }
        thread::sync_threads();
        let a = mma::ldmatrix_x4(tile_a.add(16 * (lane % 16) + 8 * (lane / 16)));
        let b = mma::ldmatrix_x2(tile_b.add(16 * (lane % 8) + 8 * (lane / 8 % 2)));
        let sums = f16::mma_m16n8k16(a, b, [0.0; 4]);
        let to = c.add((8 * (lane / 4) + 2 * (lane % 4)) as usize);
        (*to, *to.add(1)) = (sums[0], sums[1]);
        (*to.add(64), *to.add(65)) = (sums[2], sums[3]);
    }
}
