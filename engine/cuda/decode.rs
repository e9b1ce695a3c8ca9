//! The values of matrices in blocks.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::Activation;
use super::variant::Operation;
use super::weight::BlockMatrix;
use crate::error::Result;
use gpu_kernels::blocks::{BLOCK_SIZE, DecodeArgs, decode as plain};

const OP: &str = "decode";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// The values of a matrix, exactly as the host decodes them, then rounded to the format of `out`: `[rows, cols]`.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit, or what the device says.
pub(crate) fn decode(device: &Device, matrix: &BlockMatrix, out: &mut Activation) -> Result<()> {
    let &BlockMatrix { ref data, format, rows, cols } = matrix;
    let dtype = out.dtype;
    out.expect(OP, "out", dtype, rows, cols)?;
    let (rows, cols) = (dimension(OP, rows)?, dimension(OP, cols)?);
    let arguments = DecodeArgs { cols, blocks: data.ptr(), out: out.ptr_mut() };
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let values = [format.name().into(), dtype.name().into()];
    // SAFETY: a row of blocks for each row; `out` has room for them, checked above.
    unsafe { launch(device, plain(), &values, &config, arguments) }
}
