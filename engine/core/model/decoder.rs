//! The decoder that most architectures are: pre-norm layers of attention and an MLP over one residual stream. An architecture's
//! file says which parts its layers have; the forward pass, one flat list of operations for prefill, decode and everything
//! between, is here.

use super::build::{BufferKind::*, BufferRows::*, Build, NormKind};
use super::delta_net;
use super::draft::{Draft, Shared};
use super::layer::Layer;
use crate::config::{Config, ExpertSizes};
use crate::error::{Error, Result};
use crate::ops::hybrid::ValueHeads;
use crate::ops::parts::{self, ExpertScratch, MlpScratch, Norm, NormMatmul, Scratch};
use crate::ops::{Ops, Rows, Types, Work};
use crate::rope::Pairs;
use crate::weights::{EMBEDDING, HEAD};
use std::ops::Range;

/// A loaded model with its work buffers.
pub struct Decoder<T: Types> {
    /// `[vocab_size, hidden_size]`; `None` where it is on another device, and the head is no part of it here.
    embed_tokens: Option<T::Weight>,
    /// `[max_position_embeddings, hidden_size]`
    embed_positions: Option<T::Vector>,
    /// Which layers of the model those here are.
    range: Range<usize>,
    num_hidden_layers: usize,
    layers: Vec<Layer<T>>,
    /// `None` where another device has the last layer.
    norm: Option<Norm<T::Vector>>,
    /// `[Config::head_rows, hidden_size]`; `None` where the head is `embed_tokens`, or on another device.
    lm_head: Option<T::Weight>,
    /// The block that drafts, where it is wanted.
    draft: Option<Draft<T>>,
    /// The residual stream.
    x: T::Tensor,
    buffers: Buffers<T>,
}

/// What a step writes besides the residual stream and the KV cache.
pub struct Buffers<T: Types> {
    pub q: T::Tensor,
    pub attended: T::Activation,
    /// The rows of the residual stream that need logits.
    pub last: T::Tensor,
    /// Their queries.
    pub last_q: T::Tensor,
    /// What their attention is gated by; `None` where it is not.
    pub last_gate: Option<T::Tensor>,
    pub last_normed: T::Activation,
    pub logits: T::Tensor,
    /// This rank's; `None` where it computes them all.
    pub logits_of_rank: Option<T::Tensor>,
    pub scratch: Scratch<T>,
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
        let (is_first, is_last) = (config.is_first_stage(), config.is_last_stage());
        Ok(Self {
            embed_tokens: match is_first || (is_last && config.head_reads_embedding()) {
                true => Some(b.matrix(EMBEDDING, vocab_size, hidden_size)?),
                false => None,
            },
            embed_positions: match is_first && features.has_positions {
                true => Some(b.table("position_embd.weight", max_position_embeddings, hidden_size)?),
                false => None,
            },
            range: config.layers(),
            num_hidden_layers,
            layers: config.layers().map(|i| Layer::build(b, config, features, i)).collect::<Result<_>>()?,
            norm: match is_last {
                true => Some(b.norm(features.norm, "output_norm", hidden_size, rms_norm_eps)?),
                false => None,
            },
            lm_head: match is_last && !config.tie_word_embeddings {
                true => Some(b.matrix(HEAD, config.head_rows(), hidden_size)?),
                false => None,
            },
            draft: match &config.draft {
                Some(has) => Some(Draft::build(b, config, features, has)?),
                None => None,
            },
            x: b.tensor(Tokens, hidden_size)?,
            buffers: Buffers::build(b, config, features)?,
        })
    }
}

