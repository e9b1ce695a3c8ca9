//! What docs/kernels.md goes through: from one thread to tensor cores, the least kernel for each idea, and below it what goes wrong
//! with it. A kernel whose name has `without`, `in_branch` or another fault in it is wrong; the emulator says how.

mod fragments;
mod numbers;
mod product;
mod reverse;
mod saxpy;
mod shuffles;
mod staged;
mod total;
mod tree;
mod vectors;

pub use fragments::*;
pub use numbers::*;
pub use product::*;
pub use reverse::*;
pub use saxpy::*;
pub use shuffles::*;
pub use staged::*;
pub use total::*;
pub use tree::*;
pub use vectors::*;
