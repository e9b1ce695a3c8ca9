//! The norm of heads with a gate, behind the gated delta rule.

use super::device::{Dependent, Device};
use super::launch::{dimension, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::parts::RmsNorm;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::gated_norm::{BLOCK_SIZE, GatedNormArgs, plain};

const OP: &str = "gated_norm";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::hybrid::HybridOps::gated_norm`]: the gate is in a tensor from a column on, results are multiplied with `scale`.
pub(super) fn gated_norm(
    device: &Device,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    (gate, first_gate): (&Tensor, usize),
    scale: f32,
    out: &mut Activation,
) -> Result<()> {
    let (dtype, cols, head_dim) = (out.dtype, out.cols, norm.weight.len());
    x.expect(OP, "x", n, cols)?;
    out.expect(OP, "out", dtype, n, cols)?;
    gate.expect(OP, "gate", n, gate.cols.max(first_gate + cols))?;
    if head_dim == 0 || !cols.is_multiple_of(head_dim) {
        return Err(Error::Request(format!("{OP}: {cols} columns are no heads of {head_dim}")));
    }
    let (rows, heads) = (dimension(OP, n)?, dimension(OP, cols / head_dim)?);
    if rows == 0 || heads == 0 {
        return Ok(());
    }
    let arguments = GatedNormArgs {
        heads,
        head_dim: dimension(OP, head_dim)?,
        x: x.ptr(),
        weight: norm.weight.ptr(),
        eps: norm.eps,
        gate: gate.ptr(),
        gate_cols: dimension(OP, gate.cols)?,
        first_gate: dimension(OP, first_gate)?,
        out_scale: scale,
        out: out.ptr_mut(),
    };
    let config = LaunchConfig { grid: [rows, heads, 1], block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a block for each head of each row; the shapes were checked; `out` is borrowed alone.
    unsafe { launch(&Dependent(device), plain(), &[dtype.name().into()], &config, arguments) }
}
