//! The second half of the experts that rows go to, and their weighted sum.

use super::device::Device;
use super::experts;
use super::launch::{dimension, launch};
use super::tensor::Tensor;
use super::variant::Operation;
use super::weight::Weight;
use crate::error::Result;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::experts_out::{BLOCK_SIZE, ExpertsOutArgs, WARPS_PER_BLOCK, plain};

const OP: &str = "experts_out";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::Ops::experts_out`]
pub(super) fn experts_out(
    device: &Device,
    n: usize,
    inner: &Tensor,
    chosen: &Tensor,
    down: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let (num_chosen, width) = experts::shape(OP, n, chosen, inner)?;
    let hidden_size = out.cols;
    out.expect(OP, "out", n, hidden_size)?;
    let matrices = experts::matrices(OP, down, hidden_size, width)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = ExpertsOutArgs {
        num_experts: dimension(OP, matrices.count)?,
        num_chosen: dimension(OP, num_chosen)?,
        intermediate_size: dimension(OP, width)?,
        hidden_size: dimension(OP, hidden_size)?,
        scale: matrices.scale,
        inner: inner.ptr(),
        chosen: chosen.ptr(),
        weight: matrices.data,
        out: out.ptr_mut(),
    };
    let grid = [dimension(OP, n)?, arguments.hidden_size.div_ceil(WARPS_PER_BLOCK), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: blocks for each row, a warp for each of its values; the shapes were checked; the kernel takes no expert that is not
    // there; `out` is borrowed alone.
    unsafe { launch(device, plain(), &[matrices.format.into()], &config, arguments) }
}
