//! `x += delta`: the residual addition.

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// `x[i] += delta[i]` for the first `n` rows, `[n, cols]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes differ or there are fewer rows.
pub fn add(n: usize, x: &mut Tensor, delta: &Tensor) -> Result<()> {
    let cols = x.cols();
    x.expect("add", "x", n, cols)?;
    delta.expect("add", "delta", n, cols)?;
    for_each_row(x.first_mut(n), cols, |i, x| {
        for (x, delta) in x.iter_mut().zip(delta.row(i)) {
            *x += delta;
        }
    });
    Ok(())
}
