//! Everything that needs no GPU and no process of its own, as one program: each test program links the engine anew. A module
//! is a subject; its first lines say what it proves. `cargo test --release --test it scheduler` runs one of them.

mod bench;
mod broken;
mod cli;
#[path = "../common/compare.rs"]
mod compare;
mod customs;
mod dialects;
mod draft_sources;
mod drafts;
mod elsewhere;
mod embed;
mod engine;
mod families;
mod folder;
mod formats;
mod forward;
mod fuzz;
#[allow(dead_code, reason = "the devices' half")]
#[path = "../common/golden_formats.rs"]
mod golden_formats;
mod haiku;
mod host_checkpoints;
mod hub;
#[allow(dead_code, reason = "the half of those that prove what goes wrong")]
#[path = "../common/hub_server.rs"]
mod hub_server;
mod hybrids;
mod lab;
mod lab_tools;
mod library;
#[path = "../common/life.rs"]
mod life;
mod lora;
mod memory;
mod model_file;
mod offload;
mod outputs;
mod pages;
mod program;
mod quantize;
mod readme;
mod rooms;
mod sampler;
mod scheduler;
mod settings;
mod sidecar;
mod templates;
mod tokenizer;
