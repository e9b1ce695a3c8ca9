//! Every operation of the decoder, stated once, with its shapes.
//!
//! [`crate::cpu`] and [`crate::cuda`] implement [`Ops`]; [`crate::model::qwen2`] is written against it. Every
//! operation works on the first `n` rows of buffers that were allocated once for [`BatchLimits`]. Operations on a
//! GPU are queued; only [`Ops::sample`] and [`Ops::read`] wait.
//!
//! Number formats: the residual stream, Q, K and V before they are cached, norms, softmax and logits are f32
//! ([`Ops::Tensor`]); what a matrix product reads is in the format of the weights ([`Ops::Activation`], f32 on the
//! CPU), and so are cached K and V.

use crate::batch::{Batch, BatchLimits};
use crate::error::Result;
use crate::kv_cache::KvLayout;
use crate::sampler::SamplingRow;
use crate::weights::Matrix;

/// The operations of a decoder on one device.
pub trait Ops {
    /// f32 `[rows, cols]`.
    type Tensor;
    /// `[rows, cols]` in the format that matrix products read.
    type Activation;
    /// A weight matrix `[out_features, in_features]` on the device.
    type Weight;
    /// An f32 vector on the device: a norm's weight or a bias.
    type Vector;
    /// K and V pages of every layer.
    type KvCache;
    /// The index arrays of a [`Batch`] on the device.
    type Batch;

    // Memory, at start-up.

    /// Allocates a zeroed `[rows, cols]`.
    fn new_tensor(&mut self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// Allocates a zeroed `[rows, cols]`.
    fn new_activation(&mut self, rows: usize, cols: usize) -> Result<Self::Activation>;
    /// Allocates a zeroed `[rows, cols]` for what norms and SwiGLU write; [`Ops::new_activation`], or in f32 where the
    /// format of the weights is so coarse that rounding to it would dominate the error.
    fn new_precise_activation(&mut self, rows: usize, cols: usize) -> Result<Self::Activation>;
    /// Allocates all pages.
    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<Self::KvCache>;
    /// Allocates room for any batch within `limits`.
    fn new_batch(&mut self, limits: &BatchLimits) -> Result<Self::Batch>;
    /// Brings a matrix of the file to the device.
    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Self::Weight>;
    /// Brings a vector to the device.
    fn load_vector(&mut self, values: &[f32]) -> Result<Self::Vector>;

    // One step.

    /// Copies a batch's index arrays to the device.
    fn upload(&mut self, host: &Batch, batch: &mut Self::Batch) -> Result<()>;

    /// `out[i] = table[tokens[i]]`: `[n, hidden_size]`.
    fn embed(&mut self, batch: &Self::Batch, table: &Self::Weight, out: &mut Self::Tensor) -> Result<()>;

    /// `out = x / sqrt(mean(x²) + eps) * weight`, row by row: `[n, hidden_size]`.
    fn rms_norm(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `x += delta; out = rms_norm(x)`: the residual addition fused with the norm that follows it.
    fn add_rms_norm(
        &mut self,
        n: usize,
        x: &mut Self::Tensor,
        delta: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `out = x · weightᵀ`: `[n, in_features] -> [n, out_features]`, accumulated in f32.
    fn matmul(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `x[i] += bias`, row by row.
    fn add_bias(&mut self, n: usize, x: &mut Self::Tensor, bias: &Self::Vector) -> Result<()>;

    /// Rotates every head of every row by its position, in place (rotate-half: value `j` pairs with
    /// `j + head_dim / 2`). `x` is `[num_tokens, num_heads * head_dim]`.
    fn rope(&mut self, batch: &Self::Batch, x: &mut Self::Tensor, num_heads: usize) -> Result<()>;

    /// Writes the rows of K and V, `[num_tokens, num_key_value_heads * head_dim]`, to their slots in `layer`.
    fn write_kv(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        k: &Self::Tensor,
        v: &Self::Tensor,
        cache: &mut Self::KvCache,
    ) -> Result<()>;

    /// Causal grouped-query attention of every row over the pages of its sequence:
    /// `softmax(q · kᵀ / sqrt(head_dim)) · v`, `[num_tokens, num_attention_heads * head_dim]`.
    fn attention(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        q: &Self::Tensor,
        cache: &Self::KvCache,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `out = silu(gate) * up`: `[n, intermediate_size]`.
    fn silu_mul(
        &mut self,
        n: usize,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `x += delta`: `[n, cols]`.
    fn add(&mut self, n: usize, x: &mut Self::Tensor, delta: &Self::Tensor) -> Result<()>;

    /// `out[i] = x[logit_rows[i]]`: `[num_logits, cols]`.
    fn gather_rows(&mut self, batch: &Self::Batch, x: &Self::Tensor, out: &mut Self::Tensor) -> Result<()>;

    /// Draws one token per row of `logits` `[rows.len(), vocab_size]`, which it may overwrite.
    fn sample(&mut self, logits: &mut Self::Tensor, rows: &[SamplingRow]) -> Result<Vec<u32>>;

    /// The first `n` rows, copied to the host, row-major.
    fn read(&mut self, n: usize, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// What it computes on, for people.
    fn device_name(&self) -> String;

    /// Bytes a second that this device reads from its memory, measured now: the ceiling of decoding. `None` for a device
    /// whose speed means nothing.
    fn read_bandwidth(&mut self) -> Result<Option<f64>>;
}
