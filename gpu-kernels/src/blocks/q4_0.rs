//! Q4_0: 32 values of four bits with a scale.

use super::{Blocks, eight::*, half, nibbles::four};
use cuda_std::prelude::*;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `d * (q - 8)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_0;

#[device]
impl Blocks for q4_0 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 18;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * (four::<16>(block.add(2), i) as i32 - 8) as f32 }
    }
}

#[device]
impl Eights for q4_0 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe { Eight::new(four_bits::<Self, 16>(block, 2, i), 8, half(block, 0)) }
    }
}
