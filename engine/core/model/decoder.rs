//! The decoder that most architectures are: pre-norm layers of attention and an MLP over one residual stream. An architecture's
//! file says which parts its layers have; the forward pass, one flat list of operations for prefill, decode and everything
//! between, is here.

use super::build::{BufferKind::*, BufferRows::*, Build, HeadRows, NormKind, Projection};
use super::delta_net::{self, Recurrent};
use crate::config::{Config, ExpertSizes};
use crate::error::Result;
use crate::kv_layout::LayerState;
use crate::ops::hybrid::{ValueHeads, delta_net};
use crate::ops::parts::{
    self, AttentionIn, ExpertScratch, Experts, Linear, Mlp, MlpIn, MlpScratch, Norm, NormMatmul, Router,
    Scratch, SharedExpert, Up,
};
use crate::ops::{Ops, Rows, Stacked, Types};
use crate::rope::{Pairs, head_order};
use crate::weights::{EMBEDDING, HEAD};

/// A loaded model with its work buffers.
pub struct Decoder<T: Types> {
    /// `[vocab_size, hidden_size]`
    embed_tokens: T::Weight,
    /// `[max_position_embeddings, hidden_size]`
    embed_positions: Option<T::Vector>,
    layers: Vec<Layer<T>>,
    norm: Norm<T::Vector>,
    /// `[vocab_size, hidden_size]`; `None` where the head is `embed_tokens`.
    lm_head: Option<T::Weight>,
    buffers: Buffers<T>,
}

/// One layer.
pub struct Layer<T: Types> {
    mixer: Mixer<T>,
    mlp: Mlp<T::Weight, T::Vector>,
}

/// What makes a row look at those before it.
enum Mixer<T: Types> {
    Attention(Attention<T>),
    Recurrent(Recurrent<T>),
}

/// Attention over pages.
struct Attention<T: Types> {
    /// Which it is of the layers with pages.
    pages: usize,
    input: AttentionIn<T::Weight, T::Vector>,
    /// `[hidden_size, num_attention_heads * head_dim]`
    o_proj: Linear<T::Weight, T::Vector>,
}

/// What a step writes besides the KV cache.
struct Buffers<T: Types> {
    /// The residual stream.
    x: T::Tensor,
    q: T::Tensor,
    attended: T::Activation,
    /// The rows of `x` that need logits.
    last: T::Tensor,
    /// Their queries.
    last_q: T::Tensor,
    /// What their attention is gated by; `None` where it is not.
    last_gate: Option<T::Tensor>,
    last_normed: T::Activation,
    logits: T::Tensor,
    scratch: Scratch<T>,
}

/// What architectures differ in.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Which values of a head are rotated together, in the file.
    pub pairs: Pairs,
    /// Q and K are normed head by head.
    pub qk_norm: bool,
    /// Of the residual stream.
    pub norm: NormKind,
    /// The MLP is `down(silu(gate) * up)`, not `down(gelu(up))`.
    pub is_gated: bool,
    /// Where there are experts: the weights of those that a token goes to are divided by their sum.
    pub renormalise: bool,
    /// The projections after attention and of the MLP have biases too.
    pub has_biases: bool,
    /// Each position has a vector that is added to the embedding.
    pub has_positions: bool,
    /// Attention's output is multiplied with a sigmoid, whose rows stand behind those of each head of Q.
    pub has_attention_gate: bool,
    /// Of layers of linear attention.
    pub value_heads: ValueHeads,
    /// What the norm before the MLP is called.
    pub mlp_norm: &'static str,
}

impl Features {
    /// Those of most: Llama's with the pairs of Hugging Face.
    pub const USUAL: Self = Self {
        pairs: Pairs::Halves,
        qk_norm: false,
        norm: NormKind::Rms,
        is_gated: true,
        renormalise: false,
        has_biases: false,
        has_positions: false,
        has_attention_gate: false,
        value_heads: ValueHeads::Tiled,
        mlp_norm: "ffn_norm",
    };

    /// Those of hybrids.
    pub const HYBRID: Self = Self {
        qk_norm: true,
        renormalise: true,
        has_attention_gate: true,
        mlp_norm: "post_attention_norm",
        ..Self::USUAL
    };
}

impl<T: Types> Decoder<T> {
    /// Asks `b` for everything that the model of `config` needs.
    ///
    /// # Errors
    /// What `b` says.
    pub fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features) -> Result<Self> {
        let &Config {
            hidden_size, vocab_size, num_hidden_layers, rms_norm_eps, max_position_embeddings, ..
        } = config;
        Ok(Self {
            embed_tokens: b.matrix(EMBEDDING, vocab_size, hidden_size)?,
            embed_positions: match features.has_positions {
                true => Some(b.table("position_embd.weight", max_position_embeddings, hidden_size)?),
                false => None,
            },
            layers: (0..num_hidden_layers)
                .map(|i| Layer::build(b, config, features, i))
                .collect::<Result<_>>()?,
            norm: b.norm(features.norm, "output_norm", hidden_size, rms_norm_eps)?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(b.matrix(HEAD, vocab_size, hidden_size)?),
            },
            buffers: Buffers::build(b, config, features)?,
        })
    }
}

