//! The architectures, a line each: what `general.architecture` calls one is a file here, which has its metadata, its tensors and
//! the parts of its layers.

use super::build::{Build, plan};
use super::delta_net::usual_linear_layers;
use crate::config::{Config, ExpertSizes, Keys, LinearSizes};
use crate::error::{Error, Result, nearest};
use crate::gguf::Gguf;
use crate::ops::{Ops, Rows, Types, Work};
use crate::rope::Rotation;
use crate::weights::Weights;

/// The shape of a published model, for timings.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// What `--like` calls it.
    pub name: &'static str,
    /// hidden_size, intermediate_size, layers, attention heads, key-value heads, head_dim, vocab_size.
    sizes: [usize; 7],
    tie_word_embeddings: bool,
    attention_bias: bool,
    fused_qkv: bool,
    experts: Option<ExpertSizes>,
    linear: Option<LinearSizes>,
}

impl Published {
    /// `sizes` are hidden_size, intermediate_size, layers, attention heads, key-value heads, head_dim and vocab_size.
    pub const fn new(name: &'static str, sizes: [usize; 7], tie_word_embeddings: bool) -> Self {
        Self {
            name,
            sizes,
            tie_word_embeddings,
            attention_bias: false,
            fused_qkv: false,
            experts: None,
            linear: None,
        }
    }

    /// The same with biases of Q, K and V.
    pub const fn with_attention_bias(self) -> Self {
        Self { attention_bias: true, ..self }
    }

    /// The same with Q, K and V in one tensor of the file.
    pub const fn with_fused_qkv(self) -> Self {
        Self { fused_qkv: true, ..self }
    }

    /// The same with experts: their number, to how many a token goes, the intermediate_size of one and of the shared one, or 0.
    pub const fn with_experts(self, [num_experts, num_experts_per_tok, size, shared]: [usize; 4]) -> Self {
        let experts = ExpertSizes {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size: size,
            shared_expert_intermediate_size: shared,
        };
        Self { experts: Some(experts), ..self }
    }

    /// The same with layers of linear attention, but for every fourth: their heads of K and of V, of 128 values.
    pub const fn with_linear_layers(self, [key_heads, value_heads]: [usize; 2]) -> Self {
        let linear = LinearSizes {
            linear_num_key_heads: key_heads,
            linear_num_value_heads: value_heads,
            linear_key_head_dim: 128,
            linear_value_head_dim: 128,
            linear_conv_kernel_dim: 4,
        };
        Self { linear: Some(linear), ..self }
    }

    fn config(&self, architecture: &str) -> Config {
        let [hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size] = self.sizes;
        Config {
            architecture: architecture.into(),
            name: self.name.into(),
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rotation: match self.linear {
                None => Rotation::new(1e6, head_dim),
                Some(_) => Rotation::new(1e7, head_dim / 4),
            },
            rms_norm_eps: 1e-6,
            max_position_embeddings: 32_768,
            tie_word_embeddings: self.tie_word_embeddings,
            attention_bias: self.attention_bias,
            fused_qkv: self.fused_qkv,
            experts: self.experts,
            linear: self.linear,
            linear_layers: self.linear.map_or(Vec::new(), |_| usual_linear_layers(layers)),
            num_nextn_predict_layers: 0,
            draft: None,
            tensor_parallel_size: 1,
            stage: None,
        }
    }
}

