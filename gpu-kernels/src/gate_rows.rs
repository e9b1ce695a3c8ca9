//! Rows that are scaled by a gate of their own.

use cuda_std::prelude::*;

#[device]
use crate::{grid::offset, reduce::block_sum, vector::Saturate};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `rows[i] *= sigmoid(x[i] · gate)`, in place, with `sigmoid(v) = 1 / (1 + e^-v)`: the share of Qwen2-MoE's shared expert.
#[kernel_args]
pub struct GateRows<E> {
    pub hidden_size: u32,
    pub cols: u32,
    /// E `[num_rows, hidden_size]`
    pub x: *const E,
    /// f32 `[hidden_size]`
    pub gate: *const f32,
    /// E `[num_rows, cols]`
    pub rows: *mut E,
}

/// f32 throughout, rounded once at the end. The sum has a fixed order that depends on `hidden_size` alone: each thread adds its columns
/// from left to right, then butterflies over the block.
///
/// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes columns `t`, `t + BLOCK_SIZE`, ….
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`GateRows`], `rows` overlaps nothing.
#[kernel(E = [f32, f16], name = "gate_rows_{E}_plain")]
pub unsafe fn plain<E: Saturate>(a: GateRows<E>) {
    let GateRows { hidden_size, cols, x, gate, rows } = a;
    let row = thread::block_idx_x();
    // SAFETY: the grid has a block a row; columns stay below `hidden_size` and `cols`.
    unsafe {
        let (x, rows) = (x.add(offset(row, hidden_size, 0)), rows.add(offset(row, cols, 0)));
        let (mut sum, mut column) = (0.0, thread::thread_idx_x());
        while column < hidden_size {
            sum = x.add(column as usize).read().to_f32().fma(*gate.add(column as usize), sum);
            column += BLOCK_SIZE;
        }
        let share = 1.0 / (1.0 + (-block_sum(sum)).exp());
        let mut column = thread::thread_idx_x();
        while column < cols {
            let value = rows.add(column as usize);
            *value = E::round(value.read().to_f32() * share);
            column += BLOCK_SIZE;
        }
    }
}
