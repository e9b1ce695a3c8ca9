//! `rows[i] *= sigmoid(x[i] · gate)`: the share of a shared expert.

use super::for_each_row;
use super::route::dot;
use super::tensor::Tensor;
use crate::error::Result;

/// Scales each of the first `n` rows: `x` is `[n, gate.len()]`. The product is taken in f64.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn gate_rows(n: usize, x: &Tensor, gate: &[f32], rows: &mut Tensor) -> Result<()> {
    let cols = rows.cols();
    x.expect("gate_rows", "x", n, gate.len())?;
    rows.expect("gate_rows", "rows", n, cols)?;
    for_each_row(rows.first_mut(n), cols, |i, row| {
        let share = (1.0 / (1.0 + (-dot(x.row(i), gate)).exp())) as f32;
        row.iter_mut().for_each(|value| *value *= share);
    });
    Ok(())
}
