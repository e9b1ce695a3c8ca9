//! Rows that are scaled by a gate of their own.

use super::device::Device;
use super::launch::{block_per_row, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::Activation;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::gate_rows::{BLOCK_SIZE, GateRowsArgs, plain};

const OP: &str = "gate_rows";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::Ops::gate_rows`]
pub(super) fn gate_rows(
    device: &Device,
    n: usize,
    x: &Activation,
    gate: &DeviceBuffer<f32>,
    rows: &mut Activation,
) -> Result<()> {
    let (dtype, cols) = (rows.dtype, rows.cols);
    x.expect(OP, "x", dtype, n, x.cols)?;
    expect_vector(OP, "gate", gate, x.cols)?;
    rows.expect(OP, "rows", dtype, n, cols)?;
    let count = dimension(OP, n)?;
    if count == 0 {
        return Ok(());
    }
    let arguments = GateRowsArgs {
        hidden_size: dimension(OP, x.cols)?,
        cols: dimension(OP, cols)?,
        x: x.ptr(),
        gate: gate.ptr(),
        rows: rows.ptr_mut(),
    };
    let config = block_per_row(count, BLOCK_SIZE);
    // SAFETY: a block for each row; the shapes were checked; `rows` is borrowed alone.
    unsafe { launch(device, plain(), &[dtype.name().into()], &config, arguments) }
}
