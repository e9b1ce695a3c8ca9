//! GGUF metadata -> [`Config`]. The only file, with those of `model/` and `folder/`, that knows GGUF's spellings.

mod draft;
mod ranks;
mod scaling;
mod stages;

pub use draft::DraftTensors;
pub use ranks::MAX_RANKS;
pub use scaling::{RopeOverrides, ScalingType};

use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::{FromValue, Gguf};
use crate::rope::Rotation;
use std::ops::Range;

/// llama.cpp's `rope_freq_base` where a file gives none.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

// The largest values accepted, far above any model, so that later products of them cannot overflow a u64.
/// The most values of a row.
pub const MAX_WIDTH: u64 = 1 << 20;
const MAX_LAYERS: u64 = 1 << 12;
/// The most heads of a layer.
pub const MAX_HEADS: u64 = 1 << 12;
// What a GPU's router takes; published models have up to 512, of which a token goes to 10.
const MAX_EXPERTS: u64 = 1 << 10;
const MAX_EXPERTS_PER_TOK: u64 = 1 << 5;
const MAX_VOCAB_SIZE: u64 = 1 << 24;
const MAX_CONTEXT: u64 = 1 << 24;

/// The sizes of a mixture of experts, in Hugging Face's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExpertSizes {
    pub num_experts: usize,
    /// Experts that a token goes to.
    pub num_experts_per_tok: usize,
    /// Values between the projections of one expert.
    pub moe_intermediate_size: usize,
    /// The same of the expert that every token goes to; 0 where there is none.
    pub shared_expert_intermediate_size: usize,
}

/// The sizes of layers of linear attention, in Hugging Face's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LinearSizes {
    /// Heads of Q and of K.
    pub linear_num_key_heads: usize,
    /// Heads of V, a multiple of those of K.
    pub linear_num_value_heads: usize,
    /// Values of one head of Q and of K.
    pub linear_key_head_dim: usize,
    /// Values of one head of V.
    pub linear_value_head_dim: usize,
    /// Tokens that the causal convolution sees: the row's own and those before it.
    pub linear_conv_kernel_dim: usize,
}

impl LinearSizes {
    /// Values of one row of Q, or of K.
    pub fn key_size(&self) -> usize {
        self.linear_num_key_heads * self.linear_key_head_dim
    }

    /// Values of one row of V.
    pub fn value_size(&self) -> usize {
        self.linear_num_value_heads * self.linear_value_head_dim
    }

    /// Values of one row of Q, K and V, which the convolution goes over.
    pub fn channels(&self) -> usize {
        2 * self.key_size() + self.value_size()
    }

    /// Values that a layer keeps of the convolution's inputs: `[linear_conv_kernel_dim - 1, channels]`.
    pub fn conv_state(&self) -> usize {
        (self.linear_conv_kernel_dim - 1) * self.channels()
    }

    /// Values of the recurrent state: `[linear_num_value_heads, linear_key_head_dim, linear_value_head_dim]`.
    pub fn recurrent_state(&self) -> usize {
        self.value_size() * self.linear_key_head_dim
    }

    /// Values of a slot: what is kept of the convolution, then the recurrent state.
    pub fn slot_values(&self) -> usize {
        self.conv_state().saturating_add(self.recurrent_state())
    }
}

