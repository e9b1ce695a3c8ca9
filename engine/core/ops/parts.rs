//! Parts of a layer: what a model calls, and a device may compute in one kernel.
//!
//! Each part is said here in small operations. Where a device has one kernel for a part and takes these rows, it computes that
//! instead; the model does not know which. A part takes what the architectures differ in: a norm with or without a bias,
//! projections with or without one, a norm of the heads of Q and K, matrices of different formats.

use super::{Ops, Rows, Stacked, Types};
use crate::error::Result;

/// Normalisation of rows: root mean square (`x / sqrt(mean(x²) + eps) * weight`).
pub struct Norm<V> {
    /// `[cols]`
    pub weight: V,
    pub eps: f32,
}

/// What comes before attention: norm, projections, biases, norms of heads, rotation, pages.
pub struct AttentionIn<W, V> {
    /// Of the residual stream.
    pub norm: Norm<V>,
    /// `[num_attention_heads * head_dim, hidden_size]`, then twice `[num_key_value_heads * head_dim, hidden_size]`.
    pub qkv: Stacked<W>,
    /// Of Q, K and V.
    pub bias: [Option<V>; 3],
    pub qk_norm: Option<QkNorm<V>>,
}

/// Root mean square norms of every head of Q and of K, before they are rotated.
pub struct QkNorm<V> {
    /// `[head_dim]`
    pub q: V,
    /// `[head_dim]`
    pub k: V,
    pub eps: f32,
}

/// What comes before the down projection: norm, two projections, `silu(gate) * up`.
pub struct MlpIn<W, V> {
    /// Of the residual stream.
    pub norm: Norm<V>,
    /// Gate and up, `[intermediate_size, hidden_size]` each.
    pub gate_up: Stacked<W>,
}

/// What follows the last layer: norm and projection.
pub struct Head<'a, W, V> {
    pub norm: &'a Norm<V>,
    /// `[vocab_size, hidden_size]`
    pub weight: &'a W,
}

/// What the parts keep between their small operations.
pub struct Scratch<T: Types> {
    /// A norm's output `[max_num_tokens, hidden_size]`.
    pub normed: T::Activation,
    /// `[max_num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]`
    pub qkv: T::Tensor,
    /// `[max_num_tokens, 2 * intermediate_size]`
    pub gate_up: T::Activation,
}

/// Q of every row, from the residual stream `x`; K and V go to their slots of `layer`: `[n, hidden_size] -> [n,
/// num_attention_heads * head_dim]`.
///
/// # Errors
/// What the device says.
#[allow(clippy::too_many_arguments)] // The part has these operands.
pub fn attention_in<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    layer: usize,
    part: &AttentionIn<O::Weight, O::Vector>,
    x: &O::Tensor,
    scratch: &mut Scratch<O>,
    q: &mut O::Tensor,
    cache: &mut O::KvCache,
) -> Result<()> {
    if ops.norm_qkv_rope(rows, layer, part, x, q, cache)? {
        return Ok(());
    }
    let Scratch { normed, qkv, .. } = scratch;
    ops.rms_norm(rows.n, x, &part.norm, normed)?;
    ops.matmul(rows.padded, normed, &part.qkv.whole, qkv)?; // [n, (heads + 2 key-value heads) * head_dim]
    let mut bias = part.bias.each_ref().map(Option::as_ref);
    if let Some(norm) = &part.qk_norm {
        ops.qk_norm(rows.n, qkv, norm, [bias[0].take(), bias[1].take()])?;
    }
    ops.bias_rope_kv(rows.batch, layer, qkv, bias, q, cache)
}

/// The gated inner values of a layer's MLP from the residual stream `x`: `[n, hidden_size] -> [n, intermediate_size]`.
///
/// # Errors
/// What the device says.
pub fn mlp_in<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &MlpIn<O::Weight, O::Vector>,
    x: &O::Tensor,
    scratch: &mut Scratch<O>,
    out: &mut O::Activation,
) -> Result<()> {
    if ops.norm_gate_up(rows, part, x, out)? {
        return Ok(());
    }
    let Scratch { normed, gate_up, .. } = scratch;
    ops.rms_norm(rows.n, x, &part.norm, normed)?;
    ops.matmul_rounded(rows.padded, normed, &part.gate_up.whole, gate_up)?; // [n, 2 * intermediate_size]
    ops.silu_mul(rows.n, &part.gate_up, gate_up, out)
}

/// Logits of every row of the residual stream `x`: `[n, hidden_size] -> [n, vocab_size]`; `normed` is scratch.
///
/// # Errors
/// What the device says.
pub fn head<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &Head<O::Weight, O::Vector>,
    x: &O::Tensor,
    normed: &mut O::Activation,
    logits: &mut O::Tensor,
) -> Result<()> {
    if ops.norm_matmul(rows, part, x, logits)? {
        return Ok(());
    }
    ops.rms_norm(rows.n, x, part.norm, normed)?;
    ops.matmul(rows.padded, normed, part.weight, logits)
}
