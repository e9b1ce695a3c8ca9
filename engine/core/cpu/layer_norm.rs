//! `out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias`, row by row.
//!
//! Source: Ba, Kiros and Hinton, Layer Normalization (2016).

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ops::parts::LayerNorm;

const OP: &str = "layer_norm";

/// Normalises the first `n` rows: `[n, hidden_size]`. Mean and variance are taken in f64, in order.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn layer_norm(n: usize, x: &Tensor, norm: &LayerNorm<Vec<f32>>, out: &mut Tensor) -> Result<()> {
    let LayerNorm { weight, bias, eps } = norm;
    let cols = weight.len();
    x.expect(OP, "x", n, cols)?;
    out.expect(OP, "out", n, cols)?;
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != cols) {
        return Err(Error::Request(format!("{OP}: {cols} weights and {} biases", bias.len())));
    }
    for_each_row(out.first_mut(n), cols, |i, out| {
        let x = x.row(i);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (variance + f64::from(*eps)).sqrt();
        for ((out, &x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = ((f64::from(x) - mean) * scale) as f32 * weight;
        }
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    });
    Ok(())
}
