//! `x[i, c] += bias[c]`: the bias of a projection.

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Adds `bias` to each of the first `n` rows: `[n, cols]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn add_bias(n: usize, bias: &[f32], x: &mut Tensor) -> Result<()> {
    x.expect("add_bias", "x", n, bias.len())?;
    for_each_row(x.first_mut(n), bias.len(), |_, x| x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias));
    Ok(())
}
