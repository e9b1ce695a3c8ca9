//! The gate of attention.

use super::device::{Dependent, Device};
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::sigmoid_mul::{BLOCK_SIZE, SigmoidMulArgs, plain};

const OP: &str = "sigmoid_mul";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// [`crate::ops::hybrid::HybridOps::sigmoid_mul`]
pub(super) fn sigmoid_mul(device: &Device, n: usize, gate: &Tensor, rows: &mut Activation) -> Result<()> {
    let (dtype, cols) = (rows.dtype, rows.cols);
    gate.expect(OP, "gate", n, cols)?;
    rows.expect(OP, "rows", dtype, n, cols)?;
    let (n, cols) = (dimension(OP, n)?, dimension(OP, cols)?);
    if n == 0 || cols == 0 {
        return Ok(());
    }
    let arguments = SigmoidMulArgs { cols, gate: gate.ptr(), rows: rows.ptr_mut() };
    let config = elements_of_rows(n, cols, BLOCK_SIZE);
    // SAFETY: a row of blocks for each row; the shapes were checked; `rows` is borrowed alone.
    unsafe { launch(&Dependent(device), plain(), &[dtype.name().into()], &config, arguments) }
}
