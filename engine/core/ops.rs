//! Every operation of the decoder, stated once, with its shapes.
//!
//! [`crate::cpu`] and the crate `qernel-cuda` implement [`Ops`]; models call it, mostly by way of the [`parts`] of a layer. Every
//! operation works on the first `n` rows of buffers that were allocated once for [`BatchLimits`]. Operations on a
//! GPU are queued; only [`Ops::take_tokens`], [`Ops::sample`] and [`Ops::read`] wait.
//!
//! Number formats: the residual stream, Q, K and V before they are cached, norms, softmax and logits are f32
//! (`Tensor`); what a matrix product reads is in the format of the weights (`Activation`, f32 on the
//! CPU), and so are cached K and V. Where a device rounds to f16 it scales by powers of two, so that no number is beyond its range
//! ([`Ops::bound_mlp`]).

pub mod experts;
pub mod hybrid;
pub mod keep;
pub mod lora;
pub mod parts;
pub mod ranks;

use crate::batch::{Batch, BatchLimits};
use crate::config::{Config, LinearSizes};
use crate::error::Result;
use crate::kv_layout::KvLayout;
use crate::rope::Rotation;
use crate::sampler::SamplingRow;
use crate::weights::Matrix;
use experts::ExpertOps;
pub use experts::ExpertsConfig;
use hybrid::HybridOps;
use keep::KeepOps;
use lora::LoraOps;
use parts::{AttentionIn, Experts, LayerNorm, Linear, MlpIn, Norm, NormMatmul, QkNorm, RmsNorm};
use ranks::RankOps;

/// What an implementation of [`Ops`] must know of the model and of the largest batch before the first operation.
#[derive(Clone, Debug, PartialEq)]
pub struct OpsConfig {
    pub num_attention_heads: usize,
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Values of one head of Q, K and V; even.
    pub head_dim: usize,
    pub rotation: Rotation,
    /// Where there are experts.
    pub experts: Option<ExpertsConfig>,
    /// Where there are layers of linear attention.
    pub linear: Option<LinearSizes>,
    /// Longest sequence in tokens; rows of the [`RopeTable`](crate::rope::RopeTable) at most.
    pub max_model_len: usize,
    pub limits: BatchLimits,
}

impl OpsConfig {
    /// The part of `config` that operations need, for sequences of at most `max_model_len` tokens.
    pub fn new(config: &Config, max_model_len: usize, limits: BatchLimits) -> Self {
        Self {
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rotation: config.rotation.clone(),
            experts: Self::experts_of(config),
            linear: config.linear,
            max_model_len,
            limits,
        }
    }

    /// The part of `config` that operations of experts need.
    pub fn experts_of(config: &Config) -> Option<ExpertsConfig> {
        config.experts.map(|sizes| ExpertsConfig {
            num_experts: sizes.num_experts,
            num_experts_per_tok: sizes.num_experts_per_tok,
            hidden_size: config.hidden_size,
            moe_intermediate_size: sizes.moe_intermediate_size,
        })
    }
}

/// Matrices one below the other, to be multiplied at once, and each of them by itself.
pub struct Stacked<W> {
    /// `[sum of the rows, cols]`
    pub whole: W,
    /// In the order in which they were given; no copies where the device has memory of its own.
    pub matrices: Vec<W>,
}

/// The rows that a part of a layer works on: those of a batch, or those of them that need logits.
pub struct Rows<'a, B> {
    pub batch: &'a B,
    /// The first rows of the buffers.
    pub n: usize,
    /// With how many to multiply matrices: [`Ops::product_rows`], at least `n`; those beyond `n` mean nothing.
    pub padded: usize,
}

impl<B> Clone for Rows<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Rows<'_, B> {}

/// What the operations of a device read and write.
pub trait Types: Sized {
    /// f32 `[rows, cols]`.
    type Tensor;
    /// `[rows, cols]` in the format that matrix products read.
    type Activation;
    /// A weight matrix `[out_features, in_features]` on the device.
    type Weight;
    /// f32 values on the device: a norm's weight, a bias, a small table.
    type Vector;
    /// K and V pages of every layer.
    type KvCache;
    /// Slots of every layer that keeps one of a sequence.
    type States;
    /// The index arrays of a [`Batch`] on the device.
    type Batch;
}

