//! GPT-2: norms of mean and variance, learned positions instead of a rotation, an MLP without a gate, biases everywhere.
//!
//! Radford et al., Language Models are Unsupervised Multitask Learners (2019); `GPT2LMHeadModel` in transformers; `llama.cpp`'s
//! `LLM_ARCH_GPT2`.

use super::Published;
use super::build::{Build, NormKind};
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from `config.json` of `openai-community/gpt2…`.
pub const PUBLISHED: &[Published] = &[
    Published::new("gpt2-124m", [768, 3072, 12, 12, 12, 64, 50_257], true)
        .with_attention_bias()
        .with_fused_qkv(),
    Published::new("gpt2-1.5b", [1600, 6400, 48, 25, 25, 64, 50_257], true)
        .with_attention_bias()
        .with_fused_qkv(),
];

/// # Errors
/// As [`Config::of_decoder`].
pub fn config(keys: &Keys) -> Result<Config> {
    let mut config = Config::with_norm_eps(keys, "attention.layer_norm_epsilon")?;
    config.rotation.dim = 0;
    // The converter makes no other files.
    config.fused_qkv = true;
    Ok(config)
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    let features = Features {
        norm: NormKind::Layer,
        is_gated: false,
        has_biases: true,
        has_positions: true,
        ..Features::USUAL
    };
    Decoder::build(b, config, &features)
}
