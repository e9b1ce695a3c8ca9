//! Qwen3.5, and Qwen3.6 and 3.8 of 27 billion weights: three of four layers are of linear attention by the gated delta rule, the others of
//! attention with a gate, of whose heads a quarter is rotated.
//!
//! `Qwen3_5ForCausalLM` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN35`; docs/hybrids.md.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from their `config.json`.
pub const PUBLISHED: &[Published] = &[
    Published::new("qwen3.5-0.8b", [1024, 3584, 24, 8, 2, 256, 248_320], true).with_linear_layers([16, 16]),
    Published::new("qwen3.5-2b", [2048, 6144, 24, 8, 2, 256, 248_320], true).with_linear_layers([16, 16]),
    Published::new("qwen3.5-4b", [2560, 9216, 32, 16, 4, 256, 248_320], true).with_linear_layers([16, 32]),
    Published::new("qwen3.5-9b", [4096, 12_288, 32, 16, 4, 256, 248_320], false).with_linear_layers([16, 32]),
    Published::new("qwen3.5-27b", [5120, 17_408, 64, 24, 4, 256, 248_320], false)
        .with_linear_layers([16, 48]),
];

/// # Errors
/// As [`Config::of_hybrid`].
pub fn config(keys: &Keys) -> Result<Config> {
    Config::of_hybrid(keys)
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features::HYBRID)
}
