//! The engine of qernel without GPUs and without a network: from the bytes of a model file to
//! the events of a request.
//!
//! The way of a request: [`engine::Engine::submit`] hands it to the [`scheduler`], which forms a ragged
//! [`batch::Batch`]; [`model`] runs the decoder over it through an implementation of [`ops::Ops`], of which [`cpu`] is one; the
//! [`sampler`] picks the next token of every sequence; the engine turns it into [`engine::Event`]s.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod batch;
pub mod chat;
pub mod checkpoints;
pub mod config;
pub mod cpu;
pub mod disk;
pub mod drawing;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod folder;
pub mod formats;
pub mod gguf;
pub mod host_checkpoints;
pub mod host_memory;
pub mod importance;
pub mod kv_cache;
pub mod kv_format;
pub mod kv_layout;
pub mod lora;
pub mod model;
pub mod ops;
pub mod perplexity;
pub mod prefix_cache;
pub mod quantize;
pub mod rope;
pub mod sampler;
pub mod scheduler;
pub mod stats;
pub mod testing;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
