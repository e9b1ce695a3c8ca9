//! Which experts a row goes to, and with what weights.

use super::device::Device;
use super::launch::{block_per_row, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::parts::Router;
use gpu_kernels::route::{BLOCK_SIZE, MAX_CHOSEN, MAX_EXPERTS, RouteArgs, plain};

const OP: &str = "route";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// Refuses more experts than the kernels choose of, or may choose.
pub(super) fn expect_counts(op: &str, num_experts: usize, num_experts_per_tok: usize) -> Result<()> {
    let most = (MAX_EXPERTS as usize, num_experts.min(MAX_CHOSEN as usize));
    if (1..=most.0).contains(&num_experts) && (1..=most.1).contains(&num_experts_per_tok) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{op}: {num_experts_per_tok} of {num_experts} experts; a GPU takes up to {MAX_CHOSEN} of up to {MAX_EXPERTS}: use \
         --device cpu"
    )))
}

/// [`crate::ops::experts::ExpertOps::route`]
pub(super) fn route(
    device: &Device,
    n: usize,
    x: &Activation,
    router: &Router<DeviceBuffer<f32>>,
    chosen: &mut Tensor,
) -> Result<()> {
    let &Router { ref weight, num_experts, num_experts_per_tok, renormalise } = router;
    expect_counts(OP, num_experts, num_experts_per_tok)?;
    x.expect(OP, "x", x.dtype, n, x.cols)?;
    expect_vector(OP, "router", weight, num_experts * x.cols)?;
    chosen.expect(OP, "chosen", n, 2 * num_experts_per_tok)?;
    let rows = dimension(OP, n)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = RouteArgs {
        hidden_size: dimension(OP, x.cols)?,
        num_experts: dimension(OP, num_experts)?,
        num_chosen: dimension(OP, num_experts_per_tok)?,
        renormalise: renormalise.into(),
        x: x.ptr(),
        router: weight.ptr(),
        chosen: chosen.ptr_mut(),
    };
    let config = block_per_row(rows, BLOCK_SIZE);
    // SAFETY: a block for each row; sizes and shapes were checked; `chosen` is borrowed alone.
    unsafe { launch(device, plain(), &[x.dtype.name().into()], &config, arguments) }
}
