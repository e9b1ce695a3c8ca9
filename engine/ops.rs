//! Every operation of the decoder, stated once, with its shapes.
//!
//! [`crate::cpu`] and [`crate::cuda`] implement [`Ops`]; [`crate::model::qwen2`] is written against it. Every
//! operation works on the first `n` rows of buffers that were allocated once for [`BatchLimits`]. Operations on a
//! GPU are queued; only [`Ops::drawn`], [`Ops::sample`] and [`Ops::read`] wait.
//!
//! Number formats: the residual stream, Q, K and V before they are cached, norms, softmax and logits are f32
//! ([`Ops::Tensor`]); what a matrix product reads is in the format of the weights ([`Ops::Activation`], f32 on the
//! CPU), and so are cached K and V. Numbers beyond the range of f16 become its largest where the separate operations round
//! to it.

use crate::batch::{Batch, BatchLimits};
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::sampler::SamplingRow;
use crate::weights::Matrix;

/// What [`Ops::norm_qkv_rope`] reads of a layer.
pub struct Qkv<'a, W, V> {
    /// Of the norm before the projections.
    pub norm: &'a V,
    pub eps: f32,
    /// `[num_attention_heads * head_dim, hidden_size]`
    pub q: &'a W,
    /// `[num_key_value_heads * head_dim, hidden_size]`
    pub k: &'a W,
    /// `[num_key_value_heads * head_dim, hidden_size]`
    pub v: &'a W,
    pub q_bias: Option<&'a V>,
    pub k_bias: Option<&'a V>,
    pub v_bias: Option<&'a V>,
}

/// Matrices one below the other, to be multiplied at once, and each of them by itself.
pub struct Stacked<W> {
    /// `[sum of the rows, cols]`
    pub whole: W,
    /// In the order in which they were given; no copies where the device has memory of its own.
    pub parts: Vec<W>,
}

/// The biases of a layer's projections.
pub struct QkvBias<'a, V> {
    /// `[num_attention_heads * head_dim]`
    pub q: Option<&'a V>,
    /// `[num_key_value_heads * head_dim]`
    pub k: Option<&'a V>,
    /// `[num_key_value_heads * head_dim]`
    pub v: Option<&'a V>,
}

