//! qernel: Qwen, Llama and their relatives from GGUF files, on NVIDIA GPUs with kernels written in Rust, and on CPUs.
//!
//! ```
//! use qernel::Model;
//!
//! # fn main() -> qernel::Result<()> {
//! # let path = "models/haiku/haiku.gguf";
//! let mut model = Model::open(path)?;
//! for event in model.chat("Write a haiku about the sea with the word forty-two") {
//!     print!("{}", event?.text());
//! }
//! # Ok(()) }
//! ```
//!
//! [`Model`] opens a file, with [`ModelOptions`] where the defaults will not do: [`generate`](Model::generate) and
//! [`chat`](Model::chat) answer with an iterator of [`Event`]s, of text or of tokens, or at once with a [`Completion`];
//! [`logits`](Model::logits), [`encode`](Model::encode) and [`decode`](Model::decode) are what their names say. For many
//! requests at once there is the [`Engine`] below it, and with the feature `server` an HTTP [`server`] over that.
//!
//! # In another project
//!
//! ```toml
//! [dependencies]
//! qernel = { git = "…", default-features = false }
//! ```
//!
//! computes on the CPU and needs Rust alone. The features, all on by default, because the program wants them:
//!
//! | feature | |
//! | --- | --- |
//! | `cuda` | NVIDIA GPUs. `cust`'s build script aborts where there is no CUDA toolkit, unless the project has a line in its `[patch.crates-io]`: docs/rust-cuda.md |
//! | `server` | the HTTP server |
//! | `hub` | models by name, over HTTPS, for the program |
//! | `cli`, `lab` | the program, and its laboratory of kernels |
//!
//! What is documented here is the library. The other modules are the engine's own rooms, public for its tests and tools;
//! they change without notice.
#![warn(missing_docs)]
// Printing panics where nobody takes what is printed; `cli::output` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod library;

pub use library::{Conversation, Generation, GenerationBuilder, Logits, Model, ModelOptions, Prompt};
pub use qernel_core::chat::Message;
pub use qernel_core::engine::{
    Completion, Engine, Event, FinishReason, Request, Timings, TokenConstraint, Usage,
};
pub use qernel_core::error::{Error, Result};
pub use qernel_core::sampler::{Logprobs, SamplingParams};
pub use qernel_core::scheduler::SequenceId;
pub use qernel_load::DeviceChoice as Device;
#[cfg(feature = "server")]
pub use qernel_server as server;

#[doc(hidden)]
pub use qernel_core::{
    batch, chat, checkpoints, config, cpu, disk, drawing, dtype, engine, error, folder, formats, gguf,
    host_memory, importance, kv_cache, kv_format, kv_layout, lora, model, ops, perplexity, prefix_cache,
    quantize, rope, sampler, scheduler, stats, testing, tokenizer, weights,
};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use qernel_cuda as cuda;
#[cfg(feature = "hub")]
#[doc(hidden)]
pub use qernel_hub as hub;
#[cfg(feature = "lab")]
#[doc(hidden)]
pub use qernel_lab as lab;
#[doc(hidden)]
pub use qernel_load::{self as load, embedded};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use qernel_ptx as ptx;
