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

/// `gate / (1 + e^-gate) * up`. Where `e^-gate` overflows, the quotient is a zero as it should be. Where the product before
/// rounded to `X`, what it left infinite counts as the largest number.
#[device]
#[inline(always)]
fn value<X: Saturate>(gate: f32, up: f32) -> f32 {
    let (gate, up) = (X::saturate(gate), X::saturate(up));
    gate / (1.0 + (-gate).exp()) * up
}

#[device]
#[inline(always)]
unsafe fn plain<E: Saturate, X: Saturate>(intermediate_size: u32, gate_up: *const X, out: *mut E) {
    launch_dependents();
    wait_for_dependencies();
    let Some((row, column)) = row_and_column(intermediate_size) else { return };
    // SAFETY: the grid has one row of blocks a row of `out`.
    unsafe {
        let gate = gate_up.add(offset(row, 2 * intermediate_size, column));
        let up = gate.add(intermediate_size as usize);
        let to = out.add(offset(row, intermediate_size, column));
        *to = E::round(value::<X>((*gate).to_f32(), (*up).to_f32()));
    }
}

#[device]
#[inline(always)]
unsafe fn vec8<E: Saturate, X: Saturate>(intermediate_size: u32, gate_up: *const X, out: *mut E) {
    launch_dependents();
    wait_for_dependencies();
    let Some((row, group)) = row_and_column(intermediate_size / 8) else { return };
    // SAFETY: as above; groups are whole and aligned.
    unsafe {
        let gate = gate_up.add(offset(row, 2 * intermediate_size, 8 * group));
        let (g, u) = (load8(gate), load8(gate.add(intermediate_size as usize)));
        let mut values = [0.0; 8];
        repeat(8, |i| values[i] = value::<X>(g[i], u[i]));
        store8(out.add(offset(row, intermediate_size, 8 * group)), values);
    }
}

macro_rules! plain_kernels {
    ($($name:ident: $element:ident, $x:ident;)*) => { $(
        /// `out[i] = silu(gate[i]) * up[i]`, row by row, with `silu(x) = x / (1 + e^-x)`: SwiGLU's activation (Shazeer
        /// 2020, "GLU variants improve Transformer").
        ///
        #[doc = concat!("- `gate_up`: ", stringify!($x), " `[num_rows, 2 * intermediate_size]`, each row gate and then up")]
        #[doc = concat!("- `out`: ", stringify!($element), " `[num_rows, intermediate_size]`, computed in f32 and rounded once, no f16 to infinity")]
        ///
        /// Grid `[num_rows, ceil(intermediate_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
        /// One thread an element.
        ///
        /// # Safety
        /// Grid and block are as above, arrays have these lengths and do not overlap.
        #[kernel(max_threads = 128)]
        pub unsafe fn $name(intermediate_size: u32, gate_up: *const $x, out: *mut $element) {
            // SAFETY: the kernel's own contract.
            unsafe { plain(intermediate_size, gate_up, out) }
        }
    )* };
}

plain_kernels! {
    silu_mul_f32_plain: f32, f32;
    silu_mul_f16_plain: f16, f16;
    silu_mul_f16_f32_plain: f16, f32;
    silu_mul_bf16_f32_plain: bf16, f32;
}

macro_rules! vec8_kernels {
    ($($name:ident: $element:ident, $x:ident;)*) => { $(
        /// As the plain kernel, eight values at a time: loads and stores of 16 bytes.
        ///
        /// Grid `[num_rows, ceil(intermediate_size / 8 / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
        ///
        /// # Safety
        /// As for the plain kernel; `intermediate_size` is a multiple of 8 and both pointers are aligned to 16 bytes.
        #[kernel(max_threads = 128)]
        pub unsafe fn $name(intermediate_size: u32, gate_up: *const $x, out: *mut $element) {
            // SAFETY: the kernel's own contract.
            unsafe { vec8(intermediate_size, gate_up, out) }
        }
    )* };
}

vec8_kernels! {
    silu_mul_f32_vec8: f32, f32;
    silu_mul_f16_vec8: f16, f16;
    silu_mul_f16_f32_vec8: f16, f32;
    silu_mul_bf16_f32_vec8: bf16, f32;
}
