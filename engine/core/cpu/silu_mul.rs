//! `out = silu(gate) * up`, with `silu(g) = g / (1 + exp(-g))`.
//!
//! Source: Shazeer, GLU Variants Improve Transformer (2020).

use super::exp::silu;
use super::for_each_row;
use super::tensor::Tensor;
use crate::error::Result;

/// Element by element over the first `n` rows, each `[gate; up]`: `[n, 2 * intermediate_size] -> [n, intermediate_size]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn silu_mul(n: usize, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
    let cols = out.cols();
    gate_up.expect("silu_mul", "gate_up", n, 2 * cols)?;
    out.expect("silu_mul", "out", n, cols)?;
    for_each_row(out.first_mut(n), cols, |i, out| {
        let (gate, up) = gate_up.row(i).split_at(cols);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(*gate) * up;
        }
    });
    Ok(())
}
