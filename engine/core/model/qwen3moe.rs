//! Qwen3's mixtures of experts: Qwen3 with experts instead of an MLP, whose weights are renormalised.
//!
//! Qwen3 technical report (2025); `Qwen3MoeForCausalLM` in transformers.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, ExpertSizes, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from `config.json` of `Qwen/Qwen3-…`.
pub const PUBLISHED: &[Published] = &[
    Published::new("qwen3-30b-a3b", [2048, 6144, 48, 32, 4, 128, 151_936], false)
        .with_experts([128, 8, 768, 0]),
    Published::new("qwen3-235b-a22b", [4096, 12_288, 94, 64, 4, 128, 151_936], false)
        .with_experts([128, 8, 1536, 0]),
];

/// # Errors
/// As [`Config::of_decoder`].
pub fn config(keys: &Keys) -> Result<Config> {
    Ok(Config { experts: Some(ExpertSizes::of_decoder(keys, false)?), ..Config::of_decoder(keys)? })
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features { qk_norm: true, renormalise: true, ..Features::USUAL })
}
