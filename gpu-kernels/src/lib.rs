//! The engine's GPU kernels: one operation a file, all its variants in it.
#![no_std]

pub mod matmul;
