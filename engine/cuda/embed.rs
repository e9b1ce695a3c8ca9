//! Rows of the embedding table.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{by_dtype, dimension, elements_of_rows};
use super::tensor::{Tensor, Weight};
use crate::error::Result;
use gpu_kernels::embed::{BLOCK_SIZE, embed_bf16_plain, embed_f16_plain, embed_f32_plain};

const OP: &str = "embed";

/// `out[i] = table[tokens[i]]`: `[num_tokens, hidden_size]`.
pub(super) fn embed(device: &Device, batch: &CudaBatch, table: &Weight, out: &mut Tensor) -> Result<()> {
    let n = batch.shape.num_tokens;
    out.expect(OP, "out", n, table.0.cols)?;
    expect_bound(OP, "token", batch.shape.token_bound, table.0.rows)?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, out.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let (tokens, table, dtype) = (batch.tokens(), table.0.ptr(), table.dtype());
    // SAFETY: one row of blocks for each of the `n` tokens; every token is a row of the table, checked above.
    unsafe {
        by_dtype!(
            dtype,
            embed_f32_plain,
            embed_f16_plain,
            embed_bf16_plain,
            (device, &config, cols, tokens, table.cast(), out.ptr_mut())
        )
    }
}
