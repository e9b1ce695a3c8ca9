//! `out = x / sqrt(mean(x²) + eps) * weight * silu(gate)`, head by head: what follows the gated delta rule.

use super::exp::silu;
use super::for_each_row;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ops::parts::RmsNorm;

const OP: &str = "gated_norm";

/// Of the first `n` rows of `x`, in heads of as many values as the norm has; the gate is in `gate` from column `first` on. The mean is taken
/// in f64, in order.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn gated_norm(
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<Vec<f32>>,
    gate: &Tensor,
    first: usize,
    out: &mut Tensor,
) -> Result<()> {
    let (cols, head_dim) = (out.cols(), norm.weight.len());
    x.expect(OP, "x", n, cols)?;
    out.expect(OP, "out", n, cols)?;
    gate.expect(OP, "gate", n, gate.cols().max(first + cols))?;
    if head_dim == 0 || !cols.is_multiple_of(head_dim) {
        return Err(Error::Request(format!("{OP}: {cols} columns are no heads of {head_dim}")));
    }
    for_each_row(out.first_mut(n), cols, |i, out| {
        let gates = gate.row(i)[first..].chunks_exact(head_dim);
        let heads = out.chunks_exact_mut(head_dim).zip(x.row(i).chunks_exact(head_dim));
        for ((out, x), gate) in heads.zip(gates) {
            let sum: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = (1.0 / (sum / head_dim as f64 + f64::from(norm.eps)).sqrt()) as f32;
            for (j, out) in out.iter_mut().enumerate() {
                *out = x[j] * scale * norm.weight[j] * silu(gate[j]);
            }
        }
    });
    Ok(())
}
