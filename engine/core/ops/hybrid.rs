//! The operations of hybrids, whose layers are of linear attention but for every fourth, which is of attention with a gate; and the
//! part of a layer that is made of them. docs/hybrids.md says what the gated delta rule computes.
//!
//! What a layer of linear attention keeps of a sequence is a slot of fixed size, `f32`, one behind the other: the last
//! `linear_conv_kernel_dim - 1` inputs of the convolution `[linear_conv_kernel_dim - 1, channels]`, the oldest first, then the recurrent
//! state `[linear_num_value_heads, linear_key_head_dim, linear_value_head_dim]`. A sequence whose first row in a batch is at position 0 begins
//! with zeros, whatever its slot holds.

use super::parts::{Norm, NormMatmul, RmsNorm, Scratch, add_product, norm_matmul, room};
use super::{Ops, Rows, Stacked, Types};
use crate::config::LinearSizes;
use crate::error::Result;
use crate::kv_layout::SlotLayout;

/// Linear attention by the gated delta rule.
pub struct DeltaNet<W, V> {
    /// Of the residual stream.
    pub norm: Norm<V>,
    /// All that is computed from a normed row, `hidden_size` columns: Q, K and V (`channels` rows), the gate z (`value_size` rows), β and α
    /// (`linear_num_value_heads` rows each).
    pub in_proj: Stacked<W>,
    pub conv: CausalConv<V>,
    pub rule: DeltaRule<V>,
    /// Of each head of what the rule gives, `[linear_value_head_dim]`.
    pub head_norm: RmsNorm<V>,
    /// `[hidden_size, value_size]`
    pub out_proj: W,
}

/// A convolution over the rows of a sequence, each channel by itself.
pub struct CausalConv<V> {
    pub sizes: LinearSizes,
    /// `[channels, linear_conv_kernel_dim]`
    pub weight: V,
}

/// What the gated delta rule needs besides its inputs.
pub struct DeltaRule<V> {
    pub sizes: LinearSizes,
    pub value_heads: ValueHeads,
    /// `[linear_num_value_heads]`, none above 0: the logarithm of what a state keeps is this times `softplus(α + dt_bias)`.
    pub decay: V,
    /// `[linear_num_value_heads]`
    pub dt_bias: V,
    /// What is added to the sum of squares of a head of Q or K under the root.
    pub eps: f32,
}

/// Which head of K a head of V goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueHeads {
    /// Head `h` with head `h mod linear_num_key_heads`, as the converter of Qwen3.5 orders them.
    Tiled,
    /// Head `h` with head `h / (linear_num_value_heads / linear_num_key_heads)`, as Hugging Face has them.
    Grouped,
}

impl ValueHeads {
    /// The head of K that head `head` of V goes with.
    pub fn key_head(self, head: usize, sizes: &LinearSizes) -> usize {
        let &LinearSizes { linear_num_key_heads: key_heads, linear_num_value_heads: value_heads, .. } = sizes;
        match self {
            Self::Tiled => head % key_heads,
            Self::Grouped => head / (value_heads / key_heads),
        }
    }
}

/// Columns of a product that a gate is in.
pub struct Gate<'a, T, W> {
    /// `[n, cols]`
    pub product: &'a T,
    /// The first of them.
    pub first: usize,
    /// What they are the product with.
    pub weight: &'a W,
}

/// Where the columns of [`DeltaNet::in_proj`]'s product begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub z: usize,
    pub beta: usize,
    pub alpha: usize,
    /// All of them.
    pub cols: usize,
}

impl Columns {
    /// Q, K and V come first.
    pub fn of(sizes: &LinearSizes) -> Self {
        let z = sizes.channels();
        let beta = z + sizes.value_size();
        let alpha = beta + sizes.linear_num_value_heads;
        Self { z, beta, alpha, cols: alpha + sizes.linear_num_value_heads }
    }
}

/// What [`delta_net`] keeps between its operations.
pub struct DeltaScratch<T: Types> {
    /// The product with [`DeltaNet::in_proj`], `[max_num_tokens, Columns::cols]`.
    pub mixed: T::Tensor,
    /// `[max_num_tokens, channels]`
    pub qkv: T::Tensor,
    /// `[max_num_tokens, value_size]`
    pub out: T::Tensor,
    /// `[max_num_tokens, value_size]`
    pub gated: T::Activation,
}

/// What a device computes hybrids with, besides [`Ops`].
pub trait HybridOps: Types {
    /// Allocates all slots.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is no room.
    fn new_states(&mut self, layout: &SlotLayout) -> Result<Self::States>;

    /// Queues copying what a sequence has in all layers, from a slot of one to a slot of another.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if one of both does not exist, or they are not of one shape.
    fn copy_state(
        &mut self,
        from: &Self::States,
        slot: usize,
        to: &mut Self::States,
        place: usize,
    ) -> Result<()>;

