//! (being built)
pub mod logits;
