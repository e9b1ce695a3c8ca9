//! The head on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::stream_bytes;
#[device]
use super::{Normed, Stream, Tiles, row_of_lane};
#[device]
use crate::{
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::offset,
};

/// Columns of the output of a tile.
pub const COLUMNS_PER_TILE: u32 = 16;

/// `out = (x / sqrt(mean(x²) + eps) * norm) · weightᵀ`, for at most 8 rows.
///
/// - `x`: f32 `[n, cols]`; `norm`: f32 `[cols]`; `weight`: f16 `[rows, cols]`
/// - `out`: f32 `[n, rows]`
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / COLUMNS_PER_TILE)`; block `[32 * warps, 1, 1]`, warps from
/// [`MIN_WARPS_OF_EIGHT`](super::MIN_WARPS_OF_EIGHT) to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps)); dynamic shared
/// memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`norm_shared_bytes`](super::norm_shared_bytes) of 8 rows and a [`batch`](super::batch) of tiles. `cols` is a multiple of 8.
///
/// # Safety
/// Grid, block and arrays are as above, aligned to 16 bytes; `out` overlaps nothing. Of what the kernels before this
/// one write, only `x` is read.
#[kernel(max_threads = 512)]
pub unsafe fn norm_matmul_f16_mma_eight(
    n: u32,
    rows: u32,
    cols: u32,
    depth: u32,
    x: *const f32,
    norm: *const f32,
    eps: f32,
    weight: *const f16,
    out: *mut f32,
) {
    launch_dependents();
    let words = cols / WORD;
    let tiles = Tiles::new(rows.div_ceil(COLUMNS_PER_TILE), words);
    let shared = dynamic_shared::<u8>();
    // SAFETY: rows below `rows`; those that stand in for rows beyond the last are not stored.
    unsafe {
        let row = |row: u32| weight.add(offset(row.min(rows - 1), cols, 0));
        let weights = Stream::new(tiles, depth, shared, |tile| {
            let first = tile * COLUMNS_PER_TILE + row_of_lane();
            ([row(first), row(first + 8)], [words; 2])
        });
        let inputs = Normed::<8, 2>::new(n, cols, x, norm);
        wait_for_dependencies();
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, eps, shared, |tile, i, r, low, high| {
            let column = tile * COLUMNS_PER_TILE + r;
            let out = out.add(offset(i, rows, column));
            if column < rows {
                *out = low;
            }
            if column + 8 < rows {
                *out.add(8) = high;
            }
        });
    }
}
