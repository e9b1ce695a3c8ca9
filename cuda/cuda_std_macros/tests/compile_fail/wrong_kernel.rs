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

#[kernel_args]
pub struct Args<E> {
    pub n: u32,
    pub x: *const E,
}

#[kernel(E = [f32])]
pub unsafe fn without_a_name<E>(_a: Args<E>) {}

#[kernel(E = [f32], name = "without_a_list_{N}")]
pub unsafe fn without_a_list<E>(_a: Args<E>) {}

#[kernel(E = [f32, f16], name = "twice")]
pub unsafe fn twice<E>(_a: Args<E>) {}

#[kernel(E = [f32], name = "unknown_{E}")]
pub unsafe fn unknown<E, T>(_a: Args<E>) {}

#[kernel(name = "no_struct")]
pub unsafe fn no_struct() {}

#[kernel_args]
pub struct Generic<E> {
    pub value: E,
}

fn main() {}
