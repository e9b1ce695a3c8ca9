//! The Qwen2 decoder: one flat list of operations for prefill, decode and everything between, on any device.

use crate::batch::BatchLimits;
use crate::config::Config;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{Ops, Qkv, QkvBias, Stacked};
use crate::weights::{LayerWeights, Linear, Matrix, Weights};

/// One decoder layer on the device; shapes as in [`LayerWeights`].
struct Layer<O: Ops> {
    input_layernorm: O::Vector,
    /// Of Q, K and V.
    qkv_proj: Stacked<O::Weight>,
    /// Of Q, K and V.
    qkv_bias: [Option<O::Vector>; 3],
    o_proj: O::Weight,
    post_attention_layernorm: O::Vector,
    gate_up_proj: Stacked<O::Weight>,
    down_proj: O::Weight,
}

impl<O: Ops> Layer<O> {
    /// What comes before attention.
    fn qkv(&self, eps: f32) -> Qkv<'_, O::Weight, O::Vector> {
        let [q, k, v] = [0, 1, 2].map(|i| &self.qkv_proj.parts[i]);
        let QkvBias { q: q_bias, k: k_bias, v: v_bias } = self.qkv_bias();
        Qkv { norm: &self.input_layernorm, eps, q, k, v, q_bias, k_bias, v_bias }
    }

    fn qkv_bias(&self) -> QkvBias<'_, O::Vector> {
        let [q, k, v] = self.qkv_bias.each_ref().map(Option::as_ref);
        QkvBias { q, k, v }
    }
}

/// Everything that a step writes besides the KV cache, sized by [`BatchLimits`].
struct Buffers<O: Ops> {
    /// The residual stream `[max_num_tokens, hidden_size]`.
    x: O::Tensor,
    /// A norm's output `[max_num_tokens, hidden_size]`.
    normed: O::Activation,
    /// `[max_num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]`
    qkv: O::Tensor,
    /// `[max_num_tokens, num_attention_heads * head_dim]`
    q: O::Tensor,
    /// `[max_num_tokens, num_attention_heads * head_dim]`
    attended: O::Activation,
    /// `[max_num_tokens, 2 * intermediate_size]`
    gate_up: O::Activation,
    /// `[max_num_tokens, intermediate_size]`
    gated: O::Activation,
    /// Rows whose logits are wanted `[max_num_logits, hidden_size]`.
    last: O::Tensor,
    /// Their queries `[max_num_logits, num_attention_heads * head_dim]`.
    last_q: O::Tensor,
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
            normed: ops.new_precise_activation(n, config.hidden_size)?,
            qkv: ops.new_tensor(n, config.q_size() + 2 * config.kv_size())?,
            q: ops.new_tensor(n, config.q_size())?,
            attended: ops.new_activation(n, config.q_size())?,
            gate_up: ops.new_product(n, 2 * config.intermediate_size)?,
            gated: ops.new_precise_activation(n, config.intermediate_size)?,
            last: ops.new_tensor(rows, config.hidden_size)?,
            last_q: ops.new_tensor(rows, config.q_size())?,
            last_normed: ops.new_precise_activation(rows, config.hidden_size)?,
            logits: ops.new_tensor(rows, config.vocab_size)?,
        })
    }
}

