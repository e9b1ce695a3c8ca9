//! The values of matrices in blocks.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::{Activation, BlockMatrix, Piece, Weight};
use super::units::UnitMatrix;
use super::variant::Operation;
use crate::error::{Error, Result};
use gpu_kernels::blocks::{BLOCK_SIZE, DecodeArgs, decode as plain};
use gpu_kernels::units;

const OP: &str = "decode";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances(), units::decode().instances()])
}

/// The values of a matrix, exactly as the host decodes them, then rounded to the format of `out`: `[rows, cols]`.
///
/// # Errors
/// [`Error::Request`] if it is not one in blocks, in one piece, or the shapes do not fit, or what the device says.
pub(crate) fn decode(device: &Device, weight: &Weight, out: &mut Activation) -> Result<()> {
    let dtype = out.dtype;
    out.expect(OP, "out", dtype, weight.rows, weight.cols)?;
    match &weight.pieces[..] {
        // SAFETY: `out` has room for the rows, checked above.
        [Piece::Units(UnitMatrix { units, .. })] => unsafe {
            units.decode(device, 0, units.rows, dtype, out.ptr_mut())
        },
        [Piece::Blocks(BlockMatrix { data, format, rows, cols })] => {
            let (rows, cols) = (dimension(OP, *rows)?, dimension(OP, *cols)?);
            let arguments = DecodeArgs { cols, blocks: data.ptr(), out: out.ptr_mut() };
            let config = elements_of_rows(rows, cols, BLOCK_SIZE);
            let values = [format.name().into(), dtype.name().into()];
            // SAFETY: a row of blocks for each row; `out` has room for them, checked above.
            unsafe { launch(device, plain(), &values, &config, arguments) }
        }
        _ => Err(Error::Request("decode: expected a matrix in blocks, in one piece".into())),
    }
}
