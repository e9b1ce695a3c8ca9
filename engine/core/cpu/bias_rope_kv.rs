//! What is between the product of Q, K and V and attention: biases, norms of heads, rotation, the pages of K and V.

use super::kv::{Kind, KvCache, write_row};
use super::tensor::Tensor;
use super::{expect_below, for_each_row};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::kv_format::KvFormat;
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use crate::ops::parts::QkNorm;
use crate::rope::RopeTable;

const OP: &str = "bias_rope_kv";

/// Of each row `[q; k; v]` of `qkv`: biases are added, heads of Q and K normed if there is a `norm`, and rotated by the row's position; Q
/// goes to `q` `[num_tokens, num_attention_heads * head_dim]`, K and V to the row's slot in `layer`, rounded to the format of the cache.
///
/// # Errors
/// [`Error::Request`] if a position, a slot or the layer is out of range or the shapes do not fit.
#[allow(clippy::too_many_arguments, reason = "the operation has these operands")]
pub fn bias_rope_kv(
    batch: &Batch,
    layer: usize,
    angles: &RopeTable,
    qkv: &Tensor,
    bias: [Option<&Vec<f32>>; 3],
    norm: Option<&QkNorm<Vec<f32>>>,
    q: &mut Tensor,
    cache: &mut KvCache,
) -> Result<()> {
    let layout = *cache.layout();
    let KvLayout { formats, num_pages, num_key_value_heads, head_dim, .. } = layout;
    let (n, half) = (batch.num_tokens(), head_dim / 2);
    let (q_size, kv_size) = (q.cols(), num_key_value_heads * head_dim);
    cache.expect_layer(OP, layer)?;
    expect_below(OP, "slot", &batch.slots, num_pages * PAGE_SIZE)?;
    expect_below(OP, "position", &batch.positions, angles.num_positions())?;
    q.expect(OP, "q", n, q_size)?;
    qkv.expect(OP, "qkv", n, q_size + 2 * kv_size)?;
    for (name, bias, size) in [("q", bias[0], q_size), ("k", bias[1], kv_size), ("v", bias[2], kv_size)] {
        if let Some(bias) = bias.filter(|bias| bias.len() != size) {
            return Err(Error::Request(format!("{OP}: {name} has {size} columns and {} biases", bias.len())));
        }
    }
    if half == 0 || !q_size.is_multiple_of(head_dim) {
        return Err(Error::Request(format!("{OP}: {q_size} columns of q are no heads of {head_dim}")));
    }
    if norm.is_some_and(|norm| norm.q.len() != head_dim || norm.k.len() != head_dim) {
        return Err(Error::Request(format!("{OP}: the norms of Q and K are not of heads of {head_dim}")));
    }
    let angles = |i: usize| {
        let at = batch.positions[i] as usize * half;
        (&angles.cos()[at..][..half], &angles.sin()[at..][..half])
    };
    for_each_row(q.first_mut(n), q_size, |i, q| {
        set(q, &qkv.row(i)[..q_size], bias[0]);
        norm.iter().for_each(|norm| norm_heads(q, &norm.q, norm.eps));
        let (cos, sin) = angles(i);
        rotate(cos, sin, q);
    });
    let mut row = vec![0.0; kv_size];
    for (i, &slot) in batch.slots.iter().enumerate() {
        let (k, v) = qkv.row(i)[q_size..].split_at(kv_size);
        set(&mut row, k, bias[1]);
        norm.iter().for_each(|norm| norm_heads(&mut row, &norm.k, norm.eps));
        let (cos, sin) = angles(i);
        rotate(cos, sin, &mut row);
        let (page, offset) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
        write_heads(formats.k, head_dim, offset, &row, cache.page_mut(layer, Kind::K, page));
        set(&mut row, v, bias[2]);
        write_heads(formats.v, head_dim, offset, &row, cache.page_mut(layer, Kind::V, page));
    }
    Ok(())
}

/// `to = from + bias`
fn set(to: &mut [f32], from: &[f32], bias: Option<&Vec<f32>>) {
    to.copy_from_slice(from);
    if let Some(bias) = bias {
        to.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
    }
}

/// Every head of a row becomes `x / sqrt(mean(x²) + eps) * weight`. The mean is taken in f64, in order.
fn norm_heads(x: &mut [f32], weight: &[f32], eps: f32) {
    for head in x.chunks_exact_mut(weight.len()) {
        let sum: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = (1.0 / (sum / head.len() as f64 + f64::from(eps)).sqrt()) as f32;
        head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
    }
}

/// Rotates the heads of a row by the angles of one position, `[head_dim / 2]` cosines and sines: with `j < head_dim / 2` and the
/// angle of that position and `j`, `(x[j], x[j + half]) = (x[j] cos - x[j + half] sin, x[j + half] cos + x[j] sin)`.
fn rotate(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for j in 0..half {
            (a[j], b[j]) = (a[j] * cos[j] - b[j] * sin[j], b[j] * cos[j] + a[j] * sin[j]);
        }
    }
}

/// One row, `[num_key_value_heads * head_dim]`, to the token `offset` of a page `[num_key_value_heads, PAGE_SIZE, head_dim]` in `format`.
fn write_heads(format: KvFormat, head_dim: usize, offset: usize, row: &[f32], page: &mut [u8]) {
    let bytes = format.bytes(head_dim);
    for (head, values) in row.chunks_exact(head_dim).enumerate() {
        write_row(format, values, &mut page[(head * PAGE_SIZE + offset) * bytes..][..bytes]);
    }
}
