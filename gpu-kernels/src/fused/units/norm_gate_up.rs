//! The first half of the MLP, of weights in units: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_gate_up::NormGateUp;
#[device]
use super::{Normed, Product, Tiles};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset},
    units::*,
    vector::Saturate,
};

/// Columns of the output of a tile, whose first eight rows are of `gate`, the others of `up`: a span of `intermediate_size`.
pub const COLUMNS_PER_TILE: u32 = 8;

/// At most `N` rows, as `G` second operands. `gate` leads to the units of both matrices, `up` to nothing.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `intermediate_size / COLUMNS_PER_TILE`; block `[32 * warps, 1, 1]`, no more warps than a
/// block has units; dynamic shared memory [`ring_bytes`](super::ring_bytes) and [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormGateUp`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    W = [unit_formats!],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "norm_gate_up_{W}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: NormGateUp<u8, f16>) {
    let NormGateUp {
        n,
        hidden_size,
        intermediate_size,
        depth,
        x,
        norm,
        eps,
        gate,
        gate_scale,
        up_scale,
        out,
        ..
    } = a;
    let units = divide(hidden_size, W::COLS).0;
    // SAFETY: the caller's promise.
    unsafe {
        let count = intermediate_size / COLUMNS_PER_TILE;
        let tiles = Tiles::share(gate, count, units, thread::block_idx_x(), thread::grid_dim_x());
        let product = Product::<W, N, G>::begin(tiles, depth);
        let inputs = Normed { x, norm, cols: hidden_size };
        wait_for_dependencies();
        launch_dependents();
        let scale = |squares| crate::norm::scale(squares, hidden_size, eps);
        product.multiply(n, inputs, scale, |tile, _, i, r, gate, up| {
            let (gate, up) = (gate * gate_scale, up * up_scale);
            let value = gate / (1.0 + (-gate).exp()) * up;
            *out.add(offset(i, intermediate_size, tile * COLUMNS_PER_TILE + r)) = f16::round(value);
        });
    }
}
