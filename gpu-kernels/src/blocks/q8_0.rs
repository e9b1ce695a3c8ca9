//! Q8_0: 32 values of eight bits with a scale.

use super::{Blocks, byte, eight::*, half};
use cuda_std::prelude::*;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: the signed value `j`. A value is `d * q`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q8_0;

#[device]
impl Blocks for q8_0 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 34;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * f32::from(byte(block, 2 + i) as i8) }
    }
}

#[device]
impl Eights for q8_0 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            const SIGNS: u32 = 0x8080_8080;
            let bytes = eight_bytes::<Self>(block, 2 + i).map(|word| word ^ SIGNS);
            Eight::new(bytes, 128, half(block, 0))
        }
    }
}
