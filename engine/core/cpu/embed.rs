//! `out[i] = table[tokens[i]]`: the embedding.

use super::simd::{Isa, to_f32};
use super::tensor::Tensor;
use super::{expect_below, for_each_row};
use crate::error::Result;
use crate::weights::Matrix;

/// Copies a row of `table` `[vocab_size, hidden_size]` for every token, widened to f32: `[num_tokens, hidden_size]`.
///
/// # Errors
/// [`crate::Error::Request`] if a token is beyond the table or the shapes do not fit.
pub fn embed(isa: Isa, tokens: &[u32], table: &Matrix, out: &mut Tensor) -> Result<()> {
    expect_below("embed", "token", tokens, table.rows)?;
    out.expect("embed", "out", tokens.len(), table.cols)?;
    let row_bytes = table.row_bytes()?;
    for_each_row(out.first_mut(tokens.len()), table.cols, |i, out| {
        to_f32(
            isa,
            table.format,
            table.scale,
            &table.data[tokens[i] as usize * row_bytes..][..row_bytes],
            out,
        );
    });
    Ok(())
}