/// Makes the registry of the list of architectures, each the name of a module.
macro_rules! architectures {
    ($($architecture:ident)*) => {
        /// What `general.architecture` may be.
        pub const ARCHITECTURES: &[&str] = &[$(stringify!($architecture)),*];

        /// A model of any architecture.
        #[allow(non_camel_case_types, reason = "the spelling of files")]
        pub enum Model<T: Types> {
            $($architecture(super::$architecture::Model<T>)),*
        }

        impl<T: Types> Model<T> {
            /// Asks `b` for everything that the model of `config` needs.
            ///
            /// # Errors
            /// [`Error::Model`] for an unknown architecture; what `b` says.
            pub fn build<B: Build<T>>(b: &mut B, config: &Config) -> Result<Self> {
                match config.architecture.as_str() {
                    $(stringify!($architecture) => super::$architecture::build(b, config).map(Self::$architecture),)*
                    other => Err(unknown(other)),
                }
            }
        }

        impl<O: Ops> Model<O> {
            /// Logits of the last forward pass: its first `num_logits` rows of `[max_num_logits, vocab_size]` are valid.
            pub fn logits(&mut self) -> &mut O::Tensor {
                match self {
                    $(Self::$architecture(model) => model.logits()),*
                }
            }

            /// Tells the device each part once all is loaded ([`Ops::bound_mlp`] and its like).
            ///
            /// # Errors
            /// [`Error::Range`] from the device.
            pub fn bound(&self, ops: &mut O) -> Result<()> {
                match self {
                    $(Self::$architecture(model) => model.bound(ops)),*
                }
            }

            /// Computes the rows `all` of a batch, writes their state to `cache` and `states`, and leaves the logits of the rows `logit_rows` of
            /// them in [`Model::logits`].
            ///
            /// # Errors
            /// Whatever the device says; the state of this batch's sequences is then undefined.
            pub fn forward(
                &mut self,
                ops: &mut O,
                all: Rows<O::Batch>,
                logit_rows: Rows<O::Batch>,
                cache: &mut O::KvCache,
                states: &mut O::States,
            ) -> Result<()> {
                match self {
                    $(Self::$architecture(model) => model.forward(ops, all, logit_rows, cache, states)),*
                }
            }
        }

        impl<O: Ops> Model<O> {
            /// As [`Model::forward`] of the block that drafts: from what it goes on, `from` says.
            ///
            /// # Errors
            /// As [`Model::forward`]; [`Error::Request`] if the model was made without such a block.
            pub fn draft(
                &mut self,
                ops: &mut O,
                all: Rows<O::Batch>,
                logit_rows: Rows<O::Batch>,
                from: Work,
                cache: &mut O::KvCache,
                states: &mut O::States,
            ) -> Result<()> {
                match self {
                    $(Self::$architecture(model) => model.draft(ops, all, logit_rows, from, cache, states)),*
                }
            }

            /// As [`Model::forward`] without the head: what that needs is left in [`Model::residual`].
            ///
            /// # Errors
            /// As [`Model::forward`].
            pub fn layers(
                &mut self,
                ops: &mut O,
                all: Rows<O::Batch>,
                logit_rows: Rows<O::Batch>,
                cache: &mut O::KvCache,
                states: &mut O::States,
            ) -> Result<()> {
                match self {
                    $(Self::$architecture(model) => model.layers(ops, all, logit_rows, cache, states)),*
                }
            }

            /// The residual stream before and behind the layers that this device has; of the rows that need logits, if `some` do behind the last.
            pub fn residual(&mut self, some: bool) -> &mut O::Tensor {
                match self {
                    $(Self::$architecture(model) => model.residual(some)),*
                }
            }
        }

        fn config_of(keys: &Keys) -> Result<Config> {
            match keys.architecture {
                $(stringify!($architecture) => super::$architecture::config(keys),)*
                other => Err(unknown(other)),
            }
        }

        /// Every published model that an architecture's file names, with its architecture.
        fn published() -> impl Iterator<Item = (&'static str, &'static Published)> {
            std::iter::empty()$(.chain(
                super::$architecture::PUBLISHED.iter().map(|published| (stringify!($architecture), published))
            ))*
        }
    };
}

architectures! { qwen2 qwen3 qwen2moe qwen3moe qwen35 qwen35moe qwen3next qwen2vl qwen3vl qwen3vlmoe llama gpt2 }

fn unknown(architecture: &str) -> Error {
    let nearest = nearest(architecture, ARCHITECTURES.iter().copied())
        .map_or(String::new(), |name| format!("; the nearest by name is `{name}`"));
    Error::Model(format!(
        "the file's architecture is `{architecture}`; those that are implemented are {}{nearest}",
        ARCHITECTURES.join(", ")
    ))
}

/// The models that `--like` knows.
pub fn published_names() -> Vec<&'static str> {
    published().map(|(_, published)| published.name).collect()
}

/// The shape of a published model.
///
/// # Errors
/// [`Error::Request`] that lists what is known.
pub fn published_config(name: &str) -> Result<Config> {
    let found = published().find(|(_, published)| published.name == name);
    found.map(|(architecture, published)| published.config(architecture)).ok_or_else(|| {
        Error::Request(format!(
            "--like {name}: the models are {}; --model FILE takes the shape of any other",
            published_names().join(", ")
        ))
    })
}

impl Config {
    /// Reads the metadata of a model. A file without tensors (a vocabulary) gives the shape its metadata claims.
    ///
    /// # Errors
    /// [`Error::Model`] for another architecture, for a feature that is not implemented, and for values that no
    /// decoder can have; [`Error::Gguf`] for a value that is missing or has the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        config_of(&Keys::new(gguf)?)
    }
}

impl Weights {
    /// Finds every tensor that the model of `config` needs.
    ///
    /// # Errors
    /// As [`Weights::find`]; [`Error::Model`] if the file has a block that drafts alone.
    pub fn from_gguf(gguf: &Gguf, config: &Config) -> Result<Self> {
        if config.is_block_alone(gguf) {
            return Err(Error::Model(
                "the file has a block that drafts tokens (MTP), not the model that it drafts for: take --model for the model, and for this one \
                 --model-draft with --spec-type mtp"
                    .into(),
            ));
        }
        Self::find(gguf, &plan(config)?.tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_told_the_nearest() {
        for (name, expected) in [
            ("qwen4exp", "qwen3next"),
            ("qwen4vlmoe", "qwen3vlmoe"),
            ("qwen36", "qwen3"),
            ("Llama", "llama"),
            ("gpt3", "gpt2"),
        ] {
            let message = unknown(name).to_string();
            assert!(message.contains(&format!("the nearest by name is `{expected}`")), "{message}");
        }
        assert!(!unknown("phi3").to_string().contains("nearest"));
    }

    #[test]
    fn published_models_can_be_planned() {
        for name in published_names() {
            let config = published_config(name).unwrap();
            assert!(plan(&config).unwrap().tensors.len() > 9 * config.num_hidden_layers, "{name}");
        }
        assert!(published_config("gpt-5").unwrap_err().to_string().contains("qwen2.5-7b"));
    }
}
