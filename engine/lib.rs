//! qernel: a Qwen inference engine whose GPU kernels are written in Rust.
//!
//! The way of a request: [`generate::Engine::submit`] hands it to the [`scheduler`], which forms a ragged
//! [`batch::Batch`]; [`model`] runs the decoder over it through one of the two implementations of [`ops::Ops`]
//! ([`cpu`], [`cuda`]); the [`sampler`] picks the next token of every sequence; the engine turns it into
//! [`generate::Event`]s.

pub mod batch;
pub mod bench;
pub mod chat;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod dtype;
pub mod embedded;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod kv_cache;
pub mod kv_layout;
pub mod lab;
pub mod load;
pub mod model;
pub mod ops;
pub mod prefix_cache;
pub mod rope;
pub mod sampler;
pub mod scheduler;
pub mod server;
pub mod stats;
pub mod testing;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