/// The shape of a decoder, in Hugging Face's names.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Config {
    /// `general.architecture`, one of [`crate::model::ARCHITECTURES`].
    pub architecture: String,
    /// `general.name`, or the architecture where the file has none.
    pub name: String,
    /// Rows of the embedding and of the head; at least the number of tokens in the vocabulary.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Values of one head of Q, K and V; even.
    pub head_dim: usize,
    #[serde(flatten)]
    pub rotation: Rotation,
    /// What norms add under the root, those of mean and variance too.
    pub rms_norm_eps: f32,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Q, K and V have a bias.
    pub attention_bias: bool,
    /// The file has the matrices of Q, K and V in one tensor.
    pub fused_qkv: bool,
    /// `None` where the MLP is one for all tokens.
    #[serde(flatten)]
    pub experts: Option<ExpertSizes>,
    /// `None` where all layers are of attention.
    #[serde(flatten)]
    pub linear: Option<LinearSizes>,
    /// The layers of linear attention, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub linear_layers: Vec<usize>,
    /// Layers behind the last one that draft further tokens. They are not computed but for [`Config::draft`].
    #[serde(skip_serializing_if = "is_zero")]
    pub num_nextn_predict_layers: usize,
    /// Where the first of those layers is wanted: the tensors of its own that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<DraftTensors>,
    /// Ranks that heads and MLPs are shared out over, of which the sizes here are one's ([`Config::of_rank`]); 1: the whole model.
    #[serde(skip)]
    pub tensor_parallel_size: usize,
    /// The layers that this device has, where others have the others ([`Config::of_stage`]); `None`: all.
    #[serde(skip)]
    pub stage: Option<Range<usize>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl Config {
    /// The metadata that decoders of all architectures have.
    ///
    /// # Errors
    /// [`Error::Model`] for a feature that is not implemented, and for values that no decoder can have; [`Error::Gguf`] for a value
    /// that is missing or has the wrong type.
    pub fn of_decoder(keys: &Keys) -> Result<Self> {
        Self::with_norm_eps(keys, "attention.layer_norm_rms_epsilon")
    }

    /// The same where `eps_key` is the key of [`Config::rms_norm_eps`].
    ///
    /// # Errors
    /// As [`Config::of_decoder`].
    pub fn with_norm_eps(keys: &Keys, eps_key: &str) -> Result<Self> {
        let gguf = keys.gguf;
        let hidden_size = keys.size("embedding_length", MAX_WIDTH)?;
        let num_attention_heads = keys.size("attention.head_count", MAX_HEADS)?;
        let num_key_value_heads =
            keys.optional_size("attention.head_count_kv", MAX_HEADS)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(Error::Model(format!(
                "{num_attention_heads} attention heads cannot be shared out over {num_key_value_heads} KV heads; the \
                 second must divide the first"
            )));
        }
        let head_dim = head_dim(keys, hidden_size, num_attention_heads)?;
        refuse_unimplemented(keys)?;

        let rope_theta = keys.get::<f32>("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA);
        if !(rope_theta.is_finite() && rope_theta >= 1.0) {
            return Err(keys.invalid("rope.freq_base", rope_theta, "a finite number of at least 1"));
        }
        let rotary_dim = keys.optional_size("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            let expected = format!("an even number up to {head_dim}, the size of a head");
            return Err(keys.invalid("rope.dimension_count", rotary_dim, &expected));
        }
        let rms_norm_eps = keys.require::<f32>(eps_key)?;
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(keys.invalid(eps_key, rms_norm_eps, "a number between 0 and 1"));
        }

        let max_position_embeddings = keys.size("context_length", MAX_CONTEXT)?;
        let scaling = scaling::of(keys, max_position_embeddings)?;

        Ok(Self {
            architecture: keys.architecture.to_owned(),
            name: gguf.get_or_warn::<&str>("general.name").unwrap_or(keys.architecture).to_owned(),
            vocab_size: vocab_size(gguf)?,
            hidden_size,
            intermediate_size: keys.intermediate_size()?,
            num_hidden_layers: keys.size("block_count", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rotation: Rotation { scaling, ..Rotation::new(rope_theta, rotary_dim) },
            rms_norm_eps,
            max_position_embeddings: scaling::context(scaling, max_position_embeddings)
                .min(MAX_CONTEXT as usize),
            tie_word_embeddings: gguf.tensor("output.weight").is_none(),
            attention_bias: has_tensor(gguf, &[".attn_q.bias", ".attn_qkv.bias"]),
            fused_qkv: has_tensor(gguf, &[".attn_qkv.weight"]),
            experts: None,
            linear: None,
            linear_layers: Vec::new(),
            num_nextn_predict_layers: 0,
            draft: None,
            tensor_parallel_size: 1,
            stage: None,
        })
    }

    /// Values between the projections of the MLP that every token goes through: `intermediate_size`, or of a mixture of experts the shared
    /// one's; 0 where there is none.
    pub fn dense_size(&self) -> usize {
        self.experts.map_or(self.intermediate_size, |experts| experts.shared_expert_intermediate_size)
    }

    /// Values of one row of Q: `num_attention_heads * head_dim`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Values of one row of K, or of V: `num_key_value_heads * head_dim`.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl ExpertSizes {
    /// The metadata that mixtures of experts have.
    ///
    /// # Errors
    /// As [`Config::of_decoder`].
    pub fn of_decoder(keys: &Keys, has_shared: bool) -> Result<Self> {
        let num_experts = keys.size("expert_count", MAX_EXPERTS)?;
        let most = MAX_EXPERTS_PER_TOK.min(num_experts as u64);
        let num_experts_per_tok = keys.size("expert_used_count", most)?;
        // Files of early converters lack both sizes; these are llama.cpp's defaults.
        let of_mlp = keys.intermediate_size()?;
        let size =
            |key: &str, default| Ok::<_, Error>(keys.optional_size(key, MAX_WIDTH)?.unwrap_or(default));
        Ok(Self {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size: size("expert_feed_forward_length", (of_mlp / num_experts_per_tok).max(1))?,
            shared_expert_intermediate_size: match has_shared {
                true => size("expert_shared_feed_forward_length", of_mlp)?,
                false => 0,
            },
        })
    }
}

