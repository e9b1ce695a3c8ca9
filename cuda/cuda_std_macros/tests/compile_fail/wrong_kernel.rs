//! Functions that cannot be kernels.
use cuda_std::prelude::*;

#[kernel]
pub fn safe(n: u32) {}

#[kernel]
pub unsafe fn generic<T: Copy>(_x: *const T) {}

#[kernel]
pub unsafe fn with_result(n: u32) -> u32 {
    n
}

#[kernel]
pub unsafe fn with_reference(_x: &f32) {}

#[kernel(max_thread = 256)]
pub unsafe fn misspelt_bound(_n: u32) {}

#[kernel(max_threads = 2048)]
pub unsafe fn impossible_bound(_n: u32) {}

#[kernel(min_blocks = 2)]
pub unsafe fn half_a_bound(_n: u32) {}

fn main() {}
