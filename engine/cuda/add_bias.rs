//! A bias that is added to rows.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::add_bias::{AddBiasArgs, BLOCK_SIZE, plain};

const OP: &str = "add_bias";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::Ops::add_bias`]
pub(super) fn add_bias(device: &Device, n: usize, bias: &DeviceBuffer<f32>, x: &mut Tensor) -> Result<()> {
    x.expect(OP, "x", n, x.cols)?;
    expect_vector(OP, "bias", bias, x.cols)?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let arguments = AddBiasArgs { cols, bias: bias.ptr(), x: x.ptr_mut() };
    // SAFETY: one row of blocks for each of the `n` rows; the bias has as many values as a row, checked above.
    unsafe { launch(device, plain(), &[], &config, arguments) }
}
