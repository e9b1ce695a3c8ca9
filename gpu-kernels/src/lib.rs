//! The engine's GPU kernels: one operation a file, all its variants in it.
//!
//! Files have the names of the operations (`engine/core/ops.rs`), functions those of variants, and entries are named
//! `op_dtype_variant`. An operation's kernels share a struct of arguments, which says what is computed. The variant `plain` comes
//! first: it takes every shape and is what the faster ones below it are compared with. A kernel's documentation states the grid and block that it needs; block and tile sizes are constants here, which
//! the launch wrappers read.
//!
//! Matrices are row-major. Indices of rows and columns are u32; offsets of elements are 64 bits, since a
//! vocabulary times a hidden size comes near 2^32.
#![no_std]
// Kernels index their arrays: an iterator would put them into local memory (see `grid::repeat`).
#![allow(clippy::needless_range_loop)]

#[cfg(feature = "others")]
pub mod add;
#[cfg(feature = "others")]
pub mod add_bias;
#[cfg(feature = "others")]
pub mod add_positions;
#[cfg(feature = "others")]
pub mod add_ranks;
#[cfg(feature = "others")]
pub mod argmax;
#[cfg(feature = "attention")]
pub mod attention;
#[cfg(feature = "others")]
pub mod bias_gelu;
pub mod bias_rope_kv;
pub mod blocks;
#[cfg(feature = "others")]
pub mod causal_conv;
mod codes;
#[cfg(feature = "others")]
pub mod convert;
#[cfg(feature = "others")]
pub mod decode;
#[cfg(feature = "others")]
pub mod delta_rule;
#[cfg(feature = "others")]
pub mod delta_step;
pub mod embed;
#[cfg(feature = "experts")]
pub mod experts;
#[cfg(feature = "experts")]
pub mod experts_in;
#[cfg(feature = "experts")]
pub mod experts_out;
pub mod fused;
#[cfg(feature = "others")]
pub mod gate_rows;
#[cfg(feature = "others")]
pub mod gated_matmul;
#[cfg(feature = "others")]
pub mod gated_norm;
#[cfg(feature = "others")]
pub mod gather_ranks;
#[cfg(feature = "others")]
pub mod gather_rows;
#[cfg(feature = "others")]
pub mod layer_norm;
#[cfg(feature = "others")]
pub mod lora_add;
#[cfg(feature = "matmul")]
pub mod matmul;
#[cfg(feature = "others")]
pub mod norm_route;
#[cfg(feature = "attention")]
pub mod quantise_kv;
#[cfg(feature = "others")]
pub mod read_bandwidth;
#[cfg(feature = "others")]
pub mod rms_norm;
#[cfg(feature = "experts")]
pub mod route;
pub mod row_norms;
#[cfg(feature = "others")]
pub mod sample;
#[cfg(feature = "others")]
pub mod sigmoid_mul;
pub mod silu_mul;
#[cfg(feature = "others")]
pub mod sort_experts;
pub mod units;

#[cfg(feature = "others")]
mod delta;
#[cfg(feature = "others")]
pub mod exchange;
mod grid;
mod norm;
mod reduce;
mod stage;
mod vector;

/// Tokens of a page of the KV cache. A warp's lanes each take one key of a page, so it is the warp's size.
pub const PAGE_SIZE: u32 = 32;
