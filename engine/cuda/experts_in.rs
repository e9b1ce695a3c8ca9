//! The first half of the experts that rows go to.

use super::device::Device;
use super::experts;
use super::launch::{dimension, launch};
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use super::weight::Weight;
use crate::error::Result;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::experts_in::{BLOCK_SIZE, ExpertsInArgs, WARPS_PER_BLOCK, plain};

const OP: &str = "experts_in";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::Ops::experts_in`]
pub(super) fn experts_in(
    device: &Device,
    n: usize,
    x: &Activation,
    chosen: &Tensor,
    gate_up: [&Weight; 2],
    inner: &mut Tensor,
) -> Result<()> {
    let (num_chosen, width) = experts::shape(OP, n, chosen, inner)?;
    x.expect(OP, "x", x.dtype, n, x.cols)?;
    let [gate, up] = gate_up.map(|weight| experts::matrices(OP, weight, width, x.cols));
    let (gate, up) = (gate?, up?);
    experts::expect_equal(OP, gate.count, up.count)?;
    if n == 0 {
        return Ok(());
    }
    let grid = [dimension(OP, n * num_chosen)?, dimension(OP, width)?.div_ceil(WARPS_PER_BLOCK), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    for (is_up, matrices) in [(0, gate), (1, up)] {
        let arguments = ExpertsInArgs {
            num_experts: dimension(OP, matrices.count)?,
            num_chosen: dimension(OP, num_chosen)?,
            hidden_size: dimension(OP, x.cols)?,
            intermediate_size: dimension(OP, width)?,
            is_up,
            scale: matrices.scale,
            x: x.ptr(),
            chosen: chosen.ptr(),
            weight: matrices.data,
            inner: inner.ptr_mut(),
        };
        let formats = [matrices.format.into(), x.dtype.name().into()];
        // SAFETY: blocks for each row and each of its experts, a warp for each of their values; the shapes were checked; the kernel
        // takes no expert that is not there; `inner` is borrowed alone.
        unsafe { launch(device, plain(), &formats, &config, arguments)? }
    }
    Ok(())
}
