//! Norm and projection, of weights in units: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_matmul::NormMatmul;
#[device]
use super::{Normed, Product, Tiles};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset},
    units::*,
};

/// At most `N` rows, as `G` second operands.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `rows / 16`; block `[32 * warps, 1, 1]`, no more warps than a block has units; dynamic
/// shared memory [`ring_bytes`](super::ring_bytes) and [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormMatmul`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    W = [unit_formats!],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "norm_matmul_{W}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: NormMatmul<u8>) {
    let share = [thread::block_idx_x(), thread::grid_dim_x()];
    // SAFETY: the caller's promise.
    unsafe { project::<W, N, G>(a, share) }
}

/// As [`units`], with the last rows in another format, and in blocks of their own; shared memory is for either.
///
/// # Safety
/// As [`units`]; there are more blocks than `last_blocks`, which is not 0.
#[kernel(
    (W, V) = [(q4_k::q4_k, q6_k::q6_k), (q5_k::q5_k, q6_k::q6_k)],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "norm_matmul_{W}_{V}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn mixed<W: Unit, V: Unit, const N: usize, const G: usize>(a: NormMatmul<u8>) {
    let NormMatmul { rows, out, last_rows, last_blocks, last_weight, .. } = a;
    let (block, others) = (thread::block_idx_x(), thread::grid_dim_x() - last_blocks);
    // SAFETY: the caller's promise; the whole block takes one way.
    unsafe {
        if block < others {
            project::<W, N, G>(a, [block, others]);
        } else {
            let out = out.add(rows as usize);
            let last = NormMatmul { rows: last_rows, weight: last_weight, out, ..a };
            project::<V, N, G>(last, [block - others, last_blocks]);
        }
    }
}

/// A block's share of the rows.
///
/// # Safety
/// As [`units`].
#[device]
#[inline(always)]
unsafe fn project<W: Unit, const N: usize, const G: usize>(a: NormMatmul<u8>, [block, blocks]: [u32; 2]) {
    let NormMatmul { n, rows, cols, depth, x, norm, eps, weight, out, out_stride, .. } = a;
    // SAFETY: the caller's promise.
    unsafe {
        let tiles = Tiles::share(weight, rows / ROWS, divide(cols, W::COLS).0, block, blocks);
        let product = Product::<W, N, G>::begin(tiles, depth);
        let inputs = Normed { x, norm, cols };
        wait_for_dependencies();
        launch_dependents();
        let scale = |squares| crate::norm::scale(squares, cols, eps);
        product.multiply(n, inputs, scale, |tile, _, i, r, low, high| {
            let out = out.add(offset(i, out_stride, tile * ROWS + r));
            *out = low;
            *out.add(8) = high;
        });
    }
}
