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

/// `out += scale * (x · weightᵀ)`
#[kernel_args]
pub struct MatmulAdd<E, X> {
    pub n: u32,
    pub rows: u32,
    pub cols: u32,
    /// Of the stream of the kernels on tensor cores; the others do not look at it.
    pub depth: u32,
    pub scale: f32,
    /// X `[n, cols]`
    pub x: *const X,
    /// E `[rows, cols]`
    pub weight: *const E,
    /// f32 `[n, rows]`
    pub out: *mut f32,
}

/// At most `N` rows; [`SHORT_LANES`] lanes a column.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / (SHORT_BLOCK_SIZE / SHORT_LANES))`; block `[SHORT_BLOCK_SIZE,
/// 1, 1]`; dynamic shared memory [`stage_bytes`](super::stage_bytes) of `n` rows of `cols`, a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulAdd`], are aligned to 16 bytes and do not overlap. Of what the
/// kernels before this one write, only `x` and `out` are read.
#[kernel(
    (E, X) = [(f16, f16), (bf16, bf16), (bf16, f32)],
    N = [one: 1, few: 4],
    name = "matmul_add_{E}_{X}_short_{N}",
    max_threads = 256,
    min_blocks = 3,
)]
pub unsafe fn short<E: PackedElement, X: Group<4>, const N: usize>(a: MatmulAdd<E, X>) {
    // SAFETY: the kernel's own contract.
    unsafe { matmul_add::<E, X, N, 4, SHORT_LANES>(a) }
}

/// At most `N` rows; [`LONG_LANES`] lanes a column.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / (LONG_BLOCK_SIZE / LONG_LANES))`; block `[LONG_BLOCK_SIZE, 1,
/// 1]`; shared memory as for [`short`].
///
/// # Safety
/// As for [`short`], with this grid and block.
#[kernel(
    (E, X) = [(f16, f16), (bf16, bf16), (bf16, f32)],
    (N, BLOCKS) = [one: (1, 2), few: (4, 1)],
    name = "matmul_add_{E}_{X}_long_{N}",
    max_threads = 512,
    min_blocks = BLOCKS,
)]
pub unsafe fn long<E: PackedElement, X: Group<4>, const N: usize>(a: MatmulAdd<E, X>) {
    // SAFETY: the kernel's own contract.
    unsafe { matmul_add::<E, X, N, 5, LONG_LANES>(a) }
}

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn matmul_add<E: PackedElement, X: Group<4>, const N: usize, const C: usize, const LANES: u32>(
    a: MatmulAdd<E, X>,
) {
    let MatmulAdd { n, rows, cols, scale, x, weight, out, .. } = a;
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
                    *out += sums[i] * scale;
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
