//! A projection back to the residual stream on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::super::matmul_add::MatmulAdd;
use super::stream_bytes;
#[device]
use super::{Halves, Stream, Tiles, halves, row_of_lane};
#[device]
use crate::{
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::offset,
};
#[device]
use cuda_std::memory;

/// Columns of the output of a tile.
pub const COLUMNS_PER_TILE: u32 = 8;

/// At most `N` rows, as `G` second operands.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(rows / COLUMNS_PER_TILE)`; block `[32 * warps, 1, 1]`, warps from 2
/// to [`MAX_MATMUL_WARPS`](super::MAX_MATMUL_WARPS) ([`num_warps`](super::num_warps) of half the columns); dynamic shared
/// memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`matmul_shared_bytes`](super::matmul_shared_bytes) of `N` rows and a [`batch`](super::batch) of tiles. `cols` is a multiple of 8.
///
/// More threads are allowed than the first are launched with: few enough registers that `norm_gate_up` fits beside them.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulAdd`], are aligned to 16 bytes and do not overlap. Of what the
/// kernels before this one write, only `x` and `out` are read.
#[kernel(
    E = [f16],
    (N, G, THREADS) = [one: (1, 1, 1024), few: (4, 1, 1024), eight: (8, 2, 640)],
    name = "matmul_add_{E}_mma_{N}",
    max_threads = THREADS,
)]
pub unsafe fn mma<const N: usize, const G: usize>(a: MatmulAdd<f16, f16>) {
    let MatmulAdd { n, rows, cols, depth, scale, x, weight, out } = a;
    launch_dependents();
    let words = cols / WORD;
    let halves = halves(words);
    let tiles = Tiles::new(rows.div_ceil(COLUMNS_PER_TILE), halves[0]);
    let shared = dynamic_shared::<u8>();
    // SAFETY: rows below `rows`; those that stand in for rows beyond the last are not stored. One thread reads and writes each
    // place of the residual.
    unsafe {
        let weights = Stream::new(tiles, depth, shared, |tile| {
            let row = (tile * COLUMNS_PER_TILE + row_of_lane()).min(rows - 1);
            let row = weight.add(offset(row, cols, 0));
            ([row, row.add((halves[0] * WORD) as usize)], halves)
        });
        wait_for_dependencies();
        let inputs = Halves::<N, G>::new(n, words, x);
        // Of the first tile, so that it need not be waited for in the end: thread `8 i + r` has column `r` of row `i`.
        let (i, r) = (thread::thread_idx_x() / COLUMNS_PER_TILE, thread::thread_idx_x() % COLUMNS_PER_TILE);
        let first = thread::block_idx_x();
        let column = first * COLUMNS_PER_TILE + r;
        let residual = if i < n && column < rows {
            memory::load_l2(out.add(offset(i, rows, column)).cast_const())
        } else {
            0.0
        };
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, n, shared.cast(), |tile, i, r, product| {
            let column = tile * COLUMNS_PER_TILE + r;
            if column < rows {
                let out = out.add(offset(i, rows, column));
                *out = if tile == first && tiles.count <= thread::grid_dim_x() { residual } else { *out }
                    + product * scale;
            }
        });
    }
}
