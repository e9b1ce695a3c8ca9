//! The Qwen2 decoder: one flat list of operations for prefill, decode and everything between, on any device.

use crate::batch::BatchLimits;
use crate::config::Config;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{Ops, Qkv};
use crate::weights::{LayerWeights, Linear, Matrix, Weights};

/// A projection on the device.
struct Projection<O: Ops> {
    /// `[out_features, in_features]`
    weight: O::Weight,
    /// `[out_features]`
    bias: Option<O::Vector>,
}

/// One decoder layer on the device; shapes as in [`LayerWeights`].
struct Layer<O: Ops> {
    input_layernorm: O::Vector,
    q_proj: Projection<O>,
    k_proj: Projection<O>,
    v_proj: Projection<O>,
    o_proj: O::Weight,
    post_attention_layernorm: O::Vector,
    gate_proj: O::Weight,
    up_proj: O::Weight,
    down_proj: O::Weight,
}

impl<O: Ops> Layer<O> {
    /// What comes before attention.
    fn qkv(&self, eps: f32) -> Qkv<'_, O::Weight, O::Vector> {
        let Self { input_layernorm: norm, q_proj, k_proj, v_proj, .. } = self;
        Qkv {
            norm,
            eps,
            q: &q_proj.weight,
            k: &k_proj.weight,
            v: &v_proj.weight,
            q_bias: q_proj.bias.as_ref(),
            k_bias: k_proj.bias.as_ref(),
            v_bias: v_proj.bias.as_ref(),
        }
    }
}

/// Everything that a step writes besides the KV cache, sized by [`BatchLimits`].
struct Buffers<O: Ops> {
    /// The residual stream `[max_num_tokens, hidden_size]`.
    x: O::Tensor,
    /// What a block adds to it `[max_num_tokens, hidden_size]`.
    delta: O::Tensor,
    /// A norm's output `[max_num_tokens, hidden_size]`.
    normed: O::Activation,
    /// `[max_num_tokens, num_attention_heads * head_dim]`
    q: O::Tensor,
    /// `[max_num_tokens, num_key_value_heads * head_dim]`
    k: O::Tensor,
    /// `[max_num_tokens, num_key_value_heads * head_dim]`
    v: O::Tensor,
    /// `[max_num_tokens, num_attention_heads * head_dim]`
    attended: O::Activation,
    /// `[max_num_tokens, intermediate_size]`
    gate: O::Tensor,
    /// `[max_num_tokens, intermediate_size]`
    up: O::Tensor,
    /// `[max_num_tokens, intermediate_size]`
    gated: O::Activation,
    /// Rows whose logits are wanted `[max_num_logits, hidden_size]`.
    last: O::Tensor,
    /// `[max_num_logits, hidden_size]`
    last_normed: O::Activation,
    /// `[max_num_logits, vocab_size]`
    logits: O::Tensor,
}

impl<O: Ops> Buffers<O> {
    fn new(ops: &mut O, config: &Config, limits: &BatchLimits) -> Result<Self> {
        let (n, rows) = (limits.max_num_tokens, limits.max_num_logits);
        Ok(Self {
            x: ops.new_tensor(n, config.hidden_size)?,
            delta: ops.new_tensor(n, config.hidden_size)?,
            normed: ops.new_precise_activation(n, config.hidden_size)?,
            q: ops.new_tensor(n, config.q_size())?,
            k: ops.new_tensor(n, config.kv_size())?,
            v: ops.new_tensor(n, config.kv_size())?,
            attended: ops.new_activation(n, config.q_size())?,
            gate: ops.new_tensor(n, config.intermediate_size)?,
            up: ops.new_tensor(n, config.intermediate_size)?,
            gated: ops.new_precise_activation(n, config.intermediate_size)?,
            last: ops.new_tensor(rows, config.hidden_size)?,
            last_normed: ops.new_precise_activation(rows, config.hidden_size)?,
            logits: ops.new_tensor(rows, config.vocab_size)?,
        })
    }
}

