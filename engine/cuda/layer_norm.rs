//! Normalisation by mean and variance.

use super::device::Device;
use super::launch::{Launch, always, block_per_row, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::parts::LayerNorm;
use cuda_std::launch::{DevicePtr, Kernels};
use gpu_kernels::layer_norm::{BLOCK_SIZE, LayerNormArgs, plain};

pub(super) const OP: &str = "layer_norm";

/// What the kernels take for `rows` rows, out of `dtype`; nothing overlaps.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    arguments: LayerNormArgs,
}

variants! { Case, Launch<Case>;
    "plain" [plain]: always => |device, case| unsafe { launch_rows(device, case, plain()) };
}

/// # Safety
/// The case is whole.
unsafe fn launch_rows(device: &Device, case: &Case, kernels: &Kernels<LayerNormArgs>) -> Result<()> {
    let config = block_per_row(case.rows, BLOCK_SIZE);
    // SAFETY: a block for each row; the caller vouches for the case.
    unsafe { launch(device, kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

/// [`crate::ops::Ops::layer_norm`]
pub(super) fn layer_norm(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &LayerNorm<DeviceBuffer<f32>>,
    out: &mut Activation,
) -> Result<()> {
    let dtype = out.dtype;
    x.expect(OP, "x", n, x.cols)?;
    expect_vector(OP, "weight", &norm.weight, x.cols)?;
    norm.bias.as_ref().map_or(Ok(()), |bias| expect_vector(OP, "bias", bias, x.cols))?;
    out.expect(OP, "out", dtype, n, x.cols)?;
    let arguments = LayerNormArgs {
        hidden_size: dimension(OP, x.cols)?,
        x: x.ptr(),
        weight: norm.weight.ptr(),
        bias: norm.bias.as_ref().map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr),
        eps: norm.eps,
        out: out.ptr_mut(),
    };
    let case = Case { dtype, rows: dimension(OP, n)?, arguments };
    if case.rows == 0 || case.arguments.hidden_size == 0 {
        return Ok(());
    }
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
