//! Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts instead of an MLP, whose weights are not renormalised, and a shared expert with a gate.
//!
//! Qwen2 technical report (2024); `Qwen2MoeForCausalLM` in transformers.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, ExpertSizes, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from their `config.json`.
pub const PUBLISHED: &[Published] = &[
    Published::new("qwen1.5-moe-a2.7b", [2048, 5632, 24, 16, 16, 128, 151_936], false)
        .with_attention_bias()
        .with_experts([60, 4, 1408, 5632]),
    Published::new("qwen2-57b-a14b", [3584, 18_944, 28, 28, 4, 128, 151_936], false)
        .with_attention_bias()
        .with_experts([64, 8, 2560, 20_480]),
];

/// # Errors
/// As [`Config::of_decoder`].
pub fn config(keys: &Keys) -> Result<Config> {
    Ok(Config { experts: Some(ExpertSizes::of_decoder(keys, true)?), ..Config::of_decoder(keys)? })
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features::USUAL)
}