/// Bytes of all buffers that [`Qwen2::load`] allocates for batches within `limits`, with activations in the format
/// `activation`. The weights are [`Weights::num_bytes`], the pages are [`crate::kv_cache::KvLayout::page_bytes`].
pub fn workspace_bytes(config: &Config, limits: &BatchLimits, activation: Dtype) -> u64 {
    let Config { hidden_size, intermediate_size, vocab_size, .. } = *config;
    let (q_size, kv_size) = (config.q_size(), config.kv_size());
    let (n, rows) = (limits.max_num_tokens as u64, limits.max_num_logits as u64);
    let tensors = n * (2 * hidden_size + q_size + 2 * kv_size + 2 * intermediate_size) as u64
        + rows * (hidden_size + vocab_size) as u64;
    let activations = n * (hidden_size + q_size + intermediate_size) as u64 + rows * hidden_size as u64;
    tensors * Dtype::F32.size() as u64 + activations * activation.size() as u64
}

/// A loaded Qwen2 model with its work buffers.
pub struct Qwen2<O: Ops> {
    config: Config,
    embed_tokens: O::Weight,
    layers: Vec<Layer<O>>,
    norm: O::Vector,
    /// `None` where the head is `embed_tokens`.
    lm_head: Option<O::Weight>,
    buffers: Buffers<O>,
}

impl<O: Ops> Qwen2<O> {
    /// Brings all weights to the device and allocates the buffers for batches within `limits`. `progress` is called
    /// after each tensor with the bytes of weights loaded so far and with their sum.
    ///
    /// # Errors
    /// Whatever the device says about a tensor or about memory.
    pub fn load(
        ops: &mut O,
        weights: &Weights,
        config: &Config,
        limits: &BatchLimits,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut loader = Loader { ops, loaded: 0, total: weights.num_bytes(), progress };
        let embed_tokens = loader.matrix(&weights.embed_tokens)?;
        let layers = weights.layers.iter().map(|layer| loader.layer(layer)).collect::<Result<_>>()?;
        let norm = loader.vector(&weights.norm)?;
        let lm_head = weights.lm_head.as_ref().map(|head| loader.matrix(head)).transpose()?;
        let buffers = Buffers::new(ops, config, limits)?;
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head, buffers })
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Logits of the last forward pass: its first `num_logits` rows of `[max_num_logits, vocab_size]` are valid.
    pub fn logits(&mut self) -> &mut O::Tensor {
        &mut self.buffers.logits
    }

    /// Computes the `n` rows of `batch`, writes their K and V to `cache`, and leaves the logits of its
    /// `num_logits` wanted rows in [`Qwen2::logits`].
    ///
    /// # Errors
    /// Whatever the device says; the contents of `cache` in the slots of this batch are then undefined.
    pub fn forward(
        &mut self,
        ops: &mut O,
        batch: &O::Batch,
        n: usize,
        num_logits: usize,
        cache: &mut O::KvCache,
    ) -> Result<()> {
        if ops.is_fused(batch) {
            return self.forward_fused(ops, batch, n, num_logits, cache);
        }
        let Self { config, embed_tokens, layers, norm, lm_head, buffers } = self;
        let Buffers { x, delta, normed, q, k, v, attended, gate, up, gated, last, last_normed, logits } =
            buffers;
        let eps = config.rms_norm_eps;

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        for (i, layer) in layers.iter().enumerate() {
            if i == 0 {
                ops.rms_norm(n, x, &layer.input_layernorm, eps, normed)?;
            } else {
                ops.add_rms_norm(n, x, delta, &layer.input_layernorm, eps, normed)?;
            }

            project(ops, n, normed, &layer.q_proj, q)?; // [n, num_attention_heads * head_dim]
            project(ops, n, normed, &layer.k_proj, k)?; // [n, num_key_value_heads * head_dim]
            project(ops, n, normed, &layer.v_proj, v)?; // [n, num_key_value_heads * head_dim]
            ops.rope(batch, q, config.num_attention_heads)?;
            ops.rope(batch, k, config.num_key_value_heads)?;
            ops.write_kv(batch, i, k, v, cache)?;
            ops.attention(batch, i, q, cache, attended)?; // [n, num_attention_heads * head_dim]
            ops.matmul(n, attended, &layer.o_proj, delta)?; // [n, hidden_size]

            ops.add_rms_norm(n, x, delta, &layer.post_attention_layernorm, eps, normed)?;
            ops.matmul(n, normed, &layer.gate_proj, gate)?; // [n, intermediate_size]
            ops.matmul(n, normed, &layer.up_proj, up)?; // [n, intermediate_size]
            ops.silu_mul(n, gate, up, gated)?;
            ops.matmul(n, gated, &layer.down_proj, delta)?; // [n, hidden_size]
        }
        if num_logits == 0 {
            return Ok(()); // A chunk of a prefill that is not the last: only its K and V are wanted.
        }
        ops.add(n, x, delta)?;
        ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
        ops.rms_norm(num_logits, last, norm, eps, last_normed)?;
        ops.matmul(num_logits, last_normed, lm_head.as_ref().unwrap_or(embed_tokens), logits) // [num_logits, vocab_size]
    }

    /// The same in five operations a layer, for batches of few rows.
    fn forward_fused(
        &mut self,
        ops: &mut O,
        batch: &O::Batch,
        n: usize,
        num_logits: usize,
        cache: &mut O::KvCache,
    ) -> Result<()> {
        let Self { config, embed_tokens, layers, norm, lm_head, buffers } = self;
        let Buffers { x, q, attended, gated, last, logits, .. } = buffers;
        let eps = config.rms_norm_eps;

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        for (i, layer) in layers.iter().enumerate() {
            ops.norm_qkv_rope(batch, i, x, &layer.qkv(eps), q, cache)?; // [n, num_attention_heads * head_dim]
            ops.attention(batch, i, q, cache, attended)?; // [n, num_attention_heads * head_dim]
            ops.matmul_add(n, attended, &layer.o_proj, x)?; // [n, hidden_size]
            let (gate, up) = (&layer.gate_proj, &layer.up_proj);
            ops.norm_gate_up(n, x, &layer.post_attention_layernorm, eps, gate, up, gated)?; // [n, intermediate_size]
            ops.matmul_add(n, gated, &layer.down_proj, x)?; // [n, hidden_size]
        }
        if num_logits == 0 {
            return Ok(());
        }
        let head = lm_head.as_ref().unwrap_or(embed_tokens);
        if num_logits == n {
            return ops.norm_matmul(n, x, norm, eps, head, logits); // Every row is wanted, in order.
        }
        ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
        ops.norm_matmul(num_logits, last, norm, eps, head, logits) // [num_logits, vocab_size]
    }
}

