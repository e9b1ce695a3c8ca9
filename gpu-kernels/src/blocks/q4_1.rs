//! Q4_1: 32 values of four bits with a scale and a minimum.

use super::{Blocks, eight::*, half, nibbles::four};
use cuda_std::prelude::*;

/// Bytes 0 to 3: the scale `d` and the minimum `m`, f16. Byte `4 + j`: value `j` in the low half, value `j + 16` in the high one. A value is
/// `d * q + m`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_1;

#[device]
impl Blocks for q4_1 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 20;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * four::<16>(block.add(4), i) as f32 + half(block, 2) }
    }
}

#[device]
impl Eights for q4_1 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let [d, m] = two_halves(block, 0);
            Eight { added: Some(m), ..Eight::new(four_bits::<Self, 16>(block, 4, i), 0, d) }
        }
    }
}