    /// As [`Ops::bound_attention`] of [`delta_net`].
    ///
    /// # Errors
    /// As there.
    fn bound_delta_net(&mut self, _name: &str, _part: &DeltaNet<Self::Weight, Self::Vector>) -> Result<()> {
        Ok(())
    }

    /// `out[t] = silu(Σ_j weight[j] * x[t + 1 + j - linear_conv_kernel_dim])` of each channel, over the rows of each sequence and what
    /// its slot of `layer` has of those before, which is replaced: `[num_tokens, cols] -> [num_tokens, channels]`, of the first columns.
    fn causal_conv(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        conv: &CausalConv<Self::Vector>,
        x: &Self::Tensor,
        states: &mut Self::States,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// The gated delta rule, row by row of each sequence, for each head of V with its state S `[linear_key_head_dim,
    /// linear_value_head_dim]` in the sequence's slot of `layer`:
    ///
    /// ```text
    /// q, k = q / sqrt(Σ q² + eps) / sqrt(linear_key_head_dim), k / sqrt(Σ k² + eps)
    /// S = exp(decay * softplus(α + dt_bias)) * S
    /// S = S + k (sigmoid(β) * (v - Sᵀ k))ᵀ
    /// out = Sᵀ q
    /// ```
    ///
    /// `mixed` has [`Columns`], `qkv` is what [`HybridOps::causal_conv`] made of it; `out` is `[num_tokens, value_size]`.
    #[allow(clippy::too_many_arguments, reason = "the operation has these operands")]
    fn delta_rule(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        rule: &DeltaRule<Self::Vector>,
        mixed: &Self::Tensor,
        qkv: &Self::Tensor,
        states: &mut Self::States,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out = x / sqrt(mean(x²) + eps) * weight * silu(gate)` of each head of `weight.len()` values, of which a row has several: `[n,
    /// value_size]`.
    fn gated_norm(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        norm: &RmsNorm<Self::Vector>,
        gate: Gate<Self::Tensor, Self::Weight>,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// What is between the products of a layer of linear attention, from `mixed` to `out`, where the device has one kernel for it and takes
    /// these rows: [`HybridOps::causal_conv`], [`HybridOps::delta_rule`] and [`HybridOps::gated_norm`]. Whether it did.
    ///
    /// # Errors
    /// As they.
    fn delta_step(
        &mut self,
        _batch: &Self::Batch,
        _layer: usize,
        _part: &DeltaNet<Self::Weight, Self::Vector>,
        _mixed: &Self::Tensor,
        _states: &mut Self::States,
        _out: &mut Self::Activation,
    ) -> Result<bool> {
        Ok(false)
    }

    /// `out = x`, in f32: `[n, cols]`, what a norm wrote and another one reads.
    fn widen(&mut self, n: usize, x: &Self::Activation, out: &mut Self::Tensor) -> Result<()>;

    /// `rows *= sigmoid(gate)`, value by value: `[n, cols]`, the gate of attention.
    fn sigmoid_mul(&mut self, n: usize, gate: &Self::Tensor, rows: &mut Self::Activation) -> Result<()>;
}

/// A layer of linear attention, added to the residual stream `x` `[n, hidden_size]`; `layer` is which it is of those with slots.
///
/// # Errors
/// What the device says.
pub fn delta_net<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    layer: usize,
    part: &DeltaNet<O::Weight, O::Vector>,
    x: &mut O::Tensor,
    scratch: &mut Scratch<O>,
    states: &mut O::States,
) -> Result<()> {
    let Scratch { normed, delta, of_rank, .. } = scratch;
    let DeltaScratch { mixed, qkv, out, gated } = room(delta)?;
    let z: &O::Weight = room(&mut part.in_proj.matrices.get(1))?;
    let product = NormMatmul { norm: &part.norm, weight: &part.in_proj.whole };
    norm_matmul(ops, rows, &product, x, normed, mixed)?; // [n, channels + value_size + 2 * value heads]
    if !ops.delta_step(rows.batch, layer, part, mixed, states, gated)? {
        ops.causal_conv(rows.batch, layer, &part.conv, mixed, states, qkv)?; // [n, channels]
        ops.delta_rule(rows.batch, layer, &part.rule, mixed, qkv, states, out)?; // [n, value_size]
        let gate = Gate { product: mixed, first: Columns::of(&part.rule.sizes).z, weight: z };
        ops.gated_norm(rows.n, out, &part.head_norm, gate, gated)?; // [n, value_size]
    }
    add_product(ops, rows, gated, &part.out_proj, &[], x, of_rank.as_mut()) // [n, hidden_size]
}
