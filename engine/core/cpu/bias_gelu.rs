//! `out = gelu(x + bias)`, with `gelu(v) = v / 2 * (1 + tanh(√(2 / π) (v + 0.044715 v³)))`.
//!
//! Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); the approximation by tanh is what GPT-2 was trained with.

use super::exp::exp;
use super::for_each_row;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use std::f32::consts::{FRAC_2_SQRT_PI, SQRT_2};

const OP: &str = "bias_gelu";

/// Element by element over the first `n` rows: `[n, cols]`.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn bias_gelu(n: usize, x: &Tensor, bias: Option<&Vec<f32>>, out: &mut Tensor) -> Result<()> {
    let cols = out.cols();
    x.expect(OP, "x", n, cols)?;
    out.expect(OP, "out", n, cols)?;
    if let Some(bias) = bias.filter(|bias| bias.len() != cols) {
        return Err(Error::Request(format!("{OP}: {cols} columns and {} biases", bias.len())));
    }
    for_each_row(out.first_mut(n), cols, |i, out| {
        out.copy_from_slice(x.row(i));
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
        out.iter_mut().for_each(|out| *out = gelu(*out));
    });
    Ok(())
}

/// With `1 + tanh(u) = 2 / (1 + e^-2u)`: one exponential, and no difference of numbers near 1.
fn gelu(value: f32) -> f32 {
    /// `2 √(2 / π)`
    const SLOPE: f32 = FRAC_2_SQRT_PI * SQRT_2;
    let twice = SLOPE * value * (1.0 + 0.044_715 * value * value);
    value / (1.0 + exp(-twice))
}
