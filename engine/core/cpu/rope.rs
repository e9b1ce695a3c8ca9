//! Rotary position embedding, rotate-half, in place.

use super::tensor::Tensor;
use super::{expect_below, for_each_row};
use crate::error::{Error, Result};

/// Rotates every head of row `i` by `positions[i]`: with `j < head_dim / 2` and the angle of that position and `j`,
/// `(x[j], x[j + half]) = (x[j] cos - x[j + half] sin, x[j + half] cos + x[j] sin)`. `x` is
/// `[positions.len(), num_heads * head_dim]`; `cos` and `sin` are [`crate::rope::rope_table`].
///
/// # Errors
/// [`Error::Request`] if a position is beyond the table or the shapes do not fit.
pub fn rope(
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    head_dim: usize,
    num_heads: usize,
    x: &mut Tensor,
) -> Result<()> {
    let half = head_dim / 2;
    if half == 0 || !head_dim.is_multiple_of(2) || cos.len() != sin.len() {
        return Err(Error::Request(format!("rope: no table for head_dim {head_dim}")));
    }
    expect_below("rope", "position", positions, cos.len() / half)?;
    x.expect("rope", "x", positions.len(), num_heads * head_dim)?;
    for_each_row(x.first_mut(positions.len()), num_heads * head_dim, |i, x| {
        let at = positions[i] as usize * half;
        rotate(&cos[at..][..half], &sin[at..][..half], x);
    });
    Ok(())
}

/// Rotates the heads of a row by the angles of one position, `[head_dim / 2]` cosines and sines.
pub(super) fn rotate(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for j in 0..half {
            (a[j], b[j]) = (a[j] * cos[j] - b[j] * sin[j], b[j] * cos[j] + a[j] * sin[j]);
        }
    }
}
