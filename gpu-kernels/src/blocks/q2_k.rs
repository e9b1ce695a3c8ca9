//! Q2_K: 16 sub-blocks of 16 values of two bits, whose scales and minima have four.

use super::{Blocks, byte, eight::*, half};
use cuda_std::prelude::*;

/// Bytes 0 to 15: scale in the low half and minimum in the high one, of each sub-block. Bytes 16 to 79: quanta; sub-block `8h + 2j + s` has
/// bits `2j` and `2j + 1` of bytes `16 + 32h + 16s + l`. Then `d` and `dmin`, f16. A value is `d * scale * q - dmin * min`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q2_k;

#[device]
impl Blocks for q2_k {
    const VALUES: u32 = 256;
    const BYTES: u32 = 84;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let scales = byte(block, i / 16);
            let q = byte(block, 16 + i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
            half(block, 80) * (scales & 15) as f32 * q as f32 - half(block, 82) * (scales >> 4) as f32
        }
    }
}

#[device]
impl Eights for q2_k {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let words = eight_bytes::<Self>(block, 16 + i / 128 * 32 + i % 32);
            let bytes = words.map(|word| (word >> (i / 32 % 4 * 2)) & 0x0303_0303);
            let (scales, [d, dmin]) = (byte(block, i / 16), two_halves(block, 80));
            Eight {
                added: Some(-dmin * (scales >> 4) as f32),
                ..Eight::new(bytes, 0, d * (scales & 15) as f32)
            }
        }
    }
}
