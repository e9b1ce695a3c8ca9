//! Kernels of the tests of `cuda_std`. Those of `compare` and `wgmma` run on a GPU and under emulation; of the others only the PTX is
//! looked at.
#![no_std]
#![allow(
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    reason = "the kernels are the examples of the tests, some of them wrong on purpose"
)]

mod compare;
mod convergence;
mod coverage;
#[cfg(any(not(target_arch = "nvptx64"), target_feature = "sm_90a"))]
mod wgmma;

pub use compare::*;
pub use convergence::*;
pub use coverage::*;
#[cfg(any(not(target_arch = "nvptx64"), target_feature = "sm_90a"))]
pub use wgmma::*;

/// This crate's PTX for sm_80.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX_SM_80: &str = include_str!(concat!(env!("OUT_DIR"), "/sm_80.ptx"));

/// This crate's PTX for sm_90a.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX_SM_90A: &str = include_str!(concat!(env!("OUT_DIR"), "/sm_90a.ptx"));