/// What a step queues, beside what follows from its batch and draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// The forward pass of the model.
    Model,
    /// That of a block which drafts, from the rows of the model's last step.
    DraftOfStep,
    /// The same from the rows of its own last one.
    DraftOfRows,
    /// The same from those of them that needed logits, where not all did.
    DraftOfLogitRows,
}

/// The operations of a decoder on one device.
pub trait Ops: HybridOps + ExpertOps + LoraOps + RankOps + KeepOps {
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
    /// Bytes that a matrix of the file takes on the device.
    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.data.len()
    }
    /// Brings a matrix of the file to the device.
    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Self::Weight>;
    /// Brings matrices of as many columns each to the device, one below the other; a row and the one that is `apart` rows on are used
    /// together, of every `2 * apart` rows; none are where it is 0.
    fn load_stacked(&mut self, matrices: &[Matrix], apart: usize) -> Result<Stacked<Self::Weight>>;
    /// Brings a vector to the device.
    fn load_vector(&mut self, values: &[f32]) -> Result<Self::Vector>;
    /// Called after the last matrix.
    ///
    /// # Errors
    /// [`crate::Error::Model`] if the device came upon a weight that is not finite.
    fn finish_loading(&mut self) -> Result<()> {
        Ok(())
    }

    // What the weights of each part say of its numbers, once all are loaded: a device that rounds to a format of small range finds bounds,
    // and scales so that none is beyond it. `name` is the part's, for messages.

    /// Of [`parts::attention_in`].
    ///
    /// # Errors
    /// [`crate::Error::Range`], with the name, if the format that the device rounds to has no room for a number of the part.
    fn bound_attention(
        &mut self,
        _name: &str,
        _part: &AttentionIn<Self::Weight, Self::Vector>,
    ) -> Result<()> {
        Ok(())
    }

    /// Of [`parts::MlpIn`].
    ///
    /// # Errors
    /// As [`Ops::bound_attention`].
    fn bound_mlp(&mut self, _name: &str, _part: &MlpIn<Self::Weight, Self::Vector>) -> Result<()> {
        Ok(())
    }

    /// Of the experts in [`parts::mlp`].
    ///
    /// # Errors
    /// As [`Ops::bound_attention`].
    fn bound_experts(&mut self, _name: &str, _part: &Experts<Self::Weight, Self::Vector>) -> Result<()> {
        Ok(())
    }

    /// Of a norm where a product follows.
    ///
    /// # Errors
    /// As [`Ops::bound_attention`].
    fn bound_norm(&mut self, _name: &str, _norm: &Norm<Self::Vector>) -> Result<()> {
        Ok(())
    }

    // One step.

    /// Copies a batch's index arrays to the device.
    fn upload(&mut self, host: &Batch, batch: &mut Self::Batch) -> Result<()>;

    /// `out[i] = table[tokens[i]]`: `[n, hidden_size]`; where [`Batch::sampled_rows`] says so and the device
    /// [runs ahead](Ops::runs_ahead), with the token of that row of the last draw.
    fn embed(&mut self, batch: &Self::Batch, table: &Self::Weight, out: &mut Self::Tensor) -> Result<()>;

    /// `x[i] += table[positions[i]]`, where `table` is `[max_position_embeddings, hidden_size]`: `[num_tokens, hidden_size]`.
    fn add_positions(
        &mut self,
        batch: &Self::Batch,
        table: &Self::Vector,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out = x / sqrt(mean(x²) + eps) * weight`, row by row: `[n, hidden_size]`.
    fn rms_norm(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        norm: &RmsNorm<Self::Vector>,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias`, row by row: `[n, hidden_size]`.
    fn layer_norm(
        &mut self,
        n: usize,
        x: &Self::Tensor,
        norm: &LayerNorm<Self::Vector>,
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

    /// `out += x · weightᵀ`: `[n, in_features] -> [n, out_features]`, accumulated in f32.
    fn matmul_add(
        &mut self,
        rows: Rows<Self::Batch>,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// As [`Ops::matmul_add`], of a weight of which each rank has some columns: the sum over all of them is added. `part` is 0 where operations
    /// add to it, but for [`RankOps::add_ranks`] and this one.
    ///
    /// # Errors
    /// As [`RankOps::add_ranks`].
    fn matmul_add_ranks(
        &mut self,
        rows: Rows<Self::Batch>,
        x: &Self::Activation,
        weight: &Self::Weight,
        part: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.matmul_add(rows, x, weight, part)?;
        self.add_ranks(rows, part, out)
    }

    /// `x[i] += bias`: `[n, cols]`.
    fn add_bias(&mut self, n: usize, bias: &Self::Vector, x: &mut Self::Tensor) -> Result<()>;

    /// As [`Ops::matmul`] into an [`Ops::new_product`], whose format the device chooses: f32, or f16 where the weights are f16; divided by
    /// what [`Ops::bound_mlp`] found.
    fn matmul_rounded(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// What is between the product of Q, K and V and attention: of each row `[q; k; v]` of `qkv`, biases are added, every head of
    /// Q and of K becomes `x / sqrt(mean(x²) + eps) * weight` where there is a `norm`, Q and K are rotated by the row's position
    /// (value `j` of a head pairs with `j + head_dim / 2`), Q goes to `q` and K and V to their slots in `layer`. `qkv` is
    /// `[num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]`; biases are those of Q, K and V.
    #[allow(clippy::too_many_arguments, reason = "the operation has these operands")]
    fn bias_rope_kv(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        qkv: &Self::Tensor,
        bias: [Option<&Self::Vector>; 3],
        norm: Option<&QkNorm<Self::Vector>>,
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

    /// The same for the rows that need logits alone: `q` and `out` have a row for each of them.
    fn attention_of_logit_rows(
        &mut self,
        batch: &Self::Batch,
        layer: usize,
        q: &Self::Tensor,
        cache: &Self::KvCache,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// Comes in the place of attention where nobody needs what would come of it: K and V of the rows that were computed last are in their slots
    /// then, which a device may have left to its kernels of attention.
    fn store_rows(&mut self, _cache: &mut Self::KvCache) -> Result<()> {
        Ok(())
    }

    /// `out = silu(gate) * up`, where each row of `gate_up` is `[gate; up]`, the [`Ops::matmul_rounded`] product with `weights`: `[n, 2 *
    /// intermediate_size] -> [n, intermediate_size]`.
    fn silu_mul(
        &mut self,
        n: usize,
        weights: &Stacked<Self::Weight>,
        gate_up: &Self::Activation,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `out = gelu(x + bias)` with `gelu(v) = v / 2 * (1 + tanh(√(2 / π) (v + 0.044715 v³)))`, where `x` is the [`Ops::matmul_rounded`] product
    /// with the weight of `projection`: `[n, intermediate_size]`.
    fn bias_gelu(
        &mut self,
        n: usize,
        projection: &Linear<Self::Weight, Self::Vector>,
        x: &Self::Activation,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// `rows[i] *= sigmoid(x[i] · gate)`: `x` is `[n, hidden_size]`, `rows` `[n, cols]`.
    fn gate_rows(
        &mut self,
        n: usize,
        x: &Self::Activation,
        gate: &Self::Vector,
        rows: &mut Self::Activation,
    ) -> Result<()>;

    /// `out[i] = x[logit_rows[i]]`: `[num_logits, cols]`.
    fn gather_rows(&mut self, batch: &Self::Batch, x: &Self::Tensor, out: &mut Self::Tensor) -> Result<()>;

    /// With how many rows to multiply matrices where `n` are wanted: a device may take a rounded number, of the same shape as
    /// others, faster than each number for the first time. Rows beyond `n` mean nothing; the caller has room for them.
    fn product_rows(&self, n: usize) -> usize {
        n
    }

    /// Prepares for products of up to `most` rows, of the shapes that were there so far: for what takes its time when it comes first.
    fn warm_up(&mut self, _most: usize) -> Result<()> {
        Ok(())
    }

    // Parts of a layer in one kernel ([`parts`]), where the device has one for these rows and these matrices and it is the faster way.
    // `false`: it has none, and nothing was done.

    /// [`parts::attention_in`] in one kernel.
    fn norm_qkv_rope(
        &mut self,
        _rows: Rows<Self::Batch>,
        _layer: usize,
        _part: &AttentionIn<Self::Weight, Self::Vector>,
        _x: &Self::Tensor,
        _q: &mut Self::Tensor,
        _cache: &mut Self::KvCache,
    ) -> Result<bool> {
        Ok(false)
    }

    /// [`parts::MlpIn`] in one kernel.
    fn norm_gate_up(
        &mut self,
        _rows: Rows<Self::Batch>,
        _part: &MlpIn<Self::Weight, Self::Vector>,
        _x: &Self::Tensor,
        _out: &mut Self::Activation,
    ) -> Result<bool> {
        Ok(false)
    }

    /// [`Ops::matmul_rounded`] with gate and up, and [`Ops::silu_mul`] of that, in one kernel: `[n, hidden_size] -> [n, intermediate_size]`.
    fn gated_matmul(
        &mut self,
        _n: usize,
        _x: &Self::Activation,
        _weights: &Stacked<Self::Weight>,
        _out: &mut Self::Activation,
    ) -> Result<bool> {
        Ok(false)
    }

    /// [`parts::norm_matmul`] in one kernel.
    fn norm_matmul(
        &mut self,
        _rows: Rows<Self::Batch>,
        _part: &NormMatmul<Self::Weight, Self::Vector>,
        _x: &Self::Tensor,
        _logits: &mut Self::Tensor,
    ) -> Result<bool> {
        Ok(false)
    }

    // Sampling.

    /// Takes what the next draw needs; `logits` are what it will draw from.
    fn prepare_sampling(&mut self, logits: &Self::Tensor, rows: &[SamplingRow]) -> Result<()>;

    /// Draws one token per prepared row of `logits` `[rows, vocab_size]`, which it may overwrite.
    fn queue_sampling(&mut self, logits: &mut Self::Tensor) -> Result<()>;

    /// Queues bringing the tokens of the last draw to the host.
    fn copy_tokens_to_host(&mut self) -> Result<()> {
        Ok(())
    }

    /// Waits for the tokens of the draw that was fetched first of those not read yet, whatever was queued behind it;
    /// [`NO_TOKEN`](crate::sampler::NO_TOKEN) where a row's logits left none.
    fn take_tokens(&mut self) -> Result<Vec<u32>>;

    /// Drops draws that were fetched and not read.
    fn discard_tokens(&mut self) {}

    /// Whether the next step may be queued before the tokens of the last one are read: [`Ops::embed`] takes them from the
    /// device then, and the tokens of two draws may be on their way.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Draws one token per row of `logits` `[rows.len(), vocab_size]`, which it may overwrite.
    fn sample(&mut self, logits: &mut Self::Tensor, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        self.prepare_sampling(logits, rows)?;
        self.queue_sampling(logits)?;
        self.copy_tokens_to_host()?;
        self.take_tokens()
    }

    /// Does what `step` does, for the uploaded batch and, where it has logits, the prepared draw. A device may record what
    /// it queues and, for the same work on a batch of the same shape, replay that instead of calling `step`: so `step` queues operations of
    /// one step on the same buffers each time and does nothing else.
    fn run_step(
        &mut self,
        batch: &Self::Batch,
        work: Work,
        step: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let _ = (batch, work);
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

    /// Bytes a second that this device reads from its memory, measured now on weights that were loaded: the ceiling of decoding. `None`
    /// for a device whose speed means nothing.
    fn read_bandwidth(&mut self) -> Result<Option<f64>>;
}
