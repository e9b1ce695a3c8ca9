//! The decoder that most architectures are: pre-norm layers of attention and a gated MLP over one residual stream. An architecture's
//! file says which parts its layers have; the forward pass, one flat list of operations for prefill, decode and everything
//! between, is here.

use super::build::{BufferKind::*, BufferRows::*, Build, Projection};
use crate::config::Config;
use crate::error::Result;
use crate::kv_layout::LayerState;
use crate::ops::parts::{self, AttentionIn, Head, MlpIn, Norm, Scratch};
use crate::ops::{Ops, Rows, Types};
use crate::rope::{Pairs, head_order};
use crate::weights::{EMBEDDING, HEAD};

/// A loaded model with its work buffers.
pub struct Decoder<T: Types> {
    /// `[vocab_size, hidden_size]`
    embed_tokens: T::Weight,
    layers: Vec<Layer<T>>,
    norm: Norm<T::Vector>,
    /// `[vocab_size, hidden_size]`; `None` where the head is `embed_tokens`.
    lm_head: Option<T::Weight>,
    buffers: Buffers<T>,
}

/// One layer.
pub struct Layer<T: Types> {
    /// Which it is of those with pages.
    pub pages: usize,
    pub attention_in: AttentionIn<T::Weight, T::Vector>,
    /// `[hidden_size, num_attention_heads * head_dim]`
    pub o_proj: T::Weight,
    pub mlp_in: MlpIn<T::Weight, T::Vector>,
    /// `[hidden_size, intermediate_size]`
    pub down_proj: T::Weight,
}

/// What a step writes besides the KV cache.
struct Buffers<T: Types> {
    /// The residual stream.
    x: T::Tensor,
    q: T::Tensor,
    attended: T::Activation,
    gated: T::Activation,
    /// The rows of `x` whose logits are wanted.
    last: T::Tensor,
    /// Their queries.
    last_q: T::Tensor,
    last_normed: T::Activation,
    logits: T::Tensor,
    scratch: Scratch<T>,
}

/// What the layers of an architecture have besides norms, projections and MLP.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Which values of a head are rotated together, in the file.
    pub pairs: Pairs,
    /// Q and K are normed head by head.
    pub qk_norm: bool,
}

impl<T: Types> Decoder<T> {
    /// Asks `b` for everything that the model of `config` needs.
    ///
    /// # Errors
    /// What `b` says.
    pub fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features) -> Result<Self> {
        let &Config { hidden_size, vocab_size, num_hidden_layers, rms_norm_eps, .. } = config;
        Ok(Self {
            embed_tokens: b.matrix(EMBEDDING, vocab_size, hidden_size)?,
            layers: (0..num_hidden_layers)
                .map(|i| Layer::build(b, config, features, &format!("blk.{i}")))
                .collect::<Result<_>>()?,
            norm: b.norm("output_norm.weight", hidden_size, rms_norm_eps)?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(b.matrix(HEAD, vocab_size, hidden_size)?),
            },
            buffers: Buffers::build(b, config)?,
        })
    }
}

impl<T: Types> Layer<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features, layer: &str) -> Result<Self> {
        let &Config { hidden_size, intermediate_size, head_dim, rms_norm_eps: eps, .. } = config;
        let order = head_order(features.pairs, config.rotation.dim, head_dim);
        let order = order.as_deref();
        let projection = |kind: &str, name: &str, rows, head_order| Projection {
            name: format!("{layer}.{name}.{kind}"),
            rows,
            head_order,
        };
        let qkv = |kind: &str| {
            [
                projection(kind, "attn_q", config.q_size(), order),
                projection(kind, "attn_k", config.kv_size(), order),
                projection(kind, "attn_v", config.kv_size(), None),
            ]
        };
        let gate_up = ["ffn_gate", "ffn_up"].map(|name| projection("weight", name, intermediate_size, None));
        let &Config { num_key_value_heads, .. } = config;
        Ok(Self {
            pages: b.state(LayerState::Pages { num_key_value_heads, head_dim }),
            attention_in: AttentionIn {
                norm: b.norm(&format!("{layer}.attn_norm.weight"), hidden_size, eps)?,
                qkv: b.stacked(&qkv("weight"), hidden_size, head_dim / 2)?,
                bias: b.biases(qkv("bias"))?,
                qk_norm: match features.qk_norm {
                    true => {
                        let names = ["q", "k"].map(|of| format!("{layer}.attn_{of}_norm.weight"));
                        Some(b.qk_norm(names.each_ref().map(String::as_str), head_dim, order, eps)?)
                    }
                    false => None,
                },
            },
            o_proj: b.matrix(&format!("{layer}.attn_output.weight"), hidden_size, config.q_size())?,
            mlp_in: MlpIn {
                norm: b.norm(&format!("{layer}.ffn_norm.weight"), hidden_size, eps)?,
                gate_up: b.stacked(&gate_up, hidden_size, intermediate_size)?,
            },
            down_proj: b.matrix(&format!("{layer}.ffn_down.weight"), hidden_size, intermediate_size)?,
        })
    }
}

