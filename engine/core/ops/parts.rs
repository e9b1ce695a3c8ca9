//! Parts of a layer: what a model calls, and a device may compute in one kernel.
//!
//! Each part is said here in small operations. Where a device has one kernel for a part and takes these rows, it computes that
//! instead; the model does not know which. A part takes what the architectures differ in: the kind of norm, projections with or
//! without a bias, a norm of the heads of Q and K, an MLP with or without a gate or experts, matrices of different
//! formats.

use super::hybrid::DeltaScratch;
use super::lora::{Update, add_updates, are_wanted};
use super::{Ops, Rows, Stacked, Types};
use crate::error::{Error, Result};

/// Normalisation of rows.
pub enum Norm<V> {
    Rms(RmsNorm<V>),
    Layer(LayerNorm<V>),
}

/// By the root mean square: `x / sqrt(mean(x²) + eps) * weight`.
pub struct RmsNorm<V> {
    /// `[cols]`
    pub weight: V,
    pub eps: f32,
}

/// By mean and variance: `(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias`.
pub struct LayerNorm<V> {
    /// `[cols]`
    pub weight: V,
    /// `[cols]`
    pub bias: Option<V>,
    pub eps: f32,
}

/// A projection.
pub struct Linear<W, V> {
    /// `[out_features, in_features]`
    pub weight: W,
    /// `[out_features]`
    pub bias: Option<V>,
    /// What adapters add.
    pub updates: Vec<Update<V>>,
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
    /// `[num_attention_heads * head_dim, hidden_size]`: attention's output is multiplied with the sigmoid of this product.
    pub gate: Option<W>,
    /// What adapters add to the product with `qkv`.
    pub updates: Vec<Update<V>>,
    /// And to that with `gate`.
    pub gate_updates: Vec<Update<V>>,
}

/// Root mean square norms of every head of Q and of K, before they are rotated.
pub struct QkNorm<V> {
    /// `[head_dim]`
    pub q: V,
    /// `[head_dim]`
    pub k: V,
    pub eps: f32,
}

/// What comes before the down projection: norm, projections, activation.
pub struct MlpIn<W, V> {
    /// Of the residual stream.
    pub norm: Norm<V>,
    pub up: Up<W, V>,
    /// What adapters add to the product with gate and up; where there is no gate its projection has it.
    pub updates: Vec<Update<V>>,
}

/// What follows attention in a layer.
pub enum Mlp<W, V> {
    /// One for all tokens.
    Dense {
        input: MlpIn<W, V>,
        /// `[hidden_size, intermediate_size]`
        down: Linear<W, V>,
    },
    Experts(Experts<W, V>),
}

/// A mixture of experts: each row goes to some of them, and to a shared one.
pub struct Experts<W, V> {
    /// Of the residual stream.
    pub norm: Norm<V>,
    pub router: Router<V>,
    /// Of all experts, one below the other, `[moe_intermediate_size, hidden_size]` each.
    pub gate: W,
    /// As `gate`.
    pub up: W,
    /// Of all experts, one below the other, `[hidden_size, moe_intermediate_size]` each.
    pub down: W,
    pub shared: Option<SharedExpert<W, V>>,
}

/// Says which experts a row goes to: those of the largest `softmax(x · weightᵀ)`, which are the weights of their results.
pub struct Router<V> {
    /// f32 `[num_experts, hidden_size]`
    pub weight: V,
    pub num_experts: usize,
    /// Experts that a row goes to.
    pub num_experts_per_tok: usize,
    /// Weights are divided by their sum.
    pub renormalise: bool,
}

/// The expert that every row goes to, times `sigmoid(x · gate)`.
pub struct SharedExpert<W, V> {
    /// `[hidden_size]`
    pub gate: V,
    /// Gate and up, `[shared_expert_intermediate_size, hidden_size]` each.
    pub gate_up: Stacked<W>,
    /// `[hidden_size, shared_expert_intermediate_size]`
    pub down: W,
}

/// The first half of an MLP.
pub enum Up<W, V> {
    /// `silu(gate) * up`: gate and up, `[intermediate_size, hidden_size]` each.
    Gated(Stacked<W>),
    /// `gelu(up)`: `[intermediate_size, hidden_size]`
    Plain(Linear<W, V>),
}

