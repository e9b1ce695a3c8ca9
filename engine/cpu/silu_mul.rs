//! `out = silu(gate) * up`, with `silu(g) = g / (1 + exp(-g))`.
//!
//! Source: Shazeer, GLU Variants Improve Transformer (2020).

use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Element by element over the first `n` rows: `[n, intermediate_size]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes differ.
pub fn silu_mul(n: usize, gate: &Tensor, up: &Tensor, out: &mut Tensor) -> Result<()> {
    let cols = gate.cols();
    gate.expect("silu_mul", "gate", n, cols)?;
    up.expect("silu_mul", "up", n, cols)?;
    out.expect("silu_mul", "out", n, cols)?;
    for_each_row(out.first_mut(n), cols, |i, out| {
        for ((out, gate), up) in out.iter_mut().zip(gate.row(i)).zip(up.row(i)) {
            *out = gate / (1.0 + (-gate).exp()) * up;
        }
    });
    Ok(())
}
