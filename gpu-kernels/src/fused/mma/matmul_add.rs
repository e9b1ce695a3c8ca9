//! A projection back to the residual stream on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::MAX_MATMUL_WARPS;
#[device]
use super::{Halves, Weights, halves, row_of_lane};
#[device]
use crate::{
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::{offset, repeat},
};
#[device]
use cuda_std::memory;

/// Columns of the output that a block computes.
pub const COLUMNS_PER_BLOCK: u32 = 8;

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn matmul_add<const N: usize>(
    n: u32,
    rows: u32,
    cols: u32,
    x: *const f16,
    weight: *const f16,
    out: *mut f32,
    sums_of_warps: Shared<f32>,
) {
    launch_dependents();
    let first = thread::block_idx_x() * COLUMNS_PER_BLOCK;
    let words = cols / WORD;
    let num_warps = thread::block_dim_x() / 32;
    let (lane, thread) = (warp::lane_id(), thread::thread_idx_x());
    // Threads that add the warps' sums: one for each input row and each column of the block.
    let (row_of_thread, column) = (thread / COLUMNS_PER_BLOCK, first + thread % COLUMNS_PER_BLOCK);
    let is_adding = row_of_thread < n && column < rows;
    // SAFETY: rows below `rows`; those that stand in for rows beyond the last are not stored. The barrier orders the sums of the
    // warps against their reader, and one thread reads and writes each place of the residual.
    unsafe {
        let halves = halves(words);
        let row = weight.add(offset((first + row_of_lane()).min(rows - 1), cols, 0));
        let weights = Weights::new([row, row.add((halves[0] * WORD) as usize)], halves);
        wait_for_dependencies();
        let inputs = Halves::<N>::new(n, words, x);
        let residual = out.add(offset(row_of_thread, rows, column));
        let before = if is_adding { memory::load_l2(residual.cast_const()) } else { 0.0 };
        let sum = inputs.multiply(weights);
        if lane % 4 < N as u32 {
            sums_of_warps
                .set((warp::warp_id() * N as u32 + lane % 4) * COLUMNS_PER_BLOCK + row_of_lane(), sum);
        }
        thread::sync_threads();
        if is_adding {
            let mut sum = 0.0;
            let mut first = 0;
            while first < num_warps {
                repeat(10, |w| {
                    let w = first + w as u32;
                    if w < num_warps {
                        sum += sums_of_warps.get(w * N as u32 * COLUMNS_PER_BLOCK + thread);
                    }
                });
                first += 10;
            }
            *residual = before + sum;
        }
    }
}

macro_rules! matmul_add {
    ($($name:ident: $rows:literal;)*) => { $(
        #[doc = concat!("`out += x · weightᵀ`, for at most ", stringify!($rows), " rows.")]
        ///
        /// - `x`: f16 `[n, cols]`; `weight`: f16 `[rows, cols]`
        /// - `out`: f32 `[n, rows]`
        ///
        /// Grid `[ceil(rows / COLUMNS_PER_BLOCK), 1, 1]`; block `[32 * warps, 1, 1]`, warps from 2 to
        /// [`MAX_MATMUL_WARPS`](super::MAX_MATMUL_WARPS) ([`num_warps`](super::num_warps) of half the columns). `cols` is a
        /// multiple of 8.
        ///
        /// # Safety
        /// Grid, block and arrays are as above, aligned to 16 bytes, and do not overlap. Of what the kernels before this one
        /// write, only `x` and `out` are read.
        #[kernel(max_threads = 640, min_blocks = 1)]
        pub unsafe fn $name(n: u32, rows: u32, cols: u32, x: *const f16, weight: *const f16, out: *mut f32) {
            let sums = shared_array![f32; (MAX_MATMUL_WARPS * COLUMNS_PER_BLOCK) as usize * $rows];
            // SAFETY: the kernel's own contract.
            unsafe { matmul_add::<$rows>(n, rows, cols, x, weight, out, sums) }
        }
    )* };
}

matmul_add! {
    matmul_add_f16_mma_one: 1;
    matmul_add_f16_mma_few: 4;
}
