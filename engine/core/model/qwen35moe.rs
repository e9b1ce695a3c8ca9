//! Qwen3.5's and 3.6's mixtures of experts: Qwen3.5 with experts instead of an MLP, whose weights are renormalised, and a shared expert with
//! a gate.
//!
//! `Qwen3_5MoeForCausalLM` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN35MOE`.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, ExpertSizes, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from their `config.json`.
pub const PUBLISHED: &[Published] = &[
    Published::new("qwen3.5-35b-a3b", [2048, 0, 40, 16, 2, 256, 248_320], false)
        .with_experts([256, 8, 512, 512])
        .with_linear_layers([16, 32]),
    Published::new("qwen3.5-122b-a10b", [3072, 0, 48, 32, 2, 256, 248_320], false)
        .with_experts([256, 8, 1024, 1024])
        .with_linear_layers([16, 64]),
];

/// # Errors
/// As [`Config::of_hybrid`].
pub fn config(keys: &Keys) -> Result<Config> {
    Ok(Config { experts: Some(ExpertSizes::of_decoder(keys, true)?), ..Config::of_hybrid(keys)? })
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features::HYBRID)
}
