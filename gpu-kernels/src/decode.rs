//! The values of matrices in blocks.

use crate::blocks::block_formats;
use crate::vector::Saturate;
use cuda_std::prelude::*;

#[device]
use crate::{
    blocks::*,
    grid::{offset, row_and_column},
    vector::store8,
};

/// `out = values of blocks`.
#[kernel_args]
pub struct Decode<E> {
    pub cols: u32,
    /// `[rows, cols]` in blocks
    pub blocks: *const u8,
    /// E `[rows, cols]`
    pub out: *mut E,
}

/// Each value exactly as the host decodes it, then rounded to nearest even, no f16 to infinity.
///
/// Grid `[rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread a value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`Decode`], rows are whole blocks, `out` overlaps nothing.
#[kernel(W = [block_formats!], E = [f32, f16, bf16], name = "decode_{W}_{E}_plain")]
pub unsafe fn plain<W: Blocks, E: Saturate>(a: Decode<E>) {
    let Decode { cols, blocks, out } = a;
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row, columns stay below `cols`.
    unsafe {
        let value = W::in_row(blocks.add(row as usize * W::row_bytes(cols)), column);
        *out.add(offset(row, cols, column)) = E::round(value);
    }
}

/// [`plain`], eight neighbouring values a thread.
///
/// Grid `[rows, ceil(cols / 8 / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// As [`plain`]; `out` is aligned to 16 bytes.
#[kernel(W = [block_formats!], E = [f32, f16, bf16], name = "decode_{W}_{E}_eights")]
pub unsafe fn eights<W: Blocks, E: Saturate>(a: Decode<E>) {
    let Decode { cols, blocks, out } = a;
    let Some((row, eighth)) = row_and_column(cols / 8) else { return };
    // SAFETY: the grid has one row of blocks a row, columns stay below `cols`.
    unsafe {
        let values = W::eight_in_row(blocks.add(row as usize * W::row_bytes(cols)), eighth);
        store8(out.add(offset(row, cols, 8 * eighth)), values);
    }
}
