//! Q5_0: 32 values of five bits with a scale.

use super::{Blocks, byte, eight::*, half, nibbles::five};
use cuda_std::prelude::*;

/// Bytes 0 and 1: the scale `d`, an f16. Bytes 2 to 5: the fifth bits, bit `j` that of value `j`. Byte `6 + j`: four bits of value `j` in
/// the low half, of value `j + 16` in the high one. A value is `d * (q - 16)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_0;

#[device]
impl Blocks for q5_0 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 22;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * (five(block.add(2), i) as i32 - 16) as f32 }
    }
}

#[device]
impl Eights for q5_0 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let bytes = either(four_bits::<Self, 16>(block, 6, i), spread(byte(block, 2 + i / 8), 4));
            Eight::new(bytes, 16, half(block, 0))
        }
    }
}
