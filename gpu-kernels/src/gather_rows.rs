//! Chosen rows of a matrix.

use cuda_std::prelude::*;

#[device]
use crate::grid::{offset, row_and_column};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out[i] = x[rows[i]]`.
#[kernel_args]
pub struct GatherRows {
    pub cols: u32,
    /// u32 `[num_rows]`, each a row of `x`
    pub rows: *const u32,
    /// f32 `[any, cols]`
    pub x: *const f32,
    /// f32 `[num_rows, cols]`
    pub out: *mut f32,
}

/// Grid `[num_rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread an
/// element: neighbours read neighbouring elements of one row.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`GatherRows`], `out` overlaps nothing, the indices are in range.
#[kernel(E = [f32], name = "gather_rows_{E}_plain")]
pub unsafe fn plain(GatherRows { cols, rows, x, out }: GatherRows) {
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row of `out`; `rows` holds rows of `x`.
    unsafe {
        let source = *rows.add(row as usize);
        *out.add(offset(row, cols, column)) = *x.add(offset(source, cols, column));
    }
}
