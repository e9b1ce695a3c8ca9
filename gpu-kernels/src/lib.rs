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

pub mod add;
pub mod add_bias;
pub mod add_positions;
pub mod add_ranks;
pub mod argmax;
pub mod attention;
pub mod bias_gelu;
pub mod bias_rope_kv;
pub mod blocks;
pub mod causal_conv;
pub mod convert;
pub mod delta_rule;
pub mod delta_step;
pub mod embed;
pub mod experts;
pub mod experts_in;
pub mod experts_out;
pub mod fused;
pub mod gate_rows;
pub mod gated_matmul;
pub mod gated_norm;
pub mod gather_ranks;
pub mod gather_rows;
pub mod layer_norm;
pub mod lora_add;
pub mod matmul;
pub mod norm_route;
pub mod quantise_kv;
pub mod read_bandwidth;
pub mod rms_norm;
pub mod route;
pub mod row_norms;
pub mod sample;
pub mod sigmoid_mul;
pub mod silu_mul;
pub mod sort_experts;
pub mod units;

mod delta;
pub mod exchange;
mod grid;
mod reduce;
mod stage;
mod vector;

/// Tokens of a page of the KV cache. A warp's lanes each take one key of a page, so it is the warp's size.
pub const PAGE_SIZE: u32 = 32;
