//! What follows the gated delta rule: a norm of each head, and a gate.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, repeat},
    rms_norm::scale,
    vector::{Group, Saturate},
};

/// Threads of a block: a warp for its head.
pub const BLOCK_SIZE: u32 = 32;

/// `out = x / sqrt(mean(x²) + eps) * weight * silu(gate) * out_scale` of each head of each row, with `silu(g) = g / (1 + e^-g)` (Yang,
/// Kautz and Hatamizadeh 2024, "Gated Delta Networks").
#[kernel_args]
pub struct GatedNorm<E> {
    pub heads: u32,
    pub head_dim: u32,
    /// f32 `[rows, heads * head_dim]`
    pub x: *const f32,
    /// f32 `[head_dim]`
    pub weight: *const f32,
    pub eps: f32,
    /// f32 `[rows, gate_cols]`, of which those `heads * head_dim` columns are meant that begin at `first_gate`.
    pub gate: *const f32,
    pub gate_cols: u32,
    pub first_gate: u32,
    pub out_scale: f32,
    /// E `[rows, heads * head_dim]`, rounded once, no f16 to infinity
    pub out: *mut E,
}

/// f32 throughout; the sum of squares has a fixed order: each lane adds its values from left to right, then a butterfly over the warp.
///
/// Grid `[rows, heads, 1]`, exact; block `[BLOCK_SIZE, 1, 1]`. Lane `t` takes values `t`, `t + 32`, …. Any `head_dim`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`GatedNorm`], `out` overlaps nothing.
#[kernel(E = [f32, f16], name = "gated_norm_{E}_plain")]
pub unsafe fn plain<E: Saturate>(a: GatedNorm<E>) {
    let GatedNorm { heads, head_dim, x, weight, eps, gate, gate_cols, first_gate, out_scale, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let (row, head, lane) = (thread::block_idx_x(), thread::block_idx_y(), thread::thread_idx_x());
    let start = offset(row, heads * head_dim, head * head_dim);
    // SAFETY: the grid has a block for each head of each row; values stay inside the head.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let gate = gate.add(offset(row, gate_cols, first_gate + head * head_dim));
        let mut sum = 0.0;
        let mut i = lane;
        while i < head_dim {
            let value = *x.add(i as usize);
            sum = value.mul_add(value, sum);
            i += 32;
        }
        let scale = scale(warp::reduce_sum(sum), head_dim, eps);
        let mut i = lane;
        while i < head_dim {
            let g = *gate.add(i as usize);
            let normed = *x.add(i as usize) * scale * *weight.add(i as usize);
            *out.add(i as usize) = E::round(normed * (g / (1.0 + (-g).exp())) * out_scale);
            i += 32;
        }
    }
}

/// Warps of a block of [`vec4`], a head each.
pub const WARPS: u32 = 8;
/// Values of the heads that [`vec4`] takes: four a lane.
pub const VEC4_HEAD_DIM: u32 = 128;

/// Loads of 16 bytes, several heads a block: `head_dim` is [`VEC4_HEAD_DIM`], all pointers aligned to 16 bytes, `gate_cols` and `first_gate` multiples of 4.
///
/// Grid `[rows, ceil(heads / WARPS), 1]`, exact in the rows; block `[32 * WARPS, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`GatedNorm`], `out` overlaps nothing.
#[kernel(E = [f32, f16], name = "gated_norm_{E}_vec4", max_threads = 256)]
pub unsafe fn vec4<E: Group<4>>(a: GatedNorm<E>) {
    let GatedNorm { heads, head_dim, x, weight, eps, gate, gate_cols, first_gate, out_scale, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let (row, lane) = (thread::block_idx_x(), warp::lane_id());
    let head = thread::block_idx_y() * WARPS + warp::warp_id();
    if head >= heads {
        return;
    }
    let column = head * head_dim + 4 * lane;
    // SAFETY: a warp for each head of each row; four values a lane are all of a head.
    unsafe {
        let place = offset(row, heads * head_dim, column);
        let x: [f32; 4] = f32::load_group(x.add(place));
        let g: [f32; 4] = f32::load_group(gate.add(offset(row, gate_cols, first_gate + column)));
        let w: [f32; 4] = f32::load_group(weight.add(4 * lane as usize));
        let mut sum = 0.0;
        repeat(4, |i| sum = x[i].mul_add(x[i], sum));
        let scale = scale(warp::reduce_sum(sum), head_dim, eps);
        let mut gated = [0.0; 4];
        repeat(4, |i| gated[i] = x[i] * scale * w[i] * (g[i] / (1.0 + (-g[i]).exp())) * out_scale);
        E::store_saturated(out.add(place), gated);
    }
}
