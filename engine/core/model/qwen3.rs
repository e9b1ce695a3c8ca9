//! Qwen3: heads of Q and K are normed before they are rotated, there are no biases, and the heads need not make up the hidden size.
//!
//! Qwen3 technical report (2025); `Qwen3ForCausalLM` in transformers.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from `config.json` of `Qwen/Qwen3-…`.
pub const PUBLISHED: &[Published] = &[
    Published::new("qwen3-0.6b", [1024, 3072, 28, 16, 8, 128, 151_936], true),
    Published::new("qwen3-1.7b", [2048, 6144, 28, 16, 8, 128, 151_936], true),
    Published::new("qwen3-4b", [2560, 9728, 36, 32, 8, 128, 151_936], true),
    Published::new("qwen3-8b", [4096, 12_288, 36, 32, 8, 128, 151_936], false),
    Published::new("qwen3-14b", [5120, 17_408, 40, 40, 8, 128, 151_936], false),
    Published::new("qwen3-32b", [5120, 25_600, 64, 64, 8, 128, 151_936], false),
];

/// # Errors
/// As [`Config::of_decoder`].
pub fn config(keys: &Keys) -> Result<Config> {
    Config::of_decoder(keys)
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features { qk_norm: true, ..Features::USUAL })
}
