//! `rows *= sigmoid(gate)`, value by value: the gate of attention.

use super::exp::exp;
use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Scales the values of the first `n` rows: `[n, cols]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn sigmoid_mul(n: usize, gate: &Tensor, rows: &mut Tensor) -> Result<()> {
    let cols = rows.cols();
    gate.expect("sigmoid_mul", "gate", n, cols)?;
    rows.expect("sigmoid_mul", "rows", n, cols)?;
    for_each_row(rows.first_mut(n), cols, |i, row| {
        row.iter_mut().zip(gate.row(i)).for_each(|(value, gate)| *value /= 1.0 + exp(-gate));
    });
    Ok(())
}