fn not_fused(op: &str) -> Result<()> {
    Err(Error::Device(format!("{op}: this device computes it in separate operations")))
}

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
    /// Allocates a zeroed `[rows, cols]` for [`Ops::matmul_rounded`]: what a product writes and the next operation reads
    /// value by value.
    fn new_product(&mut self, rows: usize, cols: usize) -> Result<Self::Activation>;
    /// Allocates all pages.
    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<Self::KvCache>;
    /// Allocates room for any batch within `limits`.
    fn new_batch(&mut self, limits: &BatchLimits) -> Result<Self::Batch>;
    /// Brings a matrix of the file to the device.
    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Self::Weight>;
    /// Brings matrices of as many columns each to the device, one below the other.
    fn load_stacked(&mut self, matrices: &[&Matrix]) -> Result<Stacked<Self::Weight>>;
    /// Called after the last matrix.
    ///
    /// # Errors
    /// [`Error::Range`] if a weight is beyond the range of the format that the device computes with.
    fn finish_loading(&mut self) -> Result<()> {
        Ok(())
    }
    /// Brings a vector to the device.
    fn load_vector(&mut self, values: &[f32]) -> Result<Self::Vector>;

    // One step.

    /// Copies a batch's index arrays to the device.
    fn upload(&mut self, host: &Batch, batch: &mut Self::Batch) -> Result<()>;

    /// `out[i] = table[tokens[i]]`: `[n, hidden_size]`; where [`Batch::drawn_rows`] says so and the device
    /// [runs ahead](Ops::runs_ahead), with the token of that row of the last draw.
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

    /// `out = x · weightᵀ`: `[n, in_features] -> [n, out_features]`, accumulated in f32.
    fn matmul(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out += x · weightᵀ`: [`Ops::matmul`] added to what is there, f32 throughout.
    fn matmul_accumulate(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// As [`Ops::matmul`] into an [`Ops::new_product`], whose format the device chooses: f32, or f16 (beyond whose range a
    /// result is infinite) where the weights are f16.
    fn matmul_rounded(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// What is between the product of Q, K and V and attention: of each row `[q; k; v]` of `qkv`, biases are added, Q and K
    /// are rotated as by [`Ops::rope`], Q goes to `q` and K and V to their slots in `layer`. `qkv` is `[num_tokens,
    /// (num_attention_heads + 2 num_key_value_heads) * head_dim]`.
    fn bias_rope_kv(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        qkv: &Self::Tensor,
        bias: &QkvBias<Self::Vector>,
        q: &mut Self::Tensor,
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

    /// The same for the rows whose logits are wanted alone: `q` and `out` have a row for each of them.
    fn attention_of_wanted(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        q: &Self::Tensor,
        cache: &Self::KvCache,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `out = silu(gate) * up`, where each row of `gate_up` is `[gate; up]`: `[n, 2 * intermediate_size] -> [n,
    /// intermediate_size]`.
    fn silu_mul(&mut self, n: usize, gate_up: &Self::Activation, out: &mut Self::Activation) -> Result<()>;

    /// `out[i] = x[logit_rows[i]]`: `[num_logits, cols]`.
    fn gather_rows(&mut self, batch: &Self::Batch, x: &Self::Tensor, out: &mut Self::Tensor) -> Result<()>;

    /// With how many rows to multiply matrices where `n` are wanted: a device may take a rounded number, of the same shape as
    /// others, faster than each number for the first time. Rows beyond `n` mean nothing; the caller has room for them.
    fn product_rows(&self, n: usize) -> usize {
        n
    }

    /// Prepares for products of up to `most` rows, of the shapes that were there so far: for what takes its time when it comes first.
    fn rehearse(&mut self, _most: usize) -> Result<()> {
        Ok(())
    }

    // The same in fewer steps, where a device has them for a batch.

    /// Whether the fused operations below take this batch, for a model of this `hidden_size`, and are the faster way; elsewhere
    /// they are an error.
    fn is_fused(&self, _batch: &Self::Batch, _hidden_size: usize) -> bool {
        false
    }

    /// Q, K and V of every row from `x`: norm, projections, biases, rotation; K and V go to their slots in `layer`.
    #[allow(unused_variables)]
    fn norm_qkv_rope(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        x: &Self::Tensor,
        weights: &Qkv<Self::Weight, Self::Vector>,
        q: &mut Self::Tensor,
        cache: &mut Self::KvCache,
    ) -> Result<()> {
        not_fused("norm_qkv_rope")
    }

    /// `out += x · weightᵀ`: `[n, in_features] -> [n, out_features]`.
    #[allow(unused_variables)]
    fn matmul_add(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        not_fused("matmul_add")
    }

    /// `y = rms_norm(x); out = silu(y · gateᵀ) * (y · upᵀ)`: `[n, intermediate_size]`.
    #[allow(unused_variables, clippy::too_many_arguments)]
    fn norm_gate_up(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        norm: &Self::Vector,
        eps: f32,
        gate: &Self::Weight,
        up: &Self::Weight,
        out: &mut Self::Activation,
    ) -> Result<()> {
        not_fused("norm_gate_up")
    }

    /// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`.
    #[allow(unused_variables)]
    fn norm_matmul(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        norm: &Self::Vector,
        eps: f32,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        not_fused("norm_matmul")
    }

    // Simple parts of operations above, for the laboratory: the model does not call them by themselves.

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

    /// `x += delta`: `[n, cols]`.
    fn add(&mut self, n: usize, x: &mut Self::Tensor, delta: &Self::Tensor) -> Result<()>;

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

    // Sampling.

    /// Takes what the next draw needs; `logits` are what it will draw from.
    fn prepare_sampling(&mut self, logits: &Self::Tensor, rows: &[SamplingRow]) -> Result<()>;

    /// Draws one token per prepared row of `logits` `[rows, vocab_size]`, which it may overwrite.
    fn draw(&mut self, logits: &mut Self::Tensor) -> Result<()>;

    /// Queues bringing the tokens of the last draw to the host.
    fn fetch_drawn(&mut self) -> Result<()> {
        Ok(())
    }

    /// Waits for the tokens of the draw that was fetched first of those not read yet, whatever was queued behind it.
    fn drawn(&mut self) -> Result<Vec<u32>>;

    /// Drops draws that were fetched and not read.
    fn forget_drawn(&mut self) {}

    /// Whether the next step may be queued before the tokens of the last one are read: [`Ops::embed`] takes them from the
    /// device then, and the tokens of two draws may be on their way.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Draws one token per row of `logits` `[rows.len(), vocab_size]`, which it may overwrite.
    fn sample(&mut self, logits: &mut Self::Tensor, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        self.prepare_sampling(logits, rows)?;
        self.draw(logits)?;
        self.fetch_drawn()?;
        self.drawn()
    }

    /// Does what `step` does, for the uploaded batch and, where it has logits, the prepared draw. A device may record what
    /// it queues and, for a batch of the same shape, replay that instead of calling `step`: so `step` queues operations of
    /// one step on the same buffers each time and does nothing else.
    fn run_step(&mut self, batch: &Self::Batch, step: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let _ = batch;
        step(self)
    }

    /// How often a recorded step was replayed so far.
    fn num_replays(&self) -> u64 {
        0
    }

    /// The first `n` rows, copied to the host, row-major.
    fn read(&mut self, n: usize, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// One row, copied to the host.
    fn read_row(&mut self, row: usize, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// What it computes on, for people.
    fn device_name(&self) -> String;

    /// Bytes a second that this device reads from its memory, measured now: the ceiling of decoding. `None` for a device
    /// whose speed means nothing.
    fn read_bandwidth(&mut self) -> Result<Option<f64>>;
}
