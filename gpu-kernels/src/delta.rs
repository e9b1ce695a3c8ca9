//! What the kernels of the gated delta rule share: [`delta_rule`](crate::delta_rule), which has the formulas, and [`delta_step`](crate::delta_step).

use cuda_std::prelude::*;

#[device]
use crate::grid::{divide, repeat};

/// Columns of a state that a warp has where it keeps them in registers.
pub const WARP_COLUMNS: u32 = 8;

/// Lanes that share such a column: lane `l` has values `l / WARP_COLUMNS`, and every `PARTS`th behind it.
pub(crate) const PARTS: usize = 32 / WARP_COLUMNS as usize;

/// The head of K that goes with a head of V: `head mod key_heads` where they are `tiled`, else `head / (value_heads / key_heads)`.
#[device]
#[inline(always)]
pub(crate) fn key_head(head: u32, key_heads: u32, value_heads: u32, tiled: bool) -> u32 {
    if tiled { divide(head, key_heads).1 } else { divide(head, divide(value_heads, key_heads).0).0 }
}

/// The logarithm of what is left of a head's state at a row, and the share of the difference that is written.
#[device]
#[inline(always)]
pub(crate) fn log_gates(alpha: f32, dt_bias: f32, decay: f32, beta: f32) -> (f32, f32) {
    let dt = alpha + dt_bias;
    let softplus = dt.max(0.0) + (-dt.abs()).exp().ln_1p();
    (decay * softplus, 1.0 / (1.0 + (-beta).exp()))
}

/// What a row's Q and K of `key_dim` values are multiplied with, of the lanes' sums of their squares. All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(crate) fn norm_scales(q_squares: f32, k_squares: f32, eps: f32, key_dim: u32) -> (f32, f32) {
    let q_scale = 1.0 / ((warp::reduce_sum(q_squares) + eps).sqrt() * (key_dim as f32).sqrt());
    let k_scale = 1.0 / (warp::reduce_sum(k_squares) + eps).sqrt();
    (q_scale, k_scale)
}

/// Takes a lane's values of a column on by a row, of which `q` and `k` give those that meet value `i`; what the column answers, in all lanes that share it.
/// All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(crate) fn take_row<const N: usize>(
    column: &mut [f32; N],
    q: impl Fn(usize) -> f32,
    k: impl Fn(usize) -> f32,
    v: f32,
    (kept, beta): (f32, f32),
) -> f32 {
    let mut known = 0.0;
    repeat(N, |i| {
        column[i] *= kept;
        known = column[i].mul_add(k(i), known);
    });
    let delta = beta * (v - sum_of_parts(known));
    let mut answer = 0.0;
    repeat(N, |i| {
        column[i] = k(i).mul_add(delta, column[i]);
        answer = column[i].mul_add(q(i), answer);
    });
    sum_of_parts(answer)
}

/// The sum over the lanes that share a column, in each of them.
#[device]
#[inline(always)]
fn sum_of_parts(value: f32) -> f32 {
    let value = value + warp::shuffle_xor(value, 2 * WARP_COLUMNS);
    value + warp::shuffle_xor(value, WARP_COLUMNS)
}
