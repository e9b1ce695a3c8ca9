//! `x[i] += bias`: the bias of a projection.

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Adds `bias` `[cols]` to each of the first `n` rows of `x`, `[n, cols]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes differ or there are fewer rows.
pub fn add_bias(n: usize, x: &mut Tensor, bias: &[f32]) -> Result<()> {
    x.expect("add_bias", "x", n, bias.len())?;
    for_each_row(x.first_mut(n), bias.len(), |_, x| {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
    });
    Ok(())
}