/// The metadata of an architecture: keys are given without its prefix.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub gguf: &'a Gguf,
    /// `general.architecture`
    pub architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The metadata of the file's architecture.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the file names none.
    pub fn new(gguf: &'a Gguf) -> Result<Self> {
        Ok(Self { gguf, architecture: gguf.require("general.architecture")? })
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The value of a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it has another type.
    pub fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>> {
        self.gguf.get(&self.full(key))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or has another type.
    pub fn require<T: FromValue<'a>>(&self, key: &str) -> Result<T> {
        self.gguf.require(&self.full(key))
    }

    /// A size that is there, from 1 to `max`.
    ///
    /// # Errors
    /// [`Error::Model`] if it is out of range; as [`Keys::require`].
    pub fn size(&self, key: &str, max: u64) -> Result<usize> {
        let value = self.require(key)?;
        self.check_size(key, value, max)
    }

    /// Values between the projections of the MLP; a mixture of experts has none, and files of some leave the key out.
    fn intermediate_size(&self) -> Result<usize> {
        const KEY: &str = "feed_forward_length";
        let has_experts = self.get::<u64>("expert_count")?.is_some_and(|count| count > 0);
        match self.get::<u64>(KEY)? {
            None | Some(0) if has_experts => Ok(0),
            _ => self.size(KEY, MAX_WIDTH),
        }
    }

    /// The `count` values of a small tensor of floats that a shape needs, if there is one. Its name is whole, without the architecture.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another shape or no floats; as [`crate::gguf::Tensor::data`].
    pub fn floats(&self, name: &str, count: usize) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let format = MatrixFormat::from_ggml(tensor.ggml_type()).filter(|format| format.float().is_some());
        let (Some(format), true) = (format, tensor.shape() == [count as u64]) else {
            let (found, of_type) = (tensor.shape(), tensor.ggml_type());
            return Err(Error::Model(format!("{name} is {of_type} {found:?}; expected floats [{count}]")));
        };
        let mut values = vec![0.0; count];
        format.decode(&tensor.data()?, &mut values);
        Ok(Some(values))
    }

    /// The `count` values of a tensor of floats that is there, whatever its dimensions.
    ///
    /// # Errors
    /// As [`Keys::floats`].
    pub fn matrix(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        let tensor = self.gguf.tensor(name);
        let missing = || Error::Model(format!("there is no tensor {name} of {count} floats"));
        let tensor = tensor.filter(|tensor| tensor.num_values() == count as u64).ok_or_else(missing)?;
        let format = MatrixFormat::from_ggml(tensor.ggml_type()).ok_or_else(missing)?;
        let mut values = vec![0.0; count];
        format.decode(&tensor.data()?, &mut values);
        Ok(values)
    }

    /// A size that may be there, from 1 to `max`.
    ///
    /// # Errors
    /// As [`Keys::size`].
    pub fn optional_size(&self, key: &str, max: u64) -> Result<Option<usize>> {
        self.get(key)?.map(|value| self.check_size(key, value, max)).transpose()
    }

    fn check_size(&self, key: &str, value: u64, max: u64) -> Result<usize> {
        let size = usize::try_from(value).ok().filter(|_| (1..=max).contains(&value));
        size.ok_or_else(|| self.invalid(key, value, &format!("1 to {max}")))
    }

    /// The error for a value that no decoder can have.
    pub fn invalid(&self, key: &str, found: impl std::fmt::Display, expected: &str) -> Error {
        Error::Model(format!("metadata `{}` is {found}; expected {expected}", self.full(key)))
    }
}

