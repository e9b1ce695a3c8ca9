//! Rows of the embedding table.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Tensor, Weight};
use crate::error::Result;
use gpu_kernels::embed::{BLOCK_SIZE, EmbedArgs, plain};

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
    let arguments = EmbedArgs {
        hidden_size: cols,
        vocab_size,
        tokens: batch.tokens(),
        drawn_rows: batch.drawn_rows(),
        drawn: drawn.ptr(),
        table: table.0.ptr(),
        out: out.ptr_mut(),
    };
    // SAFETY: one row of blocks for each of the `n` tokens; every row of the draw has a place in `drawn`, and a given token is a
    // row of the table, checked above, so that it has one; the kernel checks what was drawn.
    unsafe { launch(device, plain(), &[table.dtype().into()], &config, arguments) }
}
