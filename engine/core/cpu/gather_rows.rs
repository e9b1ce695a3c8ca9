//! `out[i] = x[rows[i]]`: the rows that need logits.

use super::expect_below;
use super::tensor::Tensor;
use crate::error::Result;

/// Copies the rows `rows` of `x` `[num_tokens, cols]` to the first rows of `out`, `[rows.len(), cols]`.
///
/// # Errors
/// [`crate::Error::Request`] if a row is beyond `x` or the shapes do not fit.
pub fn gather_rows(rows: &[u32], x: &Tensor, out: &mut Tensor) -> Result<()> {
    expect_below("gather_rows", "row", rows, x.rows())?;
    out.expect("gather_rows", "out", rows.len(), x.cols())?;
    for (i, &row) in rows.iter().enumerate() {
        out.values_mut()[i * x.cols()..][..x.cols()].copy_from_slice(x.row(row as usize));
    }
    Ok(())
}
