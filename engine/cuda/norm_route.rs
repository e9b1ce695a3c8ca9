//! The norm before a mixture of experts and its router, in one kernel.

use super::device::{Dependent, Device};
use super::experts::Workspace;
use super::launch::{dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::route::expect_counts;
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::parts::{RmsNorm, Router};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::norm_route::{BLOCK_SIZE, MAX_ROWS, NormRouteArgs, split};

const OP: &str = "norm_route";

/// The most rows of which each has blocks of its own.
const FEW_ROWS: u32 = 4;
/// The most shared memory of a block for rows: devices of compute capability 8.0 have 163 KiB, of which keys take 16.
const MAX_STAGE_BYTES: usize = 140 << 10;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[split().instances()])
}

/// Whether the kernel takes rows of so many values.
pub(super) fn takes(hidden_size: usize) -> bool {
    hidden_size > 0 && hidden_size.is_multiple_of(4) && 4 * hidden_size <= MAX_STAGE_BYTES
}

/// `normed = rms_norm(x)` and [`crate::ops::experts::ExpertOps::route`] of that.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn norm_route(
    device: &Device,
    workspace: &mut Workspace,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    router: &Router<DeviceBuffer<f32>>,
    normed: &mut Activation,
    chosen: &mut Tensor,
) -> Result<()> {
    let &Router { ref weight, num_experts, num_experts_per_tok, renormalise } = router;
    expect_counts(OP, num_experts, num_experts_per_tok)?;
    let (cols, dtype) = (x.cols, normed.dtype);
    if !takes(cols) || n > workspace.rows || num_experts != workspace.config.num_experts {
        return Err(Error::Request(format!(
            "{OP}: [{n}, {cols}] to {num_experts} experts; there is room for {} rows, of a multiple of 4 values, to {}",
            workspace.rows, workspace.config.num_experts
        )));
    }
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", &norm.weight, cols)?;
    expect_vector(OP, "router", weight, num_experts * cols)?;
    normed.expect(OP, "normed", dtype, n, cols)?;
    chosen.expect(OP, "chosen", n, 2 * num_experts_per_tok)?;
    let (rows, experts) = (dimension(OP, n)?, dimension(OP, num_experts)?);
    if rows == 0 {
        return Ok(());
    }
    let together = rows > FEW_ROWS && MAX_ROWS as usize * 4 * cols <= MAX_STAGE_BYTES;
    let rows_of_block = if together { MAX_ROWS } else { 1 };
    let groups = rows.div_ceil(rows_of_block);
    // A warp an expert, where there are few rows.
    let most = experts.div_ceil(BLOCK_SIZE / 32);
    let splits = (2 * device.info().multiprocessors / groups).clamp(1, most);
    let arguments = NormRouteArgs {
        num_rows: rows,
        hidden_size: dimension(OP, cols)?,
        num_experts: experts,
        num_chosen: dimension(OP, num_experts_per_tok)?,
        renormalise: renormalise.into(),
        splits,
        eps: norm.eps,
        x: x.ptr(),
        norm: norm.weight.ptr(),
        router: weight.ptr(),
        logits: workspace.logits.ptr_mut(),
        counters: workspace.counters.ptr_mut(),
        normed: normed.ptr_mut(),
        chosen: chosen.ptr_mut(),
    };
    let shared_bytes = rows_of_block * arguments.hidden_size * 4;
    let config = LaunchConfig { grid: [groups * splits, 1, 1], block: [BLOCK_SIZE, 1, 1], shared_bytes };
    let values = [dtype.name().into(), rows_of_block.into()];
    // SAFETY: blocks for all rows and splits; sizes and shapes were checked; what is written is borrowed alone.
    unsafe { launch(&Dependent(device), split(), &values, &config, arguments) }
}
