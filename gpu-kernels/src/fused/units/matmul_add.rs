//! A projection back to the residual stream, of weights in units: see the [module](super).

use cuda_std::prelude::*;

#[device]
use super::{Picked, Product, Tiles};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, is_last_block, offset, repeat},
    units::*,
};
#[device]
use cuda_std::memory;

/// `out += scale · x · weightᵀ`, or `out = scale · x · weightᵀ`, of some rows of the weights.
#[kernel_args]
pub struct MatmulUnits {
    pub n: u32,
    /// Rows of all tiles.
    pub rows: u32,
    pub cols: u32,
    /// The rows that are multiplied; products with others are not stored.
    pub first_row: u32,
    pub num_rows: u32,
    pub scale: f32,
    /// From one row of `out` to the next, in values.
    pub out_stride: u32,
    /// Whether products are added to what is there, if not 0.
    pub accumulate: u32,
    /// Units of each warp that are under way.
    pub depth: u32,
    /// See [`crate::units`].
    pub span: u32,
    /// Parts of the columns, which blocks of their own multiply.
    pub slices: u32,
    /// f16 `[n, cols]`
    pub x: *const f16,
    /// `[rows, cols]` in units
    pub weight: *const u8,
    /// f32 `[n, num_rows]`, in rows of `out_stride` values
    pub out: *mut f32,
    /// f32 `[slices, n, rows]`, where there are several: what each has of the products
    pub partial: *mut f32,
    /// u32, a zero for each group of blocks
    pub counters: *mut u32,
}

/// Slices that are loaded before the first of them is added, so that their latencies overlap.
#[device]
const SLICES_AT_ONCE: usize = 4;

/// At most `N` rows, as `G` second operands. Where columns are sliced, the block of a group that ends last adds up what all have, in the order of the
/// slices.
///
/// Grid `[groups * slices, 1, 1]`, any number of groups from 1 to `rows / 16`, slices from 1 to the units of a row; block `[32 * warps, 1, 1]`, no more
/// warps than a block has units; dynamic shared memory [`ring_bytes`](super::ring_bytes) and [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulUnits`], are aligned to 16 bytes and do not overlap. Of what the
/// kernels before this one write, only `x`, `out`, `partial` and `counters` are used.
#[kernel(
    W = [unit_formats!],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "matmul_add_{W}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: MatmulUnits) {
    let MatmulUnits { n, rows, cols, out_stride, accumulate, depth, span, slices, .. } = a;
    let MatmulUnits { first_row, num_rows, scale, x, weight, out, partial, counters, .. } = a;
    let (group, slice) = divide(thread::block_idx_x(), slices);
    let groups = divide(thread::grid_dim_x(), slices).0;
    // SAFETY: the caller's promise. One thread reads and writes each place of the residual.
    unsafe {
        let units = divide(cols, W::COLS).0;
        let tiles = Tiles::slice(weight, rows / ROWS, units, [group, groups], [slice, slices]);
        let product = Product::<W, N, G>::begin(tiles, depth);
        wait_for_dependencies();
        launch_dependents();
        // Adds the product of input row `i` with row `row`, if it is one of those; `before` is what is there, where that is known.
        let store = |i: u32, row: u32, product: f32, before: Option<f32>| {
            if row >= first_row && row - first_row < num_rows {
                let out = out.add(offset(i, out_stride, row - first_row));
                let product = product * scale;
                *out = if accumulate == 0 {
                    product
                } else if let Some(before) = before {
                    before + product
                } else {
                    *out + product
                };
            }
        };
        if slices == 1 {
            // Of a tile that this warp finishes, so that it need not be waited for in the end.
            let tile = product.last_tile();
            let lane = warp::lane_id();
            let (r, input) = (lane / 4, if N == 1 { 0 } else { lane % 4 });
            let whole = first_row == 0 && num_rows == rows;
            let mut residual = [[0.0f32; 2]; G];
            if accumulate != 0 && whole {
                repeat(G, |g| {
                    let i = 4 * g as u32 + input;
                    if i < n {
                        let out = out.add(offset(i, out_stride, row_of(tile, r, span))).cast_const();
                        residual[g] = [memory::load_l2(out), memory::load_l2(out.add(span as usize))];
                    }
                });
            }
            product.multiply(
                n,
                Picked { x, cols, row: |i| i },
                |squares| squares,
                |found, g, i, r, low, high| {
                    let row = row_of(found, r, span);
                    let known = whole && found == tile;
                    store(i, row, low, known.then_some(residual[g][0]));
                    store(i, row + span, high, known.then_some(residual[g][1]));
                },
            );
            return;
        }
        product.multiply(
            n,
            Picked { x, cols, row: |i| i },
            |squares| squares,
            |tile, _, i, r, low, high| {
                let to = partial.add(offset(slice * n + i, rows, tile * ROWS + r));
                memory::store(to, low);
                memory::store(to.add(8), high);
            },
        );
        if !is_last_block(counters.add(group as usize), slices, shared_array![u32; 1]) {
            return;
        }
        // Four rows of a tile a thread, which follow each other in the matrix as well.
        let mut t = 4 * thread::thread_idx_x();
        while t < tiles.count() * ROWS * n {
            let (i, place) = divide(t, tiles.count() * ROWS);
            let row = tiles.first() * ROWS + place;
            let mut sums = [0.0f32; 4];
            let mut slice = 0;
            while slice < slices {
                let mut values = [[0.0f32; 4]; SLICES_AT_ONCE];
                repeat(SLICES_AT_ONCE, |s| {
                    let slice = slice + s as u32;
                    if slice < slices {
                        let from = partial.add(offset(slice * n + i, rows, row)).cast_const();
                        values[s] = memory::load_l2(from.cast::<[f32; 4]>());
                    }
                });
                // In the order of the slices; what is not there adds nothing.
                repeat(SLICES_AT_ONCE, |s| repeat(4, |k| sums[k] += values[s][k]));
                slice += SLICES_AT_ONCE as u32;
            }
            let first = row_of(row / ROWS, row % ROWS, span);
            repeat(4, |k| store(i, first + k as u32, sums[k], None));
            t += 4 * thread::block_dim_x();
        }
    }
}
