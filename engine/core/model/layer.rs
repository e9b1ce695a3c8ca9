//! A layer of a decoder: attention or linear attention, then an MLP or experts.

use super::build::{Build, HeadRows, Projection};
use super::decoder::{Buffers, Features};
use super::delta_net::Recurrent;
use crate::config::{Config, ExpertSizes};
use crate::error::Result;
use crate::kv_layout::LayerState;
use crate::ops::hybrid::delta_net;
use crate::ops::parts::{self, AttentionIn, Experts, Linear, Mlp, MlpIn, Router, SharedExpert, Up};
use crate::ops::{Ops, Rows, Stacked, Types};
use crate::rope::head_order;

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

impl<T: Types> Layer<T> {
    /// Asks `b` for what layer `i` needs.
    ///
    /// # Errors
    /// What `b` says.
    pub fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features, i: usize) -> Result<Self> {
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
        let attention = Self {
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
                updates: b.updates(&qkv("weight"), hidden_size, fused("weight").as_deref())?,
                gate_updates: match features.has_attention_gate {
                    true => b.updates(&[gate], hidden_size, None)?,
                    false => Vec::new(),
                },
            },
            o_proj: linear(b, features, &format!("{layer}.attn_output"), hidden_size, config.q_size())?,
        };
        for name in ["weight", "bias"].map(fused).iter().flatten() {
            b.in_parts(name, &[config.q_size(), config.kv_size(), config.kv_size()]);
        }
        Ok(attention)
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
            updates: match features.is_gated {
                true => b.updates(&gate_and_up(layer, "", intermediate_size), hidden_size, None)?,
                false => Vec::new(),
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
    b.stacked(&gate_and_up(layer, suffix, rows), config.hidden_size, rows, None)
}

/// Gate and up by themselves.
fn gate_and_up(layer: &str, suffix: &str, rows: usize) -> [Projection<'static>; 2] {
    ["ffn_gate", "ffn_up"].map(|name| projection(&format!("{layer}.{name}{suffix}"), rows))
}

/// All rows of the matrix `name`, which is without its `.weight`.
fn projection(name: &str, rows: usize) -> Projection<'static> {
    Projection { name: format!("{name}.weight"), rows, heads: None }
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
        updates: b.updates(&[projection(name, rows)], cols, None)?,
    })
}

impl<O: Ops> Layer<O> {
    /// Tells the device each part once all is loaded; `name` is the layer's.
    ///
    /// # Errors
    /// [`crate::Error::Range`] if the device has no room for its numbers.
    pub fn bound(&self, ops: &mut O, name: &str) -> Result<()> {
        match &self.mixer {
            Mixer::Attention(attention) => ops.bound_attention(name, &attention.input)?,
            Mixer::Recurrent(layer) => ops.bound_delta_net(name, &layer.part)?,
        }
        match &self.mlp {
            Mlp::Dense { input, .. } => ops.bound_mlp(name, input),
            Mlp::Experts(part) => ops.bound_experts(name, part),
        }
    }

    /// Takes the rows `all` of the residual stream `x` on by this layer, in place; with `alone` only what it keeps is computed of all, and the
    /// rows `logit_rows` of them go on in `buffers.last`.
    ///
    /// # Errors
    /// What the device says.
    #[allow(clippy::too_many_arguments, reason = "the layer has these operands")]
    pub fn forward(
        &self,
        ops: &mut O,
        all: Rows<O::Batch>,
        logit_rows: Rows<O::Batch>,
        alone: bool,
        x: &mut O::Tensor,
        buffers: &mut Buffers<O>,
        cache: &mut O::KvCache,
        states: &mut O::States,
    ) -> Result<()> {
        let Buffers { q, attended, last, last_q, last_gate, scratch, .. } = buffers;
        let batch = all.batch;
        match &self.mixer {
            Mixer::Attention(Attention { pages, input, .. }) => {
                parts::attention_in(ops, all, *pages, input, x, scratch, q, cache)?; // [n, heads * head_dim]
            }
            Mixer::Recurrent(Recurrent { slots, part }) => {
                delta_net(ops, all, *slots, part, x, scratch, states)?; // [n, hidden_size]
            }
        }

        // Behind what the last layer keeps rows have nothing to do with each other: those that need logits go on alone.
        if alone && logit_rows.n == 0 {
            return ops.store_rows(cache); // Nobody needs what comes behind the pages.
        }
        if alone {
            ops.gather_rows(batch, x, last)?; // [num_logits, hidden_size]
        }
        let (x, rows) = if alone { (last, logit_rows) } else { (x, all) };
        if let Mixer::Attention(Attention { pages, o_proj, .. }) = &self.mixer {
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
            parts::add_projection(ops, rows, attended, o_proj, x, scratch.of_rank.as_mut())?; // [n, hidden_size]
        }

        parts::mlp(ops, rows, &self.mlp, x, scratch) // [n, hidden_size]
    }
}
