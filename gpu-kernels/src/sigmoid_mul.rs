//! The gate of attention.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, row_and_column},
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 128;

/// `rows[i] *= sigmoid(gate[i])`, in place, with `sigmoid(v) = 1 / (1 + e^-v)` (Qiu et al. 2025, "Gated Attention for Large Language Models").
#[kernel_args]
pub struct SigmoidMul<E> {
    pub cols: u32,
    /// f32 `[num_rows, cols]`
    pub gate: *const f32,
    /// E `[num_rows, cols]`, rounded once
    pub rows: *mut E,
}

/// Grid `[num_rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread an element.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`SigmoidMul`], `rows` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "sigmoid_mul_{E}_plain", max_threads = 128)]
pub unsafe fn plain<E: Saturate>(a: SigmoidMul<E>) {
    let SigmoidMul { cols, gate, rows } = a;
    launch_dependents();
    wait_for_dependencies();
    let Some((row, column)) = row_and_column(cols) else { return };
    let at = offset(row, cols, column);
    // SAFETY: the grid has one row of blocks a row; columns stay below `cols`.
    unsafe {
        let value = rows.add(at);
        *value = E::round(value.read().to_f32() / (1.0 + (-*gate.add(at)).exp()));
    }
}
