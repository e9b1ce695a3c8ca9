//! The kernel laboratory: what the kernels of this build are, whether they are right, and how fast.
//!
//! [`kernels`] knows the operations, their variants and what the compiler made of each kernel. The `lab` subcommands
//! (`engine/cli/lab/`) and the tests of the kernels are loops over what this module offers.

pub mod assembler;
pub mod kernels;
pub mod new_variant;
pub mod ptx;
pub mod source;
