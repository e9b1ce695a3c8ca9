//! The text part of Qwen3-VL's and Qwen3-Omni's mixtures of experts: Qwen3's, whose heads are rotated by three positions in turns; see
//! [`super::qwen2vl`].
//!
//! `Qwen3VLMoeForConditionalGeneration` in transformers; `llama.cpp`'s `LLM_ARCH_QWEN3VLMOE`.

use super::Published;

pub use super::qwen3moe::{Model, build, config};

/// Their shapes are Qwen3's.
pub const PUBLISHED: &[Published] = &[];
