//! Norm and projection: to the vocabulary, and at the beginning of layers that no other kernel begins.

use cuda_std::prelude::*;

use super::{MATMUL_BLOCK_SIZE, MATMUL_LANES, MATMUL_ROWS};
#[device]
use super::{launch_dependents, matmul, wait_for_dependencies};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = MATMUL_BLOCK_SIZE;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / MATMUL_LANES * MATMUL_ROWS;

/// `out = y · weightᵀ` with `y = x / sqrt(mean(x²) + eps) * norm`.
#[kernel_args]
pub struct NormMatmul<E> {
    pub n: u32,
    pub rows: u32,
    pub cols: u32,
    /// Of the stream of the kernels on tensor cores; the others do not look at it.
    pub depth: u32,
    /// f32 `[n, cols]`
    pub x: *const f32,
    /// f32 `[cols]`
    pub norm: *const f32,
    pub eps: f32,
    /// E `[rows, cols]`
    pub weight: *const E,
    /// f32 `[n, rows]`, in rows of `out_stride` values
    pub out: *mut f32,
    pub out_stride: u32,
    /// Of kernels of two formats: rows of the second, whose products come behind the others', the blocks that take them, and their weights.
    pub last_rows: u32,
    pub last_blocks: u32,
    pub last_weight: *const E,
}

/// At most `N` rows.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / COLUMNS_PER_BLOCK)`; block `[BLOCK_SIZE, 1, 1]`;
/// dynamic shared memory [`stage_bytes`](super::stage_bytes) of `n` rows of `cols`, a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormMatmul`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16, bf16],
    N = [one: 1, few: 4],
    name = "norm_matmul_{E}_{N}",
    max_threads = 256,
    min_blocks = 2,
)]
pub unsafe fn lanes<E: PackedElement, const N: usize>(a: NormMatmul<E>) {
    let NormMatmul { n, rows, cols, x, norm, eps, weight, out, out_stride, .. } = a;
    launch_dependents();
    // SAFETY: the kernels' contract; the stage has room for `n` rows.
    unsafe {
        matmul::<E, N>(n, rows, cols, weight, out, out_stride, |stage| {
            let ahead = stage.load_norm(norm);
            wait_for_dependencies();
            stage.copy_normed::<N>(x, norm, ahead, eps)
        });
    }
}
