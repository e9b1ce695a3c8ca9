//! The first half of the MLP on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::stream_bytes;
#[device]
use super::{Normed, Stream, Tiles, row_of_lane};
#[device]
use crate::{
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::offset,
    vector::Saturate,
};

/// Columns of the output of a tile, whose first eight rows are of `gate`, the others of `up`.
pub const COLUMNS_PER_TILE: u32 = 8;

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn norm_gate_up<const N: usize, const G: usize>(
    n: u32,
    hidden_size: u32,
    intermediate_size: u32,
    depth: u32,
    x: *const f32,
    norm: *const f32,
    eps: f32,
    gate: *const f16,
    up: *const f16,
    out: *mut f16,
) {
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
                let value = gate / (1.0 + (-gate).exp()) * up;
                *out.add(offset(i, intermediate_size, column)) = f16::round(value);
            }
        });
    }
}

macro_rules! norm_gate_up {
    ($($name:ident: $rows:literal, $groups:literal;)*) => { $(
        #[doc = concat!("`out = silu(y · gateᵀ) * (y · upᵀ)` with `y = x / sqrt(mean(x²) + eps) * norm`, for at most ", stringify!($rows), " rows.")]
        ///
        /// - `x`: f32 `[n, hidden_size]`; `norm`: f32 `[hidden_size]`
        /// - `gate`, `up`: f16 `[intermediate_size, hidden_size]`
        /// - `out`: f16 `[n, intermediate_size]`
        ///
        /// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(intermediate_size / COLUMNS_PER_TILE)`; block
        /// `[32 * warps, 1, 1]`, warps from 2 to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps)); dynamic shared
        /// memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
        #[doc = concat!("[`norm_shared_bytes`](super::norm_shared_bytes) of ", stringify!($rows), " rows and a [`batch`](super::batch) of tiles. `hidden_size` is a multiple of 8.")]
        ///
        /// # Safety
        /// Grid, block and arrays are as above, aligned to 16 bytes; `out` overlaps nothing. Of what the kernels before this
        /// one write, only `x` is read.
        #[kernel(max_threads = 512)]
        pub unsafe fn $name(
            n: u32,
            hidden_size: u32,
            intermediate_size: u32,
            depth: u32,
            x: *const f32,
            norm: *const f32,
            eps: f32,
            gate: *const f16,
            up: *const f16,
            out: *mut f16,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { norm_gate_up::<$rows, $groups>(n, hidden_size, intermediate_size, depth, x, norm, eps, gate, up, out) }
        }
    )* };
}

norm_gate_up! {
    norm_gate_up_f16_mma_one: 1, 1;
    norm_gate_up_f16_mma_few: 4, 1;
    norm_gate_up_f16_mma_eight: 8, 2;
}
