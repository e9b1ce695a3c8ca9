//! Q4_K: 8 sub-blocks of 32 values of four bits, whose scales and minima have six.

use super::{
    Blocks, byte,
    eight::*,
    half,
    k::{scale_and_min, scale_and_min_of_words},
};
use cuda_std::prelude::*;

/// Bytes 0 to 3: `d` and `dmin`, f16. Bytes 4 to 15: scales and minima, [`scale_and_min`]. Bytes 16 to 143: quanta; byte `16 + 32p + l` has
/// value `l` of sub-block `2p` in the low half and of `2p + 1` in the high one. A value is `d * scale * q - dmin * min`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_k;

#[device]
impl Blocks for q4_k {
    const VALUES: u32 = 256;
    const BYTES: u32 = 144;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let (scale, min) = scale_and_min(block.add(4), i / 32);
            let q = byte(block, 16 + i / 64 * 32 + i % 32) >> (i / 32 % 2 * 4) & 15;
            half(block, 0) * scale * q as f32 - half(block, 2) * min
        }
    }
}

#[device]
impl Eights for q4_k {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let ([halves, first], [second, third]) =
                (eight_bytes::<Self>(block, 0), eight_bytes::<Self>(block, 8));
            let ((d, dmin), b) = (f16::unpack2(halves), i / 32);
            let (scale, min) = scale_and_min_of_words([first, second, third], b);
            let words = eight_bytes::<Self>(block, 16 + i / 64 * 32 + i % 32);
            Eight { added: Some(-dmin * min), ..Eight::new(nibbles(words, b % 2 == 1), 0, d * scale) }
        }
    }
}
