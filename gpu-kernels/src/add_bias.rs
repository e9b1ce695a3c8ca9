//! A bias that is added to rows.

use cuda_std::prelude::*;

#[device]
use crate::grid::{offset, row_and_column};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `x[i, c] += bias[c]`, in place.
#[kernel_args]
pub struct AddBias {
    pub cols: u32,
    /// f32 `[cols]`
    pub bias: *const f32,
    /// f32 `[rows, cols]`
    pub x: *mut f32,
}

/// Grid `[rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread a value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`AddBias`] and do not overlap.
#[kernel(E = [f32], name = "add_bias_{E}_plain")]
pub unsafe fn plain(a: AddBias) {
    let AddBias { cols, bias, x } = a;
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row, columns stay below `cols`.
    unsafe { *x.add(offset(row, cols, column)) += *bias.add(column as usize) }
}
