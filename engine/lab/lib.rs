//! The kernel laboratory: what the kernels of this build are, whether they are right, and how fast.
//!
//! [`cases`] has a file for each operation: the shapes it is checked with and timed in, inputs drawn from a seed, a
//! reference in f64 and the tolerance with its reason. [`check`] runs them over every variant of an operation's table in
//! `engine/cuda/`; [`mod@bench`] times them and makes a [`run`](run::Run), which can be stored and compared. The `lab` subcommands (`engine/cli/lab/`) and the tests of the kernels are loops over these.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod all_reduce;
pub mod assembler;
pub mod bench;
pub mod case;
pub mod cases;
pub mod check;
pub mod device;
pub mod findings;
pub mod kernels;
pub mod model;
pub mod new_variant;
pub mod ptx;
pub mod report;
pub mod resources;
pub mod run;
pub mod source;
pub mod timed_ops;
pub mod trace;
pub mod values;
pub mod watch;

// This crate and what is below it, under the names that they have everywhere.
extern crate self as lab;
use qernel_core::{
    Error, Result, batch, config, cpu, drawing, dtype, error, kv_format, kv_layout, ops, rope, sampler,
    stats, testing, weights,
};
use qernel_cuda as cuda;
