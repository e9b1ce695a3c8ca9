//! MXFP4 and NVFP4: floats of four bits (one of sign, two of exponent, one of mantissa) with a scale that is a small float too.

use super::{Blocks, Codes, byte, eight::*, nibbles::four};
use cuda_std::prelude::*;

/// Twice what the four bits stand for; there is no negative zero. OCP Microscaling Formats 1.0, section 5.3.3.
#[device]
pub(crate) const DOUBLED: Codes = Codes::new([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

/// Byte 0: the exponent `e`. Byte `1 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `2^(e - 127) * fp4`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct mxfp4;

/// Half of the scale `2^(exponent - 127)`, which the doubled values make up for.
#[device]
#[inline(always)]
pub(crate) fn half_of_power(exponent: u32) -> f32 {
    // The lowest two are below the normal numbers of f32.
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

#[device]
impl Blocks for mxfp4 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 17;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        let (e, q) = unsafe { (byte(block, 0), four::<16>(block.add(1), i)) };
        half_of_power(e) * DOUBLED.get(q)
    }
}

/// Bytes 0 to 3: scales of four sub-blocks of 16 values, floats without sign of four bits of exponent and three of mantissa. Bytes 4 to 35:
/// codes, eight bytes a sub-block, value `j` in the low half of byte `j`, value `j + 8` in the high one. A value is `scale * fp4`, and
/// times the scale of the whole matrix.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct nvfp4;

/// Half of a scale, which the doubled values make up for; the first code and the last of the positive ones are 0.
#[device]
#[inline(always)]
fn half_of_scale(code: u32) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, code & 7);
    if code == 0 || code == 127 {
        0.0
    } else if exponent == 0 {
        mantissa as f32 * (1.0 / 1024.0)
    } else {
        f32::from_bits((exponent + 119) << 23 | mantissa << 20)
    }
}

#[device]
impl Blocks for nvfp4 {
    const VALUES: u32 = 64;
    const BYTES: u32 = 36;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let s = i / 16;
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let code = four::<8>(block.add(4 + 8 * s as usize), i % 16);
            half_of_scale(byte(block, s)) * DOUBLED.get(code)
        }
    }
}

#[device]
impl Eights for mxfp4 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            // Blocks of 17 bytes are not aligned.
            let mut words = [0; 2];
            crate::grid::repeat(8, |k| words[k / 4] |= byte(block, 1 + i % 16 + k as u32) << (8 * (k % 4)));
            DOUBLED.eight(nibbles(words, i >= 16), half_of_power(byte(block, 0)))
        }
    }
}

#[device]
impl Eights for nvfp4 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let s = i / 16;
            let codes = four_bits::<Self, 8>(block, 4 + 8 * s, i % 16);
            DOUBLED.eight(codes, half_of_scale(byte(block, s)))
        }
    }
}
