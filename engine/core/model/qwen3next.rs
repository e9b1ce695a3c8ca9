//! Qwen3-Next and Qwen3-Coder-Next: the first hybrids, with experts. Heads of V are in another order than in files of Qwen3.5, and β and α are
//! in one tensor.
//!
//! `Qwen3NextForCausalLM` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN3NEXT`.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, ExpertSizes, Keys};
use crate::error::Result;
use crate::ops::Types;
use crate::ops::hybrid::ValueHeads;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from their `config.json`.
pub const PUBLISHED: &[Published] =
    &[Published::new("qwen3-next-80b-a3b", [2048, 5120, 48, 16, 2, 256, 151_936], false)
        .with_experts([512, 10, 512, 512])
        .with_linear_layers([16, 32])];

/// # Errors
/// As [`Config::of_hybrid`].
pub fn config(keys: &Keys) -> Result<Config> {
    Ok(Config { experts: Some(ExpertSizes::of_decoder(keys, true)?), ..Config::of_hybrid(keys)? })
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features { value_heads: ValueHeads::Grouped, ..Features::HYBRID })
}
