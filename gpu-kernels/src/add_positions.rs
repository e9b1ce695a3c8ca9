//! Learned positions.

use cuda_std::prelude::*;

#[device]
use crate::grid::{offset, row_and_column};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `x[i] += table[positions[i]]`, in place (Gehring et al. 2017, "Convolutional sequence to sequence learning"; GPT-2's `wpe`).
#[kernel_args]
pub struct AddPositions {
    pub hidden_size: u32,
    /// u32 `[num_tokens]`, each a row of `table`
    pub positions: *const u32,
    /// f32 `[max_positions, hidden_size]`
    pub table: *const f32,
    /// f32 `[num_tokens, hidden_size]`
    pub x: *mut f32,
}

/// Grid `[num_tokens, ceil(hidden_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread a value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`AddPositions`], `x` overlaps nothing, every position is a row of `table`.
#[kernel(E = [f32], name = "add_positions_{E}_plain")]
pub unsafe fn plain(a: AddPositions) {
    let AddPositions { hidden_size, positions, table, x } = a;
    let Some((row, column)) = row_and_column(hidden_size) else { return };
    // SAFETY: the grid has one row of blocks a token, and no position is beyond the table.
    unsafe {
        let position = *positions.add(row as usize);
        *x.add(offset(row, hidden_size, column)) += *table.add(offset(position, hidden_size, column));
    }
}
