//! Kernels of one's own: the crate is compiled twice, to PTX for a GPU and for the host, where the same functions are typed
//! launchers and the bodies run under emulation. Each file has a kernel and below it what it must compute, in f64.
#![no_std]
// An index is unrolled into registers; an iterator over an array ends up in local memory.
#![allow(clippy::needless_range_loop)]

#[cfg(not(target_arch = "nvptx64"))]
extern crate std;

mod matmul;
#[cfg(not(target_arch = "nvptx64"))]
mod reference;
mod saxpy;
mod softmax;
pub mod steps;
mod sum;
mod tensor_cores;

pub use matmul::*;
#[cfg(not(target_arch = "nvptx64"))]
pub use reference::Expected;
pub use saxpy::*;
pub use softmax::*;
pub use sum::*;
pub use tensor_cores::*;
