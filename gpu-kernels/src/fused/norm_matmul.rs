//! The head: norm and projection to the vocabulary.

use cuda_std::prelude::*;

use super::{MATMUL_BLOCK_SIZE, MATMUL_LANES, MATMUL_ROWS};
#[device]
use super::{launch_dependents, matmul, wait_for_dependencies};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = MATMUL_BLOCK_SIZE;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / MATMUL_LANES * MATMUL_ROWS;

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
    // SAFETY: the kernels' contract; the stage has room for `n` rows.
    unsafe {
        matmul::<E, N>(n, rows, cols, weight, out, |stage| {
            let ahead = stage.load_norm(norm);
            wait_for_dependencies();
            stage.copy_normed::<N>(x, norm, ahead, eps)
        });
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