impl<T: Types> Buffers<T> {
    fn build<B: Build<T>>(b: &mut B, config: &Config, features: &Features) -> Result<Self> {
        let &Config { hidden_size, vocab_size, experts, .. } = config;
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let size = config.dense_size();
        let projections = if features.is_gated { 2 } else { 1 };
        let of_logits = if config.is_last_stage() { vocab_size } else { 0 };
        Ok(Self {
            q: b.tensor(Tokens, q_size)?,
            attended: b.activation(Tokens, q_size, Activation)?,
            last: b.tensor(Logits, hidden_size)?,
            last_q: b.tensor(Logits, q_size)?,
            last_gate: match features.has_attention_gate {
                true => Some(b.tensor(Logits, q_size)?),
                false => None,
            },
            last_normed: b.activation(Logits, hidden_size, Precise)?,
            logits: b.tensor(Logits, of_logits)?,
            logits_of_rank: match config.head_rows() {
                rows if rows == vocab_size => None,
                rows => Some(b.tensor(Logits, rows)?),
            },
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
                of_rank: match config.tensor_parallel_size {
                    1 => None,
                    _ => Some(b.tensor(Tokens, hidden_size)?),
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
        for (i, layer) in self.range.clone().zip(&self.layers) {
            layer.bound(ops, &format!("blk.{i}"))?;
        }
        self.draft.iter().try_for_each(|draft| draft.bound(ops, self.num_hidden_layers))?;
        self.norm.iter().try_for_each(|norm| ops.bound_norm("output_norm", norm))
    }

    /// Computes the rows `all` of a batch, writes their K and V to `cache` and what recurrent layers keep to `states`, and leaves the
    /// logits of the rows `logit_rows` of them in [`Decoder::logits`]; where other devices have layers, as much of that as is here, from and to
    /// the residual stream ([`Decoder::residual`]).
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
        let Self { embed_tokens, norm, lm_head, x, buffers, .. } = self;
        let Buffers { last, last_normed, logits, logits_of_rank, .. } = buffers;
        let (Some(norm), Some(weight)) = (norm, lm_head.as_ref().or(embed_tokens.as_ref())) else {
            return Ok(()); // Another device has the head.
        };
        let head = NormMatmul { norm, weight };
        let x = if logit_rows.n < all.n { last } else { x };
        parts::head(ops, logit_rows, &head, x, last_normed, logits_of_rank.as_mut(), logits) // [num_logits, vocab_size]
    }

    /// The residual stream behind the last layer: its first rows are those of the last [`Decoder::layers`], of whose rows `some` alone or
    /// all needed logits.
    pub fn residual(&mut self, some: bool) -> &mut O::Tensor {
        if some { &mut self.buffers.last } else { &mut self.x }
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
        let Self {
            embed_tokens, embed_positions, range, num_hidden_layers, layers, draft, x, buffers, ..
        } = self;
        let batch = all.batch;
        let some = logit_rows.n < all.n;

        if let Some(embed_tokens) = embed_tokens.as_ref().filter(|_| range.start == 0) {
            ops.embed(batch, embed_tokens, x)?; // [n, hidden_size]
        }
        if let Some(table) = embed_positions {
            ops.add_positions(batch, table, x)?;
        }
        for (i, layer) in range.clone().zip(layers.iter()) {
            // A draft goes on from all rows.
            let alone = i + 1 == *num_hidden_layers && some && draft.is_none();
            layer.forward(ops, all, logit_rows, alone, x, buffers, cache, states)?; // [n or num_logits, hidden_size]
        }
        if some && draft.is_some() && logit_rows.n > 0 {
            ops.gather_rows(batch, x, &mut buffers.last)?; // [num_logits, hidden_size]
        }
        Ok(())
    }

    /// Goes on from the rows of the last [`Decoder::forward`], or of the last draft, with the block that drafts: `all` are rows with the tokens
    /// that came of those; the logits of what comes behind the rows `logit_rows` of them are left in [`Decoder::logits`].
    ///
    /// # Errors
    /// Whatever the device says; [`Error::Request`] if the model was made without such a block.
    pub fn draft(
        &mut self,
        ops: &mut O,
        all: Rows<O::Batch>,
        logit_rows: Rows<O::Batch>,
        from: Work,
        cache: &mut O::KvCache,
        states: &mut O::States,
    ) -> Result<()> {
        let Self { embed_tokens, norm, lm_head, draft, x, buffers, .. } = self;
        let draft = draft
            .as_mut()
            .ok_or_else(|| Error::Request("the model was made without a block that drafts".into()))?;
        let (Some(embed_tokens), Some(norm)) = (embed_tokens, norm) else {
            return Err(Error::Request(
                "a block that drafts needs the model's embedding and its last norm".into(),
            ));
        };
        let shared = Shared { embed_tokens, norm, lm_head: lm_head.as_ref(), x };
        draft.forward(ops, all, logit_rows, from, shared, buffers, cache, states)
    }
}