/// A projection of the normed residual stream: the head behind the last layer, and what a layer begins with.
pub struct NormMatmul<'a, W, V> {
    pub norm: &'a Norm<V>,
    /// `[out_features, hidden_size]`
    pub weight: &'a W,
}

/// What the parts keep between their small operations.
pub struct Scratch<T: Types> {
    /// A norm's output `[max_num_tokens, hidden_size]`.
    pub normed: T::Activation,
    /// `[max_num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]`
    pub qkv: T::Tensor,
    /// `None` where every row goes to experts alone.
    pub mlp: Option<MlpScratch<T>>,
    /// `None` where there are no experts.
    pub experts: Option<ExpertScratch<T>>,
    /// `[max_num_tokens, num_attention_heads * head_dim]`; `None` where attention has no gate.
    pub gate: Option<T::Tensor>,
    /// `None` where no layer is of linear attention.
    pub delta: Option<DeltaScratch<T>>,
    /// This rank's part of what a layer adds to the residual stream, `[max_num_tokens, hidden_size]`, 0 where operations add to it; `None`
    /// where there is one rank.
    pub of_rank: Option<T::Tensor>,
}

/// Of an MLP that every row goes through, with the `size` of [`Config::dense_size`](crate::config::Config::dense_size).
pub struct MlpScratch<T: Types> {
    /// `[max_num_tokens, 2 * size]`, or `size` columns where there is no gate.
    pub gate_up: T::Activation,
    /// `[max_num_tokens, size]`
    pub gated: T::Activation,
}

/// Of experts.
pub struct ExpertScratch<T: Types> {
    /// `[max_num_tokens, 2 * num_experts_per_tok]`: numbers of experts, then weights.
    pub chosen: T::Tensor,
    /// `[max_num_tokens, num_experts_per_tok * moe_intermediate_size]`
    pub inner: T::Tensor,
}

/// The work buffers of a part.
///
/// # Errors
/// [`Error::Model`] where the model was made without.
pub(super) fn room<B>(buffers: &mut Option<B>) -> Result<&mut B> {
    buffers
        .as_mut()
        .ok_or_else(|| Error::Model("a layer has a part that no work buffers were made for".into()))
}

/// `out = norm(x)`: `[n, cols]`.
///
/// # Errors
/// What the device says.
pub fn normalise<O: Ops>(
    ops: &mut O,
    n: usize,
    x: &O::Tensor,
    norm: &Norm<O::Vector>,
    out: &mut O::Activation,
) -> Result<()> {
    match norm {
        Norm::Rms(norm) => ops.rms_norm(n, x, norm, out),
        Norm::Layer(norm) => ops.layer_norm(n, x, norm, out),
    }
}

/// `x += input · weightᵀ + bias`, what a layer adds to the residual stream: `[n, in_features] -> [n, hidden_size]`. With `of_rank` each rank has some columns of the weight, and the product is the sum over all of them.
///
/// # Errors
/// What the device says.
pub fn add_projection<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    input: &O::Activation,
    part: &Linear<O::Weight, O::Vector>,
    x: &mut O::Tensor,
    of_rank: Option<&mut O::Tensor>,
) -> Result<()> {
    add_product(ops, rows, input, &part.weight, &part.updates, x, of_rank)?;
    part.bias.as_ref().map_or(Ok(()), |bias| ops.add_bias(rows.n, bias, x))
}

/// As [`add_projection`], without a bias.
///
/// # Errors
/// What the device says.
pub(super) fn add_product<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    input: &O::Activation,
    weight: &O::Weight,
    updates: &[Update<O::Vector>],
    x: &mut O::Tensor,
    of_rank: Option<&mut O::Tensor>,
) -> Result<()> {
    let Some(of_rank) = of_rank else {
        ops.matmul_add(rows, input, weight, x)?;
        return add_updates(ops, rows, input, updates, x);
    };
    if !are_wanted(ops, rows.batch, updates) {
        return ops.matmul_add_ranks(rows, input, weight, of_rank, x);
    }
    // Of the updates each rank has its part too.
    ops.matmul(rows.padded, input, weight, of_rank)?;
    add_updates(ops, rows, input, updates, of_rank)?;
    ops.add_ranks(rows, of_rank, x)
}