impl<T: Types> Buffers<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config) -> Result<Self> {
        let &Config { hidden_size, intermediate_size, vocab_size, .. } = config;
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        Ok(Self {
            x: b.tensor(Tokens, hidden_size)?,
            q: b.tensor(Tokens, q_size)?,
            attended: b.activation(Tokens, q_size, Activation)?,
            gated: b.activation(Tokens, intermediate_size, Precise)?,
            last: b.tensor(Logits, hidden_size)?,
            last_q: b.tensor(Logits, q_size)?,
            last_normed: b.activation(Logits, hidden_size, Precise)?,
            logits: b.tensor(Logits, vocab_size)?,
            scratch: Scratch {
                normed: b.activation(Tokens, hidden_size, Precise)?,
                qkv: b.tensor(Tokens, q_size + 2 * kv_size)?,
                gate_up: b.activation(Tokens, 2 * intermediate_size, Product)?,
            },
        })
    }
}

impl<O: Ops> Decoder<O> {
    /// Logits of the last forward pass: its first `num_logits` rows of `[max_num_logits, vocab_size]` are valid.
    pub fn logits(&mut self) -> &mut O::Tensor {
        &mut self.buffers.logits
    }

    /// Tells the device each part once all is loaded.
    ///
    /// # Errors
    /// [`crate::Error::Range`] if the device has no room for its numbers.
    pub fn bound(&self, ops: &mut O) -> Result<()> {
        for (i, layer) in self.layers.iter().enumerate() {
            ops.bound_attention(&format!("blk.{i}"), &layer.attention_in)?;
            ops.bound_mlp(&format!("blk.{i}"), &layer.mlp_in)?;
        }
        ops.bound_norm("output_norm", &self.norm)
    }

    /// Computes the rows `all` of a batch, writes their K and V to `cache`, and leaves the logits of the rows `wanted` of them in
    /// [`Decoder::logits`].
    ///
    /// # Errors
    /// Whatever the device says; the contents of `cache` in the slots of this batch are then undefined.
    pub fn forward(
        &mut self,
        ops: &mut O,
        all: Rows<O::Batch>,
        wanted: Rows<O::Batch>,
        cache: &mut O::KvCache,
    ) -> Result<()> {
        let Self { embed_tokens, layers, norm, lm_head, buffers } = self;
        let Buffers { x, q, attended, gated, last, last_q, last_normed, logits, scratch } = buffers;
        let batch = all.batch;
        let some = wanted.n < all.n;

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        for (i, layer) in layers.iter().enumerate() {
            parts::attention_in(ops, all, layer.pages, &layer.attention_in, x, scratch, q, cache)?; // [n, heads * head_dim]

            // Behind the last keys and values rows have nothing to do with each other: those whose logits are wanted go on alone.
            let is_last = i + 1 == layers.len();
            let (x, rows) = if is_last && some {
                if wanted.n == 0 {
                    return Ok(()); // A chunk of a prefill that is not the last.
                }
                ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
                ops.gather_rows(batch, q, last_q)?; // [num_logits, heads * head_dim]
                ops.attention_of_wanted(batch, layer.pages, last_q, cache, attended)?; // [num_logits, heads * head_dim]
                (&mut *last, wanted)
            } else {
                ops.attention(batch, layer.pages, q, cache, attended)?; // [n, heads * head_dim]
                (&mut *x, all)
            };
            ops.matmul_add(rows, attended, &layer.o_proj, x)?; // [n, hidden_size]

            parts::mlp_in(ops, rows, &layer.mlp_in, x, scratch, gated)?; // [n, intermediate_size]
            ops.matmul_add(rows, gated, &layer.down_proj, x)?; // [n, hidden_size]
        }
        let head = Head { norm, weight: lm_head.as_ref().unwrap_or(embed_tokens) };
        let x = if some { last } else { x };
        parts::head(ops, wanted, &head, x, last_normed, logits) // [num_logits, vocab_size]
    }
}