/// Bytes of all buffers that [`Qwen2::load`] allocates for batches within `limits`, with activations in the format
/// `activation`. The weights are [`Weights::num_bytes`], the pages are [`crate::kv_layout::KvLayout::page_bytes`].
pub fn workspace_bytes(config: &Config, limits: &BatchLimits, activation: Dtype) -> u64 {
    let Config { hidden_size, intermediate_size, vocab_size, .. } = *config;
    let (q_size, kv_size) = (config.q_size(), config.kv_size());
    let (n, rows) = (limits.max_num_tokens as u64, limits.max_num_logits as u64);
    let tensors = n * (hidden_size + 2 * (q_size + kv_size + intermediate_size)) as u64
        + rows * (hidden_size + q_size + vocab_size) as u64;
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
    /// Of the batches that the buffers have room for.
    limits: BatchLimits,
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
        ops.finish_loading()?;
        let buffers = Buffers::new(ops, config, limits)?;
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head, buffers, limits: *limits })
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
        if ops.is_fused(batch, self.config.hidden_size) {
            return self.forward_fused(ops, batch, n, num_logits, cache);
        }
        let Self { config, embed_tokens, layers, norm, lm_head, buffers, limits } = self;
        let Buffers { x, normed, qkv, q, attended, gate_up, gated, last, last_q, last_normed, logits } =
            buffers;
        let eps = config.rms_norm_eps;
        // Products may have a few rows more, which nobody reads.
        let rows = ops.product_rows(n).min(limits.max_num_tokens);
        let wanted_rows = ops.product_rows(num_logits).min(limits.max_num_logits);

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        for (i, layer) in layers.iter().enumerate() {
            ops.rms_norm(n, x, &layer.input_layernorm, eps, normed)?;
            ops.matmul(rows, normed, &layer.qkv_proj.whole, qkv)?; // [n, (heads + 2 key-value heads) * head_dim]
            ops.bias_rope_kv(batch, i, qkv, &layer.qkv_bias(), q, cache)?; // [n, num_attention_heads * head_dim]

            // Behind the last keys and values rows have nothing to do with each other: those whose logits are wanted go on alone.
            let (x, q, n, rows, some) = if i + 1 == layers.len() && num_logits < n {
                if num_logits == 0 {
                    return Ok(()); // A chunk of a prefill that is not the last.
                }
                ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
                ops.gather_rows(batch, q, last_q)?; // [num_logits, num_attention_heads * head_dim]
                (&mut *last, &*last_q, num_logits, wanted_rows, true)
            } else {
                (&mut *x, &*q, n, rows, false)
            };
            if some {
                ops.attention_of_wanted(batch, i, q, cache, attended)?; // [n, num_attention_heads * head_dim]
            } else {
                ops.attention(batch, i, q, cache, attended)?; // [n, num_attention_heads * head_dim]
            }
            ops.matmul_accumulate(rows, attended, &layer.o_proj, x)?; // [n, hidden_size]

            ops.rms_norm(n, x, &layer.post_attention_layernorm, eps, normed)?;
            ops.matmul_rounded(rows, normed, &layer.gate_up_proj.whole, gate_up)?; // [n, 2 * intermediate_size]
            ops.silu_mul(n, gate_up, gated)?; // [n, intermediate_size]
            ops.matmul_accumulate(rows, gated, &layer.down_proj, x)?; // [n, hidden_size]
        }
        let x = if num_logits < n { last } else { x };
        ops.rms_norm(num_logits, x, norm, eps, last_normed)?;
        ops.matmul(wanted_rows, last_normed, lm_head.as_ref().unwrap_or(embed_tokens), logits) // [num_logits, vocab_size]
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
        let Self { config, embed_tokens, layers, norm, lm_head, buffers, .. } = self;
        let Buffers { x, q, attended, gated, last, logits, .. } = buffers;
        let eps = config.rms_norm_eps;

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        for (i, layer) in layers.iter().enumerate() {
            ops.norm_qkv_rope(batch, i, x, &layer.qkv(eps), q, cache)?; // [n, num_attention_heads * head_dim]
            ops.attention(batch, i, q, cache, attended)?; // [n, num_attention_heads * head_dim]
            ops.matmul_add(n, attended, &layer.o_proj, x)?; // [n, hidden_size]
            let [gate, up] = [0, 1].map(|i| &layer.gate_up_proj.parts[i]);
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

    /// The weights of several projections of the same inputs.
    fn stacked(&mut self, matrices: &[&Matrix]) -> Result<Stacked<O::Weight>> {
        let stacked = self.ops.load_stacked(matrices)?;
        matrices.iter().for_each(|matrix| self.advance(matrix.data.len()));
        Ok(stacked)
    }

    fn bias(&mut self, linear: &Linear) -> Result<Option<O::Vector>> {
        linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()
    }

    fn layer(&mut self, layer: &LayerWeights) -> Result<Layer<O>> {
        let LayerWeights { q_proj, k_proj, v_proj, gate_proj, up_proj, .. } = layer;
        Ok(Layer {
            input_layernorm: self.vector(&layer.input_layernorm)?,
            qkv_proj: self.stacked(&[&q_proj.weight, &k_proj.weight, &v_proj.weight])?,
            qkv_bias: [self.bias(q_proj)?, self.bias(k_proj)?, self.bias(v_proj)?],
            o_proj: self.matrix(&layer.o_proj)?,
            post_attention_layernorm: self.vector(&layer.post_attention_layernorm)?,
            gate_up_proj: self.stacked(&[gate_proj, up_proj])?,
            down_proj: self.matrix(&layer.down_proj)?,
        })
    }

    fn advance(&mut self, bytes: usize) {
        self.loaded += bytes as u64;
        (self.progress)(self.loaded, self.total);
    }
}