/// Q of every row, from the residual stream `x`, and in [`Scratch::gate`] what attention's output is gated by; K and V go to their
/// slots of `layer`: `[n, hidden_size] -> [n, num_attention_heads * head_dim]`.
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
    let adapted = are_wanted(ops, rows.batch, &part.updates);
    if !adapted && part.gate.is_none() && ops.norm_qkv_rope(rows, layer, part, x, q, cache)? {
        return Ok(());
    }
    let Scratch { normed, qkv, gate, .. } = scratch;
    let product = NormMatmul { norm: &part.norm, weight: &part.qkv.whole };
    let is_normed = adapted_product(ops, rows, &product, &part.updates, x, normed, qkv)?; // [n, (heads + 2 key-value heads) * head_dim]
    if let Some(weight) = &part.gate {
        let gate = room(gate)?; // [n, heads * head_dim]
        if is_normed {
            ops.matmul(rows.padded, normed, weight, gate)?;
            add_updates(ops, rows, normed, &part.gate_updates, gate)?;
        } else {
            let product = NormMatmul { norm: &part.norm, weight };
            adapted_product(ops, rows, &product, &part.gate_updates, x, normed, gate)?;
        }
    }
    let bias = part.bias.each_ref().map(Option::as_ref);
    ops.bias_rope_kv(rows.batch, layer, qkv, bias, part.qk_norm.as_ref(), q, cache)
}

/// What follows attention in a layer, added to the residual stream `x` `[n, hidden_size]`.
///
/// # Errors
/// What the device says.
pub fn mlp<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &Mlp<O::Weight, O::Vector>,
    x: &mut O::Tensor,
    scratch: &mut Scratch<O>,
) -> Result<()> {
    let Scratch { normed, mlp, experts, of_rank, .. } = scratch;
    match part {
        Mlp::Dense { input, down } => {
            let buffers = room(mlp)?;
            mlp_in(ops, rows, input, x, normed, buffers)?; // [n, intermediate_size]
            add_projection(ops, rows, &buffers.gated, down, x, of_rank.as_mut())
        }
        Mlp::Experts(part) => {
            add_experts(ops, rows.n, part, normed, x, of_rank.as_mut(), room(experts)?)?;
            if let Some(shared) = &part.shared {
                add_shared_expert(ops, rows, shared, normed, of_rank.as_mut().unwrap_or(x), room(mlp)?)?;
            }
            of_rank.as_mut().map_or(Ok(()), |of_rank| ops.add_ranks(rows, of_rank, x))
        }
    }
}

/// `normed = norm(x); x += Σ weight * down(silu(gate) * up)` over the experts that each row goes to; with `of_rank` that is added to.
fn add_experts<O: Ops>(
    ops: &mut O,
    n: usize,
    part: &Experts<O::Weight, O::Vector>,
    normed: &mut O::Activation,
    x: &mut O::Tensor,
    of_rank: Option<&mut O::Tensor>,
    buffers: &mut ExpertScratch<O>,
) -> Result<()> {
    let ExpertScratch { chosen, inner } = buffers;
    if !ops.norm_route(n, x, part, normed, chosen)? {
        normalise(ops, n, x, &part.norm, normed)?;
        ops.route(n, normed, &part.router, chosen)?; // [n, 2 * num_experts_per_tok]
    }
    let out = of_rank.unwrap_or(x);
    if ops.add_host_experts(n, part, normed, chosen, out)? {
        return Ok(());
    }
    ops.sort_experts(n, chosen, [&part.gate, &part.up, &part.down])?;
    ops.experts_in(n, normed, chosen, [&part.gate, &part.up], inner)?; // [n, num_experts_per_tok * moe_intermediate_size]
    ops.experts_out(n, inner, chosen, &part.down, out) // [n, hidden_size]
}

/// `x += sigmoid(normed · gate) * down(silu(gate) * up)`.
fn add_shared_expert<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &SharedExpert<O::Weight, O::Vector>,
    normed: &O::Activation,
    x: &mut O::Tensor,
    buffers: &mut MlpScratch<O>,
) -> Result<()> {
    let MlpScratch { gate_up, gated } = buffers;
    if !ops.gated_matmul(rows.n, normed, &part.gate_up, gated)? {
        ops.matmul_rounded(rows.padded, normed, &part.gate_up.whole, gate_up)?; // [n, 2 * size]
        ops.silu_mul(rows.n, &part.gate_up, gate_up, gated)?; // [n, size]
    }
    ops.gate_rows(rows.n, normed, &part.gate, gated)?;
    ops.matmul_add(rows, gated, &part.down, x) // [n, hidden_size]
}