impl<T: Types> Layer<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features, i: usize) -> Result<Self> {
        let layer = &format!("blk.{i}");
        Ok(Self {
            mixer: match &config.linear {
                Some(sizes) if config.linear_layers.contains(&i) => {
                    Mixer::Recurrent(Recurrent::build(b, config, sizes, features.value_heads, layer)?)
                }
                _ => Mixer::Attention(Attention::build(b, config, features, layer)?),
            },
            mlp: match &config.experts {
                None => dense(b, config, features, layer)?,
                Some(sizes) => experts(b, config, sizes, features, layer)?,
            },
        })
    }
}

impl<T: Types> Attention<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features, layer: &str) -> Result<Self> {
        let &Config { hidden_size, head_dim, rms_norm_eps: eps, .. } = config;
        let order = head_order(features.pairs, config.rotation.dim, head_dim);
        let order = order.as_deref();
        let ordered = |size, order: Option<_>| order.map(|order| HeadRows { size, order });
        let projection = |kind: &str, name: &str, rows, heads| Projection {
            name: format!("{layer}.{name}.{kind}"),
            rows,
            heads,
        };
        // Of each head Q's rows, then its gate's.
        let (of_q, of_gate): (Vec<_>, Vec<_>) = ((0..head_dim).collect(), (head_dim..2 * head_dim).collect());
        let q_heads = match features.has_attention_gate {
            true => ordered(2 * head_dim, Some(order.unwrap_or(&of_q))),
            false => ordered(head_dim, order),
        };
        // What one kernel rotates as it multiplies has pairs side by side.
        let apart = if features.qk_norm || features.has_attention_gate { 0 } else { head_dim / 2 };
        let qkv = |kind: &str| {
            [
                projection(kind, "attn_q", config.q_size(), q_heads),
                projection(kind, "attn_k", config.kv_size(), ordered(head_dim, order)),
                projection(kind, "attn_v", config.kv_size(), None),
            ]
        };
        let gate = projection("weight", "attn_q", config.q_size(), ordered(2 * head_dim, Some(&of_gate)));
        let fused = |kind: &str| config.fused_qkv.then(|| format!("{layer}.attn_qkv.{kind}"));
        let &Config { num_key_value_heads, .. } = config;
        Ok(Self {
            pages: b.state(LayerState::Pages { num_key_value_heads, head_dim }),
            input: AttentionIn {
                norm: b.norm(features.norm, &format!("{layer}.attn_norm"), hidden_size, eps)?,
                qkv: b.stacked(&qkv("weight"), hidden_size, apart, fused("weight").as_deref())?,
                bias: match features.has_attention_gate {
                    // Nobody has both, and a bias would have the gate's rows too.
                    true => [const { None }; 3],
                    false => b.biases(qkv("bias"), fused("bias").as_deref())?,
                },
                qk_norm: match features.qk_norm {
                    true => {
                        let names = ["q", "k"].map(|of| format!("{layer}.attn_{of}_norm.weight"));
                        Some(b.qk_norm(names.each_ref().map(String::as_str), head_dim, order, eps)?)
                    }
                    false => None,
                },
                gate: match features.has_attention_gate {
                    true => Some(b.projection(&gate, hidden_size)?),
                    false => None,
                },
            },
            o_proj: linear(b, features, &format!("{layer}.attn_output"), hidden_size, config.q_size())?,
        })
    }
}

/// An MLP for all tokens.
fn dense<T: Types, B: Build<T>>(
    b: &mut B,
    config: &Config,
    features: &Features,
    layer: &str,
) -> Result<Mlp<T::Weight, T::Vector>> {
    let &Config { hidden_size, intermediate_size, rms_norm_eps, .. } = config;
    Ok(Mlp::Dense {
        input: MlpIn {
            norm: b.norm(
                features.norm,
                &format!("{layer}.{}", features.mlp_norm),
                hidden_size,
                rms_norm_eps,
            )?,
            up: match features.is_gated {
                true => Up::Gated(gate_up(b, config, layer, "", intermediate_size)?),
                false => Up::Plain(linear(
                    b,
                    features,
                    &format!("{layer}.ffn_up"),
                    intermediate_size,
                    hidden_size,
                )?),
            },
        },
        down: linear(b, features, &format!("{layer}.ffn_down"), hidden_size, intermediate_size)?,
    })
}

