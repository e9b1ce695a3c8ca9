//! Qwen2 and Qwen2.5: grouped-query attention with biases of Q, K and V, SwiGLU, RMSNorm.
//!
//! Qwen2 technical report (2024); `Qwen2ForCausalLM` in transformers.

use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from `config.json` of `Qwen/Qwen2.5-…-Instruct`.
pub const PUBLISHED: &[super::Published] = &[
    super::Published::new("qwen2.5-0.5b", [896, 4864, 24, 14, 2, 64, 151_936], true).with_attention_bias(),
    super::Published::new("qwen2.5-1.5b", [1536, 8960, 28, 12, 2, 128, 151_936], true).with_attention_bias(),
    super::Published::new("qwen2.5-7b", [3584, 18_944, 28, 28, 4, 128, 152_064], false).with_attention_bias(),
];

/// # Errors
/// As [`Config::of_decoder`].
pub fn config(keys: &Keys) -> Result<Config> {
    Config::of_decoder(keys)
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features::USUAL)
}
