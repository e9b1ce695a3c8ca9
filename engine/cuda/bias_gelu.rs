//! The activation of an MLP without a gate.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::Activation;
use super::variant::Operation;
use crate::error::{Error, Result};
use cuda_std::launch::DevicePtr;
use gpu_kernels::bias_gelu::{BLOCK_SIZE, BiasGeluArgs, plain};

const OP: &str = "bias_gelu";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// `out = out_scale * gelu(x_scale * x + bias)`: `[n, cols]`.
pub(super) fn bias_gelu(
    device: &Device,
    n: usize,
    x: &Activation,
    bias: Option<&DeviceBuffer<f32>>,
    [x_scale, out_scale]: [f32; 2],
    out: &mut Activation,
) -> Result<()> {
    let formats = [out.dtype, x.dtype].map(|dtype| dtype.name().into());
    if plain().get(&formats).is_none() {
        return Err(Error::Request(format!("{OP}: there is no kernel from {} to {}", x.dtype, out.dtype)));
    }
    x.expect(OP, "x", x.dtype, n, out.cols)?;
    out.expect(OP, "out", out.dtype, n, out.cols)?;
    bias.map_or(Ok(()), |bias| expect_vector(OP, "bias", bias, out.cols))?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, out.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let bias = bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr);
    let arguments = BiasGeluArgs { cols, x_scale, out_scale, x: x.ptr(), bias, out: out.ptr_mut() };
    // SAFETY: one row of blocks for each of the `n` rows, which both have, checked above; `out` is borrowed alone.
    unsafe { launch(device, plain(), &formats, &config, arguments) }
}