/// Gate and up, to `rows` values each; `suffix` is what their names end in.
fn gate_up<T: Types, B: Build<T>>(
    b: &mut B,
    config: &Config,
    layer: &str,
    suffix: &str,
    rows: usize,
) -> Result<Stacked<T::Weight>> {
    let projection =
        |name: &str| Projection { name: format!("{layer}.{name}{suffix}.weight"), rows, heads: None };
    b.stacked(&["ffn_gate", "ffn_up"].map(projection), config.hidden_size, rows, None)
}

/// A mixture of experts.
fn experts<T: Types, B: Build<T>>(
    b: &mut B,
    config: &Config,
    sizes: &ExpertSizes,
    features: &Features,
    layer: &str,
) -> Result<Mlp<T::Weight, T::Vector>> {
    let &Config { hidden_size, rms_norm_eps, .. } = config;
    let &ExpertSizes { num_experts, num_experts_per_tok, moe_intermediate_size, .. } = sizes;
    let shared_size = sizes.shared_expert_intermediate_size;
    let name = |name: &str| format!("{layer}.{name}.weight");
    let norm = b.norm(features.norm, &format!("{layer}.{}", features.mlp_norm), hidden_size, rms_norm_eps)?;
    let router = Router {
        weight: b.table(&name("ffn_gate_inp"), num_experts, hidden_size)?,
        num_experts,
        num_experts_per_tok,
        renormalise: features.renormalise,
    };
    let [gate, up] = ["ffn_gate_exps", "ffn_up_exps"].map(name);
    let [gate, up] = b.gate_up_experts([&gate, &up], sizes, moe_intermediate_size, hidden_size)?;
    Ok(Mlp::Experts(Experts {
        norm,
        router,
        gate,
        up,
        down: b.experts(&name("ffn_down_exps"), sizes, hidden_size, moe_intermediate_size)?,
        shared: match shared_size {
            0 => None,
            _ => Some(SharedExpert {
                gate: b.vector(&name("ffn_gate_inp_shexp"), hidden_size, None)?,
                gate_up: gate_up(b, config, layer, "_shexp", shared_size)?,
                down: b.matrix(&name("ffn_down_shexp"), hidden_size, shared_size)?,
            }),
        },
    }))
}

