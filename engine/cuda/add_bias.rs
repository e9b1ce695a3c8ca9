//! The bias of a projection.

use super::device::Device;
use super::launch::{dimension, elements_of_rows};
use super::memory::DeviceBuffer;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use gpu_kernels::add_bias::{BLOCK_SIZE, add_bias_f32_plain};

const OP: &str = "add_bias";

/// `x[i] += bias`: `[n, bias.len()]`.
pub(super) fn add_bias(device: &Device, n: usize, x: &mut Tensor, bias: &DeviceBuffer<f32>) -> Result<()> {
    x.expect(OP, "x", n, bias.len())?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    // SAFETY: one row of blocks for each of the `n` rows; x has them, with as many columns as the bias has values.
    unsafe {
        let config = elements_of_rows(rows, cols, BLOCK_SIZE);
        add_bias_f32_plain(device, &config, cols, bias.ptr(), x.ptr_mut())
    }
}

/// The error of a vector that has another length than the rows it goes with.
pub(super) fn expect_vector(op: &str, name: &str, vector: &DeviceBuffer<f32>, cols: usize) -> Result<()> {
    if vector.len() == cols {
        return Ok(());
    }
    Err(Error::Request(format!("{op}: {name} must have {cols} values, it has {}", vector.len())))
}
