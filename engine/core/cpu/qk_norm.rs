//! The norms of the heads of Q and K, in place.

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ops::parts::QkNorm;

const OP: &str = "qk_norm";

/// Of the first `n` rows `[q; k; v]` of `qkv`, which have `heads` heads of q and of k (and as many of v as of k), every head of q and of k
/// becomes `x / sqrt(mean(x²) + eps) * weight`, where `x` is what it was and its bias. The mean is taken in f64, in order.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn qk_norm(
    n: usize,
    [q_heads, k_heads]: [usize; 2],
    norm: &QkNorm<Vec<f32>>,
    bias: [Option<&Vec<f32>>; 2],
    qkv: &mut Tensor,
) -> Result<()> {
    let head_dim = norm.q.len();
    let (cols, q_size) = ((q_heads + 2 * k_heads) * head_dim, q_heads * head_dim);
    qkv.expect(OP, "qkv", n, cols)?;
    let wrong = |bias: Option<&Vec<f32>>, heads| bias.is_some_and(|bias| bias.len() != heads * head_dim);
    if head_dim == 0 || norm.k.len() != head_dim || wrong(bias[0], q_heads) || wrong(bias[1], k_heads) {
        return Err(Error::Request(format!(
            "{OP}: the norms and biases are not those of {q_heads} and {k_heads} heads of {head_dim}"
        )));
    }
    for_each_row(qkv.first_mut(n), cols, |_, row| {
        let (q, kv) = row.split_at_mut(q_size);
        norm_heads(q, bias[0], &norm.q, norm.eps);
        norm_heads(&mut kv[..k_heads * head_dim], bias[1], &norm.k, norm.eps);
    });
    Ok(())
}

fn norm_heads(x: &mut [f32], bias: Option<&Vec<f32>>, weight: &[f32], eps: f32) {
    if let Some(bias) = bias {
        x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
    for head in x.chunks_exact_mut(weight.len()) {
        let sum: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = (1.0 / (sum / head.len() as f64 + f64::from(eps)).sqrt()) as f32;
        head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
    }
}