/// A projection to `rows` values from `cols`; `name` is without the `.weight` and `.bias` of its tensors.
fn linear<T: Types, B: Build<T>>(
    b: &mut B,
    features: &Features,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Linear<T::Weight, T::Vector>> {
    Ok(Linear {
        weight: b.matrix(&format!("{name}.weight"), rows, cols)?,
        bias: match features.has_biases {
            true => Some(b.vector(&format!("{name}.bias"), rows, None)?),
            false => None,
        },
    })
}

impl<T: Types> Buffers<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features) -> Result<Self> {
        let &Config { hidden_size, vocab_size, experts, .. } = config;
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let size = config.dense_size();
        let projections = if features.is_gated { 2 } else { 1 };
        Ok(Self {
            x: b.tensor(Tokens, hidden_size)?,
            q: b.tensor(Tokens, q_size)?,
            attended: b.activation(Tokens, q_size, Activation)?,
            last: b.tensor(Logits, hidden_size)?,
            last_q: b.tensor(Logits, q_size)?,
            last_gate: match features.has_attention_gate {
                true => Some(b.tensor(Logits, q_size)?),
                false => None,
            },
            last_normed: b.activation(Logits, hidden_size, Precise)?,
            logits: b.tensor(Logits, vocab_size)?,
            scratch: Scratch {
                normed: b.activation(Tokens, hidden_size, Precise)?,
                qkv: b.tensor(Tokens, q_size + 2 * kv_size)?,
                mlp: match size {
                    0 => None,
                    _ => Some(MlpScratch {
                        gate_up: b.activation(Tokens, projections * size, Product)?,
                        gated: b.activation(Tokens, size, Precise)?,
                    }),
                },
                experts: match experts {
                    None => None,
                    Some(ExpertSizes { num_experts_per_tok, moe_intermediate_size, .. }) => {
                        Some(ExpertScratch {
                            chosen: b.tensor(Tokens, 2 * num_experts_per_tok)?,
                            inner: b.tensor(Tokens, num_experts_per_tok * moe_intermediate_size)?,
                        })
                    }
                },
                gate: match features.has_attention_gate {
                    true => Some(b.tensor(Tokens, q_size)?),
                    false => None,
                },
                delta: match &config.linear {
                    Some(sizes) => Some(delta_net::scratch(b, sizes)?),
                    None => None,
                },
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
            match &layer.mixer {
                Mixer::Attention(attention) => ops.bound_attention(&format!("blk.{i}"), &attention.input)?,
                Mixer::Recurrent(layer) => ops.bound_delta_net(&format!("blk.{i}"), &layer.part)?,
            }
            match &layer.mlp {
                Mlp::Dense { input, .. } => ops.bound_mlp(&format!("blk.{i}"), input)?,
                Mlp::Experts(part) => ops.bound_experts(&format!("blk.{i}"), part)?,
            }
        }
        ops.bound_norm("output_norm", &self.norm)
    }

    /// Computes the rows `all` of a batch, writes their K and V to `cache` and what recurrent layers keep to `states`, and leaves the
    /// logits of the rows `logit_rows` of them in [`Decoder::logits`].
    ///
    /// # Errors
    /// Whatever the device says; what `cache` and `states` have of the sequences of this batch is then undefined.
    pub fn forward(
        &mut self,
        ops: &mut O,
        all: Rows<O::Batch>,
        logit_rows: Rows<O::Batch>,
        cache: &mut O::KvCache,
        states: &mut O::States,
    ) -> Result<()> {
        self.layers(ops, all, logit_rows, cache, states)?;
        if logit_rows.n == 0 {
            return Ok(()); // A chunk of a prefill that is not the last.
        }
        let Self { embed_tokens, norm, lm_head, buffers, .. } = self;
        let Buffers { x, last, last_normed, logits, .. } = buffers;
        let head = NormMatmul { norm, weight: lm_head.as_ref().unwrap_or(embed_tokens) };
        let x = if logit_rows.n < all.n { last } else { x };
        parts::norm_matmul(ops, logit_rows, &head, x, last_normed, logits)?; // [num_logits, vocab_size]
        Ok(())
    }

    /// The residual stream behind the last layer: its first rows are those of the last [`Decoder::layers`], of whose rows `some` alone or
    /// all needed logits.
    pub fn residual(&mut self, some: bool) -> &mut O::Tensor {
        if some { &mut self.buffers.last } else { &mut self.buffers.x }
    }

    /// As [`Decoder::forward`] without the head: what it needs is left in [`Decoder::residual`].
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn layers(
        &mut self,
        ops: &mut O,
        all: Rows<O::Batch>,
        logit_rows: Rows<O::Batch>,
        cache: &mut O::KvCache,
        states: &mut O::States,
    ) -> Result<()> {
        let Self { embed_tokens, embed_positions, layers, buffers, .. } = self;
        let Buffers { x, q, attended, last, last_q, last_gate, scratch, .. } = buffers;
        let batch = all.batch;
        let some = logit_rows.n < all.n;

        ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        if let Some(table) = embed_positions {
            ops.add_positions(batch, table, x)?;
        }
        for (i, layer) in layers.iter().enumerate() {
            match &layer.mixer {
                Mixer::Attention(Attention { pages, input, .. }) => {
                    parts::attention_in(ops, all, *pages, input, x, scratch, q, cache)?; // [n, heads * head_dim]
                }
                Mixer::Recurrent(Recurrent { slots, part }) => {
                    delta_net(ops, all, *slots, part, x, scratch, states)?; // [n, hidden_size]
                }
            }

            // Behind what the last layer keeps rows have nothing to do with each other: those that need logits go on alone.
            let alone = i + 1 == layers.len() && some;
            if alone && logit_rows.n == 0 {
                return Ok(()); // Nobody needs what comes behind the pages.
            }
            if alone {
                ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
            }
            let (x, rows) = if alone { (&mut *last, logit_rows) } else { (&mut *x, all) };
            if let Mixer::Attention(Attention { pages, o_proj, .. }) = &layer.mixer {
                let mut gate = scratch.gate.as_mut();
                if alone {
                    ops.gather_rows(batch, q, last_q)?; // [num_logits, heads * head_dim]
                    if let (Some(gate), Some(last_gate)) = (gate, last_gate.as_mut()) {
                        ops.gather_rows(batch, gate, last_gate)?; // [num_logits, heads * head_dim]
                    }
                    gate = last_gate.as_mut();
                    ops.attention_of_logit_rows(batch, *pages, last_q, cache, attended)?; // [num_logits, heads * head_dim]
                } else {
                    ops.attention(batch, *pages, q, cache, attended)?; // [n, heads * head_dim]
                }
                if let Some(gate) = gate {
                    ops.sigmoid_mul(rows.n, gate, attended)?; // [n, heads * head_dim]
                }
                parts::add_projection(ops, rows, attended, o_proj, x)?; // [n, hidden_size]
            }

            parts::mlp(ops, rows, &layer.mlp, x, scratch)?; // [n, hidden_size]
        }
        Ok(())
    }
}
