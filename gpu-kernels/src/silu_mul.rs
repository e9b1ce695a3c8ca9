//! The gated activation of the MLP.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, repeat, row_and_column},
    vector::{Saturate, load8, store8},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 128;

/// [`silu_mul`] of scaled values. Where the product before rounded to `X`, what it left infinite counts as the largest number.
#[device]
#[inline(always)]
fn value<X: Saturate>(gate: f32, up: f32, [gate_scale, up_scale]: [f32; 2]) -> f32 {
    let (gate, up) = (X::saturate(gate) * gate_scale, X::saturate(up) * up_scale);
    silu_mul(gate, up)
}

/// `silu(gate) * up`. Where `e^-gate` overflows, the quotient is a zero as it should be.
#[device]
#[inline(always)]
pub(crate) fn silu_mul(gate: f32, up: f32) -> f32 {
    gate / (1.0 + (-gate).exp()) * up
}

/// `out[i] = silu(gate_scale * gate[i]) * (up_scale * up[i])`, row by row, with `silu(x) = x / (1 + e^-x)`: SwiGLU's activation (Shazeer
/// 2020, "GLU variants improve Transformer").
#[kernel_args]
pub struct SiluMul<E, X> {
    pub intermediate_size: u32,
    /// What values of gate are multiplied with before anything else.
    pub gate_scale: f32,
    /// What values of up are multiplied with, and so the results.
    pub up_scale: f32,
    /// X `[num_rows, 2 * intermediate_size]`, each row gate and then up
    pub gate_up: *const X,
    /// E `[num_rows, intermediate_size]`, computed in f32 and rounded once, no f16 to infinity
    pub out: *mut E,
}

/// Grid `[num_rows, ceil(intermediate_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
/// One thread an element.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`SiluMul`] and do not overlap.
#[kernel(
    (E, X) = [(f32, f32), (f16, f16), f16_f32: (f16, f32), bf16_f32: (bf16, f32)],
    name = "silu_mul_{E}_plain",
    max_threads = 128,
)]
pub unsafe fn plain<E: Saturate, X: Saturate>(a: SiluMul<E, X>) {
    let SiluMul { intermediate_size, gate_scale, up_scale, gate_up, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let Some((row, column)) = row_and_column(intermediate_size) else { return };
    // SAFETY: the grid has one row of blocks a row of `out`.
    unsafe {
        let gate = gate_up.add(offset(row, 2 * intermediate_size, column));
        let up = gate.add(intermediate_size as usize);
        let to = out.add(offset(row, intermediate_size, column));
        *to = E::round(value::<X>((*gate).to_f32(), (*up).to_f32(), [gate_scale, up_scale]));
    }
}

/// As [`plain`], eight values at a time: loads and stores of 16 bytes.
///
/// Grid `[num_rows, ceil(intermediate_size / 8 / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// As for [`plain`]; `intermediate_size` is a multiple of 8 and both pointers are aligned to 16 bytes.
#[kernel(
    (E, X) = [(f32, f32), (f16, f16), f16_f32: (f16, f32), bf16_f32: (bf16, f32)],
    name = "silu_mul_{E}_vec8",
    max_threads = 128,
)]
pub unsafe fn vec8<E: Saturate, X: Saturate>(a: SiluMul<E, X>) {
    let SiluMul { intermediate_size, gate_scale, up_scale, gate_up, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let Some((row, group)) = row_and_column(intermediate_size / 8) else { return };
    // SAFETY: as above; groups are whole and aligned.
    unsafe {
        let gate = gate_up.add(offset(row, 2 * intermediate_size, 8 * group));
        let (g, u) = (load8(gate), load8(gate.add(intermediate_size as usize)));
        let mut values = [0.0; 8];
        repeat(8, |i| values[i] = value::<X>(g[i], u[i], [gate_scale, up_scale]));
        store8(out.add(offset(row, intermediate_size, 8 * group)), values);
    }
}