/// The inner values of a layer's MLP from the residual stream `x`: `[n, hidden_size] -> [n, intermediate_size]`.
fn mlp_in<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &MlpIn<O::Weight, O::Vector>,
    x: &O::Tensor,
    normed: &mut O::Activation,
    buffers: &mut MlpScratch<O>,
) -> Result<()> {
    let MlpScratch { gate_up, gated: out } = buffers;
    let updates = match &part.up {
        Up::Gated(_) => &part.updates,
        Up::Plain(projection) => &projection.updates,
    };
    let adapted = are_wanted(ops, rows.batch, updates);
    if !adapted && ops.norm_gate_up(rows, part, x, out)? {
        return Ok(());
    }
    normalise(ops, rows.n, x, &part.norm, normed)?;
    if let Up::Gated(matrices) = &part.up
        && !adapted
        && ops.gated_matmul(rows.n, normed, matrices, out)?
    {
        return Ok(());
    }
    let weight = match &part.up {
        Up::Gated(matrices) => &matrices.whole,
        Up::Plain(projection) => &projection.weight,
    };
    if adapted {
        ops.matmul_unrounded(rows.padded, normed, weight, gate_up)?; // [n, (2 or 1) * intermediate_size]
        for update in updates {
            let of = match &part.up {
                Up::Gated(matrices) => matrices.matrices.get(update.matrix).unwrap_or(weight),
                Up::Plain(_) => weight,
            };
            ops.lora_add_product(rows, normed, update, of, gate_up)?;
        }
    } else {
        ops.matmul_rounded(rows.padded, normed, weight, gate_up)?; // [n, (2 or 1) * intermediate_size]
    }
    match &part.up {
        Up::Gated(matrices) => ops.silu_mul(rows.n, matrices, gate_up, out),
        Up::Plain(projection) => ops.bias_gelu(rows.n, projection, gate_up, out),
    }
}

/// The head: [`norm_matmul`] of the rows that need logits; where each rank has some of its rows their products, which are in `of_rank`, side by side.
///
/// # Errors
/// What the device says.
pub fn head<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &NormMatmul<O::Weight, O::Vector>,
    x: &O::Tensor,
    normed: &mut O::Activation,
    of_rank: Option<&mut O::Tensor>,
    logits: &mut O::Tensor,
) -> Result<()> {
    let Some(of_rank) = of_rank else {
        return norm_matmul(ops, rows, part, x, normed, logits).map(drop); // [num_logits, vocab_size]
    };
    norm_matmul(ops, rows, part, x, normed, of_rank)?; // [num_logits, vocab_size / ranks]
    ops.gather_ranks(rows.n, of_rank, logits) // [num_logits, vocab_size]
}

/// As [`norm_matmul`], with what adapters add to the product.
fn adapted_product<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &NormMatmul<O::Weight, O::Vector>,
    updates: &[Update<O::Vector>],
    x: &O::Tensor,
    normed: &mut O::Activation,
    out: &mut O::Tensor,
) -> Result<bool> {
    if !are_wanted(ops, rows.batch, updates) {
        return norm_matmul(ops, rows, part, x, normed, out);
    }
    normalise(ops, rows.n, x, part.norm, normed)?;
    ops.matmul(rows.padded, normed, part.weight, out)?;
    add_updates(ops, rows, normed, updates, out)?;
    Ok(true)
}

/// `out = norm(x) · weightᵀ`: `[n, hidden_size] -> [n, out_features]`. Whether `normed` has the normed rows then: where the device has one
/// kernel for both it does not.
///
/// # Errors
/// What the device says.
pub fn norm_matmul<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    part: &NormMatmul<O::Weight, O::Vector>,
    x: &O::Tensor,
    normed: &mut O::Activation,
    out: &mut O::Tensor,
) -> Result<bool> {
    if ops.norm_matmul(rows, part, x, out)? {
        return Ok(false);
    }
    normalise(ops, rows.n, x, part.norm, normed)?;
    ops.matmul(rows.padded, normed, part.weight, out)?;
    Ok(true)
}
