//! Every GPU kernel, in every format and variant, against references in f64.
//!
//! Run with `cargo test --release --features gpu-tests`. Without a device each test says that it was skipped.
#![cfg(feature = "gpu-tests")]

mod attention;
mod elementwise;
mod harness;
mod matmul;
mod pages;
mod rms_norm;
mod rope;
mod sampler;
