//! (being built)

pub mod qwen2;
