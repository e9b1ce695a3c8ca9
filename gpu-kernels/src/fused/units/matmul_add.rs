//! A projection back to the residual stream, of weights in units: see the [module](super).

use cuda_std::prelude::*;

#[device]
use super::{Plain, Product, Tiles};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset},
    units::*,
};
#[device]
use cuda_std::memory;

/// `out += x · weightᵀ`, or `out = x · weightᵀ`.
#[kernel_args]
pub struct MatmulUnits {
    pub n: u32,
    pub rows: u32,
    pub cols: u32,
    /// From one row of `out` to the next, in values.
    pub out_stride: u32,
    /// Whether products are added to what is there, if not 0.
    pub accumulate: u32,
    /// Units of each warp that are under way.
    pub depth: u32,
    /// See [`crate::units`].
    pub span: u32,
    /// f16 `[n, cols]`
    pub x: *const f16,
    /// `[rows, cols]` in units
    pub weight: *const u8,
    /// f32 `[n, rows]`, in rows of `out_stride` values
    pub out: *mut f32,
}

/// At most `N` rows, as `G` second operands.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `rows / 16`; block `[32 * warps, 1, 1]` of [`num_warps`](super::num_warps); dynamic
/// shared memory [`ring_bytes`](super::ring_bytes) and [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulUnits`], are aligned to 16 bytes and do not overlap. Of what the
/// kernels before this one write, only `x` and `out` are read.
#[kernel(
    W = [q4_0::q4_0, q4_k::q4_k, q5_0::q5_0, q5_k::q5_k, q6_k::q6_k, q8_0::q8_0],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "matmul_add_{W}_units_{N}",
    max_threads = 512,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: MatmulUnits) {
    let MatmulUnits { n, rows, cols, out_stride, accumulate, depth, span, x, weight, out } = a;
    launch_dependents();
    // SAFETY: the caller's promise. One thread reads and writes each place of the residual.
    unsafe {
        let tiles = Tiles::strided(weight, rows / ROWS, divide(cols, W::COLS).0);
        let product = Product::<W, N, G>::begin(tiles, depth);
        wait_for_dependencies();
        // Of the first tile, so that it need not be waited for in the end: thread `16 i + r` has rows `r` and `r + 8` with input row `i`.
        let (first, i, r) = (thread::block_idx_x(), thread::thread_idx_x() / 16, thread::thread_idx_x() % 8);
        let column = row_of(first, r, span);
        let mut residual = [0.0; 2];
        if accumulate != 0 && i < n {
            let out = out.add(offset(i, out_stride, column)).cast_const();
            residual = [memory::load_l2(out), memory::load_l2(out.add(span as usize))];
        }
        let is_known = tiles.count <= thread::grid_dim_x() && 16 * N as u32 <= thread::block_dim_x();
        product.multiply(
            n,
            Plain { x, cols },
            |squares| squares,
            |tile, i, r, low, high| {
                let out = out.add(offset(i, out_stride, row_of(tile, r, span)));
                let second = out.add(span as usize);
                if accumulate == 0 {
                    (*out, *second) = (low, high);
                } else if is_known {
                    (*out, *second) = (residual[0] + low, residual[1] + high);
                } else {
                    (*out, *second) = (*out + low, *second + high);
                }
            },
        );
    }
}
