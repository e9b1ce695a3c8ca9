//! IQ4_NL and IQ4_XS: values of four bits that stand for 16 unevenly spaced numbers.

use super::{Blocks, Codes, byte, eight::*, half, nibbles::four, word};
use cuda_std::prelude::*;

/// What the four bits stand for: `kvalues_iq4nl` of ggml/src/ggml-common.h.
#[device]
pub(crate) const CODES: Codes =
    Codes::new([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: the code of value `j` in the low half, of value `j + 16` in the high one. A value is
/// `d * CODES[q]`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq4_nl;

#[device]
impl Blocks for iq4_nl {
    const VALUES: u32 = 32;
    const BYTES: u32 = 18;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * CODES.get(four::<16>(block.add(2), i)) }
    }
}

/// Bytes 0 and 1: `d`, an f16. Scales of 8 sub-blocks `b` of 32 values: two bits `2b` of the u16 at byte 2 over a half of byte `4 + b / 2`.
/// Bytes 8 to 135: codes as in [`iq4_nl`], 16 bytes a sub-block. A value is `d * (scale - 32) * CODES[q]`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq4_xs;

#[device]
impl Blocks for iq4_xs {
    const VALUES: u32 = 256;
    const BYTES: u32 = 136;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let b = i / 32;
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let scale = byte(block, 4 + b / 2) >> (b % 2 * 4) & 15 | (word(block, 2) >> (2 * b) & 3) << 4;
            let code = CODES.get(four::<16>(block.add(8 + 16 * b as usize), i % 32));
            half(block, 0) * (scale as i32 - 32) as f32 * code
        }
    }
}

#[device]
impl Eights for iq4_nl {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe { CODES.eight(four_bits::<Self, 16>(block, 2, i), half(block, 0)) }
    }
}

#[device]
impl Eights for iq4_xs {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let b = i / 32;
            let [first, low] = eight_bytes::<Self>(block, 0);
            let scale = low >> (4 * b) & 15 | (first >> (16 + 2 * b) & 3) << 4;
            let codes = four_bits::<Self, 16>(block, 8 + 16 * b, i % 32);
            CODES.eight(codes, f16::unpack2(first).0 * (scale as i32 - 32) as f32)
        }
    }
}
