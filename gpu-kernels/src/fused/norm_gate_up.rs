//! The first half of the MLP: norm, gate and up projections, SwiGLU.

use cuda_std::prelude::*;

#[device]
use super::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies};
#[device]
use crate::{
    grid::{offset, repeat},
    silu_mul::silu_mul,
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Lanes that compute one column of the output.
pub const LANES: u32 = 16;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / LANES;

/// `out = silu(gate_scale * (y · gateᵀ)) * (up_scale * (y · upᵀ))` with `y = x / sqrt(mean(x²) + eps) * norm`.
#[kernel_args]
pub struct NormGateUp<E, O> {
    pub n: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    /// Of the stream of the kernels on tensor cores; the others do not look at it.
    pub depth: u32,
    /// f32 `[n, hidden_size]`
    pub x: *const f32,
    /// f32 `[hidden_size]`
    pub norm: *const f32,
    pub eps: f32,
    pub gate_scale: f32,
    pub up_scale: f32,
    /// E `[intermediate_size, hidden_size]`
    pub gate: *const E,
    /// As `gate`
    pub up: *const E,
    /// O `[n, intermediate_size]`
    pub out: *mut O,
}

/// At most `N` rows.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(intermediate_size / COLUMNS_PER_BLOCK)`; block
/// `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`stage_bytes`](super::stage_bytes) of `n` rows of `hidden_size`, a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormGateUp`] and are aligned to 16 bytes; `out` overlaps nothing. Of
/// what the kernels before this one write, only `x` is read.
#[kernel(
    (E, O) = [(f16, f16), (bf16, f32)],
    N = [one: 1, few: 4],
    name = "norm_gate_up_{E}_{N}",
    max_threads = 256,
    min_blocks = 2,
)]
pub unsafe fn lanes<E: PackedElement, O: Saturate, const N: usize>(a: NormGateUp<E, O>) {
    let NormGateUp { n, hidden_size, intermediate_size, x, norm, eps, gate, up, out, .. } = a;
    let NormGateUp { gate_scale, up_scale, .. } = a;
    launch_dependents();
    let lane = thread::thread_idx_x() % LANES;
    let words = hidden_size / WORD;
    let stage = Stage::new(n, words);
    let step = thread::grid_dim_x() * COLUMNS_PER_BLOCK;
    let mut first = thread::block_idx_x() * COLUMNS_PER_BLOCK;
    let group = thread::thread_idx_x() / LANES;
    // SAFETY: rows below `intermediate_size`; groups beyond the last column compute it again and do not store.
    unsafe {
        let dot = |first: u32| {
            let row = offset((first + group).min(intermediate_size - 1), hidden_size, 0);
            Dot::<E, 2, 7, LANES>::new([gate.add(row), up.add(row)], words, lane)
        };
        let mut products = dot(first);
        let ahead = stage.load_norm(norm);
        wait_for_dependencies();
        let scales = stage.copy_normed::<N>(x, norm, ahead, eps);
        loop {
            let column = first + group;
            let shares = products.shares::<N>(lane, stage);
            first += step;
            // The next weights are under way while these products are added up.
            if first < intermediate_size {
                products = dot(first);
            }
            let sums = sum_of_lanes::<2, N, LANES>(shares);
            repeat(N, |i| {
                if lane == i as u32 && lane < n && column < intermediate_size {
                    let (gate, up) = (sums[0][i] * scales[i], sums[1][i] * scales[i]);
                    let value = silu_mul(gate * gate_scale, up * up_scale);
                    *out.add(offset(i as u32, intermediate_size, column)) = O::round(value);
                }
            });
            if first >= intermediate_size {
                return;
            }
        }
    }
}
