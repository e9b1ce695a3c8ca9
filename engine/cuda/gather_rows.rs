//! The rows that need logits.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::gather_rows::{BLOCK_SIZE, GatherRowsArgs, plain};

const OP: &str = "gather_rows";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[gpu_kernels::gather_rows::plain().instances()])
}

/// `out[i] = x[logit_rows[i]]`: `[num_logits, cols]`.
pub(super) fn gather_rows(device: &Device, batch: &CudaBatch, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let n = batch.shape.num_logits;
    out.expect(OP, "out", n, x.cols)?;
    expect_bound(OP, "row", batch.shape.logit_row_bound, x.rows)?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let arguments = GatherRowsArgs { cols, rows: batch.logit_rows(), x: x.ptr(), out: out.ptr_mut() };
    // SAFETY: one row of blocks for each of the `n` rows of out; every index is a row of x, checked above.
    unsafe { launch(device, plain(), &[], &config, arguments) }
}