/// Whether the name of a tensor ends in one of these.
fn has_tensor(gguf: &Gguf, ends: &[&str]) -> bool {
    gguf.tensors().any(|tensor| ends.iter().any(|end| tensor.name().ends_with(end)))
}

/// Values of one head: what the file says, or the hidden size shared out over the heads.
fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_attention_heads: usize) -> Result<usize> {
    let head_dim = match keys.optional_size("attention.key_length", MAX_WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            return Err(Error::Model(format!(
                "a hidden size of {hidden_size} cannot be shared out over {num_attention_heads} attention heads"
            )));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(Error::Model(format!(
            "heads have {head_dim} values; rotary embedding needs an even number"
        )));
    }
    if num_attention_heads as u64 * head_dim as u64 > MAX_WIDTH {
        return Err(Error::Model(format!(
            "{num_attention_heads} attention heads of {head_dim} values are too many; at most {MAX_WIDTH} in all"
        )));
    }
    // V's heads could have a size of their own.
    if let Some(size) = keys.optional_size("attention.value_length", MAX_WIDTH)?
        && size != head_dim
    {
        let expected = format!("{head_dim}, the size of a head; others are not implemented");
        return Err(keys.invalid("attention.value_length", size, &expected));
    }
    Ok(head_dim)
}

/// Numbers that other architectures of llama.cpp compute with, each with the values that change nothing (0 often stands for "none").
const UNIMPLEMENTED: [(&str, &[f32]); 7] = [
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[1.0, 0.0]),
    ("embedding_scale", &[1.0, 0.0]),
    ("residual_scale", &[1.0, 0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
];

/// Refuses by name what would change the result and is not implemented.
fn refuse_unimplemented(keys: &Keys<'_>) -> Result<()> {
    for (key, neutral) in UNIMPLEMENTED {
        if let Some(found) = keys.get::<f32>(key)?.filter(|found| !neutral.contains(found)) {
            let expected =
                format!("{}, as anything else changes the answers and is not implemented", neutral[0]);
            return Err(keys.invalid(key, found, &expected));
        }
    }
    if keys.get::<bool>("attention.causal")? == Some(false) {
        return Err(Error::Model("the file is an embedding model (its attention is not causal)".to_owned()));
    }
    if let (Some(window), Some(context)) =
        (keys.get::<u64>("attention.sliding_window")?, keys.get::<u64>("context_length")?)
        && (1..context).contains(&window)
    {
        return Err(Error::Model(format!(
            "the file asks for a sliding attention window of {window} tokens, which is not implemented"
        )));
    }
    Ok(())
}

/// Rows of the embedding, or the number of tokens where there is no embedding.
fn vocab_size(gguf: &Gguf) -> Result<usize> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let tokens = match gguf.value(TOKENS) {
        Some(crate::gguf::Value::Array(array)) => Some(array.len() as u64),
        Some(value) => {
            return Err(Error::Gguf(format!(
                "metadata `{TOKENS}`: expected array of string, found {}",
                value.value_type()
            )));
        }
        None => None,
    };
    // Shape checks belong to the weights; a vector here is an error there.
    let rows = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.shape().first().copied());
    let vocab_size = match (rows, tokens) {
        (Some(rows), Some(tokens)) if tokens > rows => {
            return Err(Error::Model(format!(
                "the vocabulary has {tokens} tokens, but the embedding `token_embd.weight` only {rows} rows"
            )));
        }
        (Some(rows), _) => rows,
        (None, Some(tokens)) => tokens,
        (None, None) => {
            return Err(Error::Model(format!(
                "the file has neither an embedding (`token_embd.weight`) nor a vocabulary (`{TOKENS}`)"
            )));
        }
    };
    usize::try_from(vocab_size).ok().filter(|_| (1..=MAX_VOCAB_SIZE).contains(&vocab_size)).ok_or_else(|| {
        Error::Model(format!("the vocabulary has {vocab_size} tokens; expected 1 to {MAX_VOCAB_SIZE}"))
    })
}
