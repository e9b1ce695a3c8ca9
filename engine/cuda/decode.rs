//! The values of matrices in blocks.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::Activation;
use super::units::UnitMatrix;
use super::variant::Operation;
use super::weight::{BlockMatrix, Values};
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
/// [`Error::Request`] if it is not one in blocks, or the shapes do not fit, or what the device says.
pub(crate) fn decode(device: &Device, matrix: &Values, out: &mut Activation) -> Result<()> {
    let dtype = out.dtype;
    match matrix {
        Values::Float(_) => Err(Error::Request(format!("{OP}: expected a matrix in blocks"))),
        Values::Units(UnitMatrix { units, .. }) => {
            out.expect(OP, "out", dtype, units.rows, units.cols)?;
            // SAFETY: `out` has room for the rows, checked above.
            unsafe { units.decode(device, 0, units.rows, dtype, out.ptr_mut()) }
        }
        &Values::Blocks(BlockMatrix { ref data, format, rows, cols }) => {
            out.expect(OP, "out", dtype, rows, cols)?;
            let (rows, cols) = (dimension(OP, rows)?, dimension(OP, cols)?);
            let arguments = DecodeArgs { cols, blocks: data.ptr(), out: out.ptr_mut() };
            let config = elements_of_rows(rows, cols, BLOCK_SIZE);
            let values = [format.name().into(), dtype.name().into()];
            // SAFETY: a row of blocks for each row; `out` has room for them, checked above.
            unsafe { launch(device, plain(), &values, &config, arguments) }
        }
    }
}