/// `out = x · weightᵀ + bias`
fn project<O: Ops>(
    ops: &mut O,
    n: usize,
    x: &O::Activation,
    projection: &Projection<O>,
    out: &mut O::Tensor,
) -> Result<()> {
    ops.matmul(n, x, &projection.weight, out)?;
    match &projection.bias {
        Some(bias) => ops.add_bias(n, out, bias),
        None => Ok(()),
    }
}

/// Loads tensors one by one and reports how far it is.
struct Loader<'a, O: Ops> {
    ops: &'a mut O,
    loaded: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<O: Ops> Loader<'_, O> {
    fn matrix(&mut self, matrix: &Matrix) -> Result<O::Weight> {
        let weight = self.ops.load_matrix(matrix)?;
        self.advance(matrix.data.len());
        Ok(weight)
    }

    fn vector(&mut self, values: &[f32]) -> Result<O::Vector> {
        let vector = self.ops.load_vector(values)?;
        self.advance(size_of_val(values));
        Ok(vector)
    }

    fn projection(&mut self, linear: &Linear) -> Result<Projection<O>> {
        let weight = self.matrix(&linear.weight)?;
        let bias = linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Projection { weight, bias })
    }

    fn layer(&mut self, layer: &LayerWeights) -> Result<Layer<O>> {
        Ok(Layer {
            input_layernorm: self.vector(&layer.input_layernorm)?,
            q_proj: self.projection(&layer.q_proj)?,
            k_proj: self.projection(&layer.k_proj)?,
            v_proj: self.projection(&layer.v_proj)?,
            o_proj: self.matrix(&layer.o_proj)?,
            post_attention_layernorm: self.vector(&layer.post_attention_layernorm)?,
            gate_proj: self.matrix(&layer.gate_proj)?,
            up_proj: self.matrix(&layer.up_proj)?,
            down_proj: self.matrix(&layer.down_proj)?,
        })
    }

    fn advance(&mut self, bytes: usize) {
        self.loaded += bytes as u64;
        (self.progress)(self.loaded, self.total);
    }
}
