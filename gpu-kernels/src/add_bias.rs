//! The bias of a projection.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `x[i] += bias` for every row `i`, in place.
///
/// - `bias`: f32 `[cols]`
/// - `x`: f32 `[num_rows, cols]`
///
/// Grid `[num_rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread an
/// element; the grid's second dimension stands for columns so that no thread divides.
///
/// # Safety
/// Grid and block are as above, arrays have these lengths and do not overlap.
#[kernel]
pub unsafe fn add_bias_f32_plain(cols: u32, bias: *const f32, x: *mut f32) {
    use crate::grid::{offset, row_and_column};
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row of `x`.
    unsafe { *x.add(offset(row, cols, column)) += *bias.add(column as usize) }
}
