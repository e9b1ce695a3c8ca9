//! A parameter that is not `Copy`.
use cuda_std::prelude::*;

pub struct Owned(u32);

#[kernel]
pub unsafe fn owned(_value: Owned) {}

fn main() {}
