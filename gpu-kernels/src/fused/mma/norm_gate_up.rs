//! The first half of the MLP on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_gate_up::NormGateUp;
use super::stream_bytes;
#[device]
use super::{Normed, Stream, Tiles, row_of_lane};
#[device]
use crate::{
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::offset,
    silu_mul::silu_mul,
    vector::Saturate,
};

/// Columns of the output of a tile, whose first eight rows are of `gate`, the others of `up`.
pub const COLUMNS_PER_TILE: u32 = 8;

/// At most `N` rows, as `G` second operands.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(intermediate_size / COLUMNS_PER_TILE)`; block
/// `[32 * warps, 1, 1]`, warps from 2 to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps)); dynamic shared
/// memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`norm_shared_bytes`](super::norm_shared_bytes) of `N` rows and a [`batch`](super::batch) of tiles. `hidden_size` is a
/// multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormGateUp`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_gate_up_{E}_mma_{N}",
    max_threads = 512,
)]
pub unsafe fn mma<const N: usize, const G: usize>(a: NormGateUp<f16, f16>) {
    let NormGateUp { n, hidden_size, intermediate_size, depth, x, norm, eps, gate, up, out, .. } = a;
    let NormGateUp { gate_scale, up_scale, .. } = a;
    launch_dependents();
    let words = hidden_size / WORD;
    let tiles = Tiles::new(intermediate_size.div_ceil(COLUMNS_PER_TILE), words);
    let shared = dynamic_shared::<u8>();
    // SAFETY: rows below `intermediate_size`; those that stand in for rows beyond the last are not stored.
    unsafe {
        let weights = Stream::new(tiles, depth, shared, |tile| {
            let column = tile * COLUMNS_PER_TILE + row_of_lane();
            let row = offset(column.min(intermediate_size - 1), hidden_size, 0);
            ([gate.add(row), up.add(row)], [words; 2])
        });
        let inputs = Normed::<N, G>::new(n, hidden_size, x, norm);
        wait_for_dependencies();
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, eps, shared, |tile, i, r, gate, up| {
            let column = tile * COLUMNS_PER_TILE + r;
            if column < intermediate_size {
                let value = silu_mul(gate * gate_scale, up * up_scale);
                *out.add(offset(i, intermediate_size, column)) = f16::round(value);
            }
        });
    }
}
