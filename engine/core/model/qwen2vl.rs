//! The text part of Qwen2-VL and Qwen2.5-VL: Qwen2, whose heads are rotated by three positions, of time, height and width. Of text all three
//! are the same, and so is the rotation. The part that reads pictures is in a file of its own (`mmproj-….gguf`) and is not computed.
//!
//! `Qwen2_5_VLForConditionalGeneration` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN2VL`.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::Result;
use crate::ops::Types;

pub type Model<T> = Decoder<T>;

/// Their shapes are Qwen2.5's.
pub const PUBLISHED: &[Published] = &[];

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
