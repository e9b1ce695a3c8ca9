//! A projection back to the residual stream, and the residual addition.

use cuda_std::prelude::*;

#[device]
use super::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies};
#[device]
use crate::{
    grid::{offset, repeat},
    vector::Group,
};

/// Threads of a block where rows are short.
pub const SHORT_BLOCK_SIZE: u32 = 256;
/// Threads of a block where rows are long.
pub const LONG_BLOCK_SIZE: u32 = 512;
/// Lanes that compute one column of the output where rows are short.
pub const SHORT_LANES: u32 = 32;
/// Lanes that compute one column of the output where rows are long: several warps.
pub const LONG_LANES: u32 = 128;
/// Columns of weights from which rows are long: with fewer lanes a row would take several rounds of loads, each as long as
/// the memory's latency.
pub const LONG_COLS: u32 = 4096;

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn matmul_add<E: PackedElement, X: Group<4>, const N: usize, const C: usize, const LANES: u32>(
    n: u32,
    rows: u32,
    cols: u32,
    x: *const X,
    weight: *const E,
    out: *mut f32,
) {
    launch_dependents();
    let sums_of_warps = shared_array![f32; 16 * 4];
    let lane = thread::thread_idx_x() % LANES;
    let words = cols / WORD;
    let stage = Stage::new(n, words);
    let rows_per_block = thread::block_dim_x() / LANES;
    let group = thread::thread_idx_x() / LANES;
    let step = thread::grid_dim_x() * rows_per_block;
    let mut first = thread::block_idx_x() * rows_per_block;
    // SAFETY: rows below `rows`; groups beyond the last row compute it again and do not store. The residual is read and
    // written by one lane.
    unsafe {
        let dot = |first: u32| {
            let row = offset((first + group).min(rows - 1), cols, 0);
            Dot::<E, 1, C, LANES>::new([weight.add(row)], words, lane)
        };
        let mut products = dot(first);
        wait_for_dependencies();
        stage.copy(x);
        thread::sync_threads();
        loop {
            let row = first + group;
            let shares = products.shares::<N>(lane, stage);
            first += step;
            // The next weights are under way while these products are added up.
            if first < rows {
                products = dot(first);
            }
            let mut sums = [0.0; N];
            if LANES <= 32 {
                sums = sum_of_lanes::<1, N, LANES>(shares)[0];
            } else {
                repeat(N, |i| {
                    let sum = warp::reduce_sum(shares[0][i]);
                    if warp::lane_id() == 0 {
                        sums_of_warps.set(i as u32 * 16 + warp::warp_id(), sum);
                    }
                });
                thread::sync_threads();
                repeat(N, |i| {
                    repeat((LANES / 32) as usize, |w| {
                        sums[i] += sums_of_warps.get(i as u32 * 16 + group * (LANES / 32) + w as u32);
                    });
                });
            }
            repeat(N, |i| {
                if lane == i as u32 && lane < n && row < rows {
                    let out = out.add(offset(i as u32, rows, row));
                    *out += sums[i];
                }
            });
            if first >= rows {
                return;
            }
            if LANES > 32 {
                // Everybody has read the sums.
                thread::sync_threads();
            }
        }
    }
}

macro_rules! matmul_add {
    ($($name:ident: $rows:literal, $element:ident, $x:ident, $words:literal, $lanes:ident, $block:ident, $max_threads:literal, $min_blocks:literal;)*) => { $(
        #[doc = concat!("`out += x · weightᵀ`, for at most ", stringify!($rows), " rows; ", stringify!($lanes), " lanes a column.")]
        ///
        #[doc = concat!("- `x`: ", stringify!($x), " `[n, cols]`; `weight`: ", stringify!($element), " `[rows, cols]`")]
        /// - `out`: f32 `[n, rows]`
        ///
        #[doc = concat!("Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / (", stringify!($block), " / ", stringify!($lanes), "))`; block `[", stringify!($block), ", 1, 1]`;")]
        /// dynamic shared memory [`stage_bytes`](super::stage_bytes) of `n` rows of `cols`, a multiple of 8.
        ///
        /// # Safety
        /// Grid, block and arrays are as above, aligned to 16 bytes, and do not overlap. Of what the kernels before this one
        /// write, only `x` and `out` are read.
        #[kernel(max_threads = $max_threads, min_blocks = $min_blocks)]
        pub unsafe fn $name(n: u32, rows: u32, cols: u32, x: *const $x, weight: *const $element, out: *mut f32) {
            // SAFETY: the kernel's own contract.
            unsafe { matmul_add::<$element, $x, $rows, $words, $lanes>(n, rows, cols, x, weight, out) }
        }
    )* };
}

matmul_add! {
    matmul_add_f16_f16_short_one: 1, f16, f16, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_bf16_bf16_short_one: 1, bf16, bf16, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_bf16_f32_short_one: 1, bf16, f32, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_f16_f16_long_one: 1, f16, f16, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 2;
    matmul_add_bf16_bf16_long_one: 1, bf16, bf16, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 2;
    matmul_add_bf16_f32_long_one: 1, bf16, f32, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 2;
    matmul_add_f16_f16_short_few: 4, f16, f16, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_bf16_bf16_short_few: 4, bf16, bf16, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_bf16_f32_short_few: 4, bf16, f32, 4, SHORT_LANES, SHORT_BLOCK_SIZE, 256, 3;
    matmul_add_f16_f16_long_few: 4, f16, f16, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 1;
    matmul_add_bf16_bf16_long_few: 4, bf16, bf16, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 1;
    matmul_add_bf16_f32_long_few: 4, bf16, f32, 5, LONG_LANES, LONG_BLOCK_SIZE, 512, 1;
}
