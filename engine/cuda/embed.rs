//! Rows of the embedding table.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::units::{SPAN, UnitMatrix};
use super::variant::Operation;
use super::weight::{BlockMatrix, Piece, Values, Weight};
use crate::error::{Error, Result};
use gpu_kernels::embed::{BLOCK_SIZE, EmbedArgs, plain};
use gpu_kernels::{blocks, units};

const OP: &str = "embed";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances(), blocks::embed().instances(), units::embed().instances()])
}

/// `out[i] = table[token(i)]`: `[num_tokens, hidden_size]`, with the batch's tokens or, where it says so, those sampled last.
pub(super) fn embed(
    device: &Device,
    batch: &CudaBatch,
    sampled: &DeviceBuffer<u32>,
    table: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let n = batch.shape.num_tokens;
    out.expect(OP, "out", n, table.cols)?;
    expect_bound(OP, "token", batch.shape.token_bound, table.rows)?;
    expect_bound(OP, "row of the last draw", batch.shape.sampled_row_bound, sampled.len())?;
    let (rows, cols, vocab_size) = (dimension(OP, n)?, dimension(OP, out.cols)?, dimension(OP, table.rows)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let (tokens, sampled_rows, sampled, out) =
        (batch.tokens(), batch.sampled_rows(), sampled.ptr(), out.ptr_mut());
    let in_blocks = |table, scale| blocks::EmbedArgs {
        hidden_size: cols,
        vocab_size,
        scale,
        tokens,
        sampled_rows,
        sampled,
        table,
        out,
    };
    // SAFETY: one row of blocks for each of the `n` tokens; every row of the draw has a place in `sampled`, and a given token is a
    // row of the table, checked above, so that it has one; the kernel checks what was drawn.
    unsafe {
        match &table.pieces[..] {
            [Piece { values: Values::Float(Activation { data, dtype, .. }), scales }] => {
                let (table, scale) = (data.ptr(), scales.stored.get());
                let arguments = EmbedArgs {
                    hidden_size: cols,
                    vocab_size,
                    tokens,
                    sampled_rows,
                    sampled,
                    scale,
                    table,
                    out,
                };
                launch(device, plain(), &[dtype.name().into()], &config, arguments)
            }
            [Piece { values: Values::Blocks(BlockMatrix { data, format, .. }), scales }] => {
                let arguments = in_blocks(data.ptr(), scales.stored.get());
                launch(device, blocks::embed(), &[format.name().into()], &config, arguments)
            }
            [Piece { values: Values::Units(UnitMatrix { units: table, .. }), scales }]
                if (table.span, table.first) == (SPAN, 0) =>
            {
                let config = elements_of_rows(rows, cols / 4, units::BLOCK_SIZE);
                let arguments = in_blocks(table.at, scales.stored.get());
                launch(device, units::embed(), &[table.format.name().into()], &config, arguments)
            }
            _ => Err(Error::Request(format!("{OP}: the table is one matrix, not several"))),
        }
    }
}
