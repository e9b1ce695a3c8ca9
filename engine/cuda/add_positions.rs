//! Learned positions.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::memory::DeviceBuffer;
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::add_positions::{AddPositionsArgs, BLOCK_SIZE, plain};

const OP: &str = "add_positions";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::Ops::add_positions`]
pub(super) fn add_positions(
    device: &Device,
    batch: &CudaBatch,
    table: &DeviceBuffer<f32>,
    x: &mut Tensor,
) -> Result<()> {
    let (n, cols) = (batch.shape.num_tokens, x.cols);
    x.expect(OP, "x", n, cols)?;
    expect_bound(OP, "position", batch.shape.position_bound, table.len() / cols.max(1))?;
    let (rows, hidden_size) = (dimension(OP, n)?, dimension(OP, cols)?);
    if rows == 0 || hidden_size == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, hidden_size, BLOCK_SIZE);
    let arguments =
        AddPositionsArgs { hidden_size, positions: batch.positions(), table: table.ptr(), x: x.ptr_mut() };
    // SAFETY: one row of blocks for each of the `n` tokens; every position is a row of the table, checked above.
    unsafe { launch(device, plain(), &[], &config, arguments) }
}
