//! qernel: a Qwen inference engine whose GPU kernels are written in Rust.
//!
//! [`load::Model::open`] turns a file into a [`generate::Engine`], which runs requests on a GPU ([`cuda`]) or on the CPU ([`cpu`]).
//! The way of a request through it is told in `qernel_core`, whose rooms stand here under the same names, beside those of
//! the other crates below `engine/`.

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;

pub use qernel_core::{
    Error, Result, batch, chat, config, cpu, drawing, dtype, error, formats, generate, gguf, kv_cache,
    kv_layout, model, ops, prefix_cache, rope, sampler, scheduler, stats, testing, tokenizer, weights,
};
#[cfg(feature = "cuda")]
pub use qernel_cuda as cuda;
#[cfg(feature = "lab")]
pub use qernel_lab as lab;
pub use qernel_load::{self as load, embedded};
#[cfg(feature = "cuda")]
pub use qernel_ptx as ptx;
#[cfg(feature = "server")]
pub use qernel_server as server;
