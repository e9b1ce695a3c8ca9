//! The head: norm and projection to the vocabulary.

use cuda_std::prelude::*;

#[device]
use super::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies};
#[device]
use crate::grid::{offset, repeat};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Lanes that compute [`ROWS`] columns of the output.
pub const LANES: u32 = 16;
/// Rows of weights that share one read of the inputs.
pub const ROWS: u32 = 2;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / LANES * ROWS;

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn norm_matmul<E: PackedElement, const N: usize>(
    n: u32,
    rows: u32,
    cols: u32,
    x: *const f32,
    norm: *const f32,
    eps: f32,
    weight: *const E,
    out: *mut f32,
) {
    launch_dependents();
    let lane = thread::thread_idx_x() % LANES;
    let words = cols / WORD;
    let stage = Stage::new(n, words);
    let step = thread::grid_dim_x() * COLUMNS_PER_BLOCK;
    let mut first = thread::block_idx_x() * COLUMNS_PER_BLOCK + thread::thread_idx_x() / LANES * ROWS;
    // SAFETY: rows below `rows`; groups beyond the last row compute it again and do not store. Every lane of a warp
    // makes the same number of rounds.
    unsafe {
        let dot = |first: u32| {
            let row = |r: u32| weight.add(offset((first + r).min(rows - 1), cols, 0));
            Dot::<E, { ROWS as usize }, 7, LANES>::new([row(0), row(1)], words, lane)
        };
        let mut products = dot(first);
        let ahead = stage.load_norm(norm);
        wait_for_dependencies();
        let scales = stage.copy_normed::<N>(x, norm, ahead, eps);
        let mut block_first = thread::block_idx_x() * COLUMNS_PER_BLOCK;
        loop {
            let shares = products.shares::<N>(lane, stage);
            let this = first;
            first += step;
            block_first += step;
            // The next weights are under way while these products are added up.
            if block_first < rows {
                products = dot(first);
            }
            let sums = sum_of_lanes::<{ ROWS as usize }, N, LANES>(shares);
            repeat(N, |i| {
                repeat(ROWS as usize, |r| {
                    let row = this + r as u32;
                    if lane == (i * ROWS as usize + r) as u32 && (i as u32) < n && row < rows {
                        *out.add(offset(i as u32, rows, row)) = sums[r][i] * scales[i];
                    }
                });
            });
            if block_first >= rows {
                return;
            }
        }
    }
}

macro_rules! norm_matmul {
    ($($name:ident: $rows:literal, $element:ident;)*) => { $(
        #[doc = concat!("`out = y · weightᵀ` with `y = x / sqrt(mean(x²) + eps) * norm`, for at most ", stringify!($rows), " rows.")]
        ///
        /// - `x`: f32 `[n, cols]`; `norm`: f32 `[cols]`
        #[doc = concat!("- `weight`: ", stringify!($element), " `[rows, cols]`")]
        /// - `out`: f32 `[n, rows]`
        ///
        /// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / COLUMNS_PER_BLOCK)`; block `[BLOCK_SIZE, 1, 1]`;
        /// dynamic shared memory [`stage_bytes`](super::stage_bytes) of `n` rows of `cols`, a multiple of 8.
        ///
        /// # Safety
        /// Grid, block and arrays are as above, aligned to 16 bytes; `out` overlaps nothing. Of what the kernels before this
        /// one write, only `x` is read.
        #[kernel(max_threads = 256, min_blocks = 2)]
        pub unsafe fn $name(
            n: u32,
            rows: u32,
            cols: u32,
            x: *const f32,
            norm: *const f32,
            eps: f32,
            weight: *const $element,
            out: *mut f32,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { norm_matmul::<$element, $rows>(n, rows, cols, x, norm, eps, weight, out) }
        }
    )* };
}

norm_matmul! {
    norm_matmul_f16_one: 1, f16;
    norm_matmul_bf16_one: 1, bf16;
    norm_matmul_f16_few: 4, f16;
    norm_matmul_bf16_few: 4, bf16;
}
