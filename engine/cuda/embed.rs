//! Rows of the embedding table.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{by_dtype, dimension, elements_of_rows};
use super::memory::DeviceBuffer;
use super::tensor::{Tensor, Weight};
use crate::error::Result;
use gpu_kernels::embed::{BLOCK_SIZE, embed_bf16_plain, embed_f16_plain, embed_f32_plain};

const OP: &str = "embed";

/// `out[i] = table[token(i)]`: `[num_tokens, hidden_size]`, with the batch's tokens or, where it says so, those `drawn` last.
pub(super) fn embed(
    device: &Device,
    batch: &CudaBatch,
    drawn: &DeviceBuffer<u32>,
    table: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let n = batch.shape.num_tokens;
    out.expect(OP, "out", n, table.0.cols)?;
    expect_bound(OP, "token", batch.shape.token_bound, table.0.rows)?;
    expect_bound(OP, "row of the last draw", batch.shape.drawn_bound, drawn.len())?;
    let (rows, cols, vocab_size) =
        (dimension(OP, n)?, dimension(OP, out.cols)?, dimension(OP, table.0.rows)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let (tokens, drawn_rows, drawn) = (batch.tokens(), batch.drawn_rows(), drawn.ptr());
    let (table, dtype) = (table.0.ptr(), table.dtype());
    // SAFETY: one row of blocks for each of the `n` tokens; every row of the draw has a place in `drawn`, and a given token is a
    // row of the table, checked above, so that it has one; the kernel checks what was drawn.
    unsafe {
        by_dtype!(
            dtype,
            embed_f32_plain,
            embed_f16_plain,
            embed_bf16_plain,
            (device, &config, cols, vocab_size, tokens, drawn_rows, drawn, table.cast(), out.ptr_mut())
        )
    }
}
