//! `x[i] += table[positions[i]]`: learned positions.

use super::tensor::Tensor;
use super::{expect_below, for_each_row};
use crate::error::Result;

/// Adds to each row the row of `table` `[max_positions, hidden_size]` of its position: `[num_tokens, hidden_size]`.
///
/// # Errors
/// [`crate::Error::Request`] if a position is beyond the table or the shapes do not fit.
pub fn add_positions(positions: &[u32], table: &[f32], x: &mut Tensor) -> Result<()> {
    let (n, cols) = (positions.len(), x.cols());
    x.expect("add_positions", "x", n, cols)?;
    expect_below("add_positions", "position", positions, table.len() / cols.max(1))?;
    for_each_row(x.first_mut(n), cols, |i, x| {
        let row = &table[positions[i] as usize * cols..][..cols];
        x.iter_mut().zip(row).for_each(|(x, value)| *x += value);
    });
    Ok(())
}
