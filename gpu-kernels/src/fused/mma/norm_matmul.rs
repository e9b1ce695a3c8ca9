//! Norm and projection on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_matmul::NormMatmul;
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

/// At most `N` rows, as `G` second operands.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / COLUMNS_PER_TILE)`; block `[32 * warps, 1, 1]`, warps from 2, of eight rows
/// [`MIN_WARPS_OF_EIGHT`](super::MIN_WARPS_OF_EIGHT), to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps)); dynamic shared
/// memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`norm_shared_bytes`](super::norm_shared_bytes) of `N` rows and a [`batch`](super::batch) of tiles. `cols` is a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormMatmul`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_matmul_{E}_mma_{N}",
    max_threads = 512,
)]
pub unsafe fn mma<const N: usize, const G: usize>(a: NormMatmul<f16>) {
    let NormMatmul { n, rows, cols, depth, x, norm, eps, weight, out, out_stride, .. } = a;
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
        let inputs = Normed::<N, G>::new(n, cols, x, norm);
        wait_for_dependencies();
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, eps, shared, |tile, i, r, low, high| {
            let column = tile * COLUMNS_PER_TILE + r;
            let out = out.add(offset(i, out_stride, column));
            if column < rows {
                *out = low;
            }
            if column + 8 < rows {
                *out.add(8) = high;
            }
        });
    }
}
