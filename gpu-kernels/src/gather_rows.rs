//! Chosen rows of a matrix.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out[i] = x[rows[i]]`.
///
/// - `rows`: u32 `[num_rows]`, each a row of `x`
/// - `x`: f32 `[any, cols]`
/// - `out`: f32 `[num_rows, cols]`
///
/// Grid `[num_rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread an
/// element: neighbours read neighbouring elements of one row.
///
/// # Safety
/// Grid and block are as above, arrays have these lengths, `out` overlaps nothing, the indices are in range.
#[kernel]
pub unsafe fn gather_rows_f32_plain(cols: u32, rows: *const u32, x: *const f32, out: *mut f32) {
    use crate::grid::{offset, row_and_column};
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row of `out`; `rows` holds rows of `x`.
    unsafe {
        let source = *rows.add(row as usize);
        *out.add(offset(row, cols, column)) = *x.add(offset(source, cols, column));
    }
}
