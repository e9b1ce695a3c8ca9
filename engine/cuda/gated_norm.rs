//! The norm of heads with a gate, behind the gated delta rule.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::parts::RmsNorm;
use cuda_std::launch::{Kernels, LaunchConfig};
use gpu_kernels::gated_norm::{BLOCK_SIZE, GatedNormArgs, VEC4_HEAD_DIM, WARPS, plain, vec4};

pub(super) const OP: &str = "gated_norm";

/// What the kernels take, of `rows` rows.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    arguments: GatedNormArgs,
}

variants! { Case, Launch<Case>;
    "vec4" [vec4]: heads_of_warps => |device, case| unsafe { launch_heads(device, case, vec4(), WARPS) };
    "plain" [plain]: always => |device, case| unsafe { launch_heads(device, case, plain(), BLOCK_SIZE / 32) };
}

fn heads_of_warps(case: &Case) -> Result<(), &'static str> {
    let GatedNormArgs { head_dim, gate_cols, first_gate, .. } = case.arguments;
    if head_dim != VEC4_HEAD_DIM {
        Err("heads are not of 128 values")
    } else if !(gate_cols.is_multiple_of(4) && first_gate.is_multiple_of(4)) {
        Err("gates are not aligned to 16 bytes")
    } else {
        Ok(())
    }
}

/// # Safety
/// The case is one for the kernel, whose blocks have `warps` heads.
unsafe fn launch_heads(
    device: &Device,
    case: &Case,
    kernels: &Kernels<GatedNormArgs>,
    warps: u32,
) -> Result<()> {
    let grid = [case.rows, case.arguments.heads.div_ceil(warps), 1];
    let config = LaunchConfig { grid, block: [32 * warps, 1, 1], shared_bytes: 0 };
    // SAFETY: a warp for each head of each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

/// [`crate::ops::hybrid::HybridOps::gated_norm`]: the gate is in a tensor from a column on, results are multiplied with `scale`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn gated_norm(
    device: &Device,
    choice: &KernelChoice,
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
    let case = Case { dtype, rows, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
