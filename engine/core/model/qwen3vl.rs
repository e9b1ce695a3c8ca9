//! The text part of Qwen3-VL: Qwen3, whose heads are rotated by three positions in turns; see [`super::qwen2vl`].
//!
//! `Qwen3VLForConditionalGeneration` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN3VL`.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Their shapes are Qwen3's.
pub const PUBLISHED: &[Published] = &[];

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
