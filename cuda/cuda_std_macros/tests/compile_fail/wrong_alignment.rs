//! A parameter that is aligned beyond 16 bytes, which crashes the compiler's PTX backend.
use cuda_std::prelude::*;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Aligned(u32);

#[kernel]
pub unsafe fn aligned(value: Aligned) {}

fn main() {}
