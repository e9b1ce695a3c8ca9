//! `out = x / sqrt(mean(x²) + eps) * weight`, row by row.
//!
//! Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Normalises the first `n` rows: `[n, hidden_size]`. The mean is taken in f64, in order.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn rms_norm(n: usize, x: &Tensor, weight: &[f32], eps: f32, out: &mut Tensor) -> Result<()> {
    let cols = weight.len();
    x.expect("rms_norm", "x", n, cols)?;
    out.expect("rms_norm", "out", n, cols)?;
    for_each_row(out.first_mut(n), cols, |i, out| {
        let x = x.row(i);
        let sum: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = (1.0 / (sum / cols as f64 + f64::from(eps)).sqrt()) as f32;
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    });
    Ok(())
}
