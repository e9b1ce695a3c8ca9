//! Q5_K: 8 sub-blocks of 32 values of five bits, whose scales and minima have six.

use super::{Blocks, byte, eight::*, half, k::scale_and_min, k::scale_and_min_of_words};
use cuda_std::prelude::*;

/// Bytes 0 to 3: `d` and `dmin`, f16. Bytes 4 to 15: scales and minima, [`scale_and_min`]. Bytes 16 to 47: the fifth bits, bit `b` of byte
/// `16 + l` that of value `l` of sub-block `b`. Bytes 48 to 175: the other four, as in [`q4_k`](super::q4_k). A value is
/// `d * scale * q - dmin * min`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_k;

#[device]
impl Blocks for q5_k {
    const VALUES: u32 = 256;
    const BYTES: u32 = 176;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let (scale, min) = scale_and_min(block.add(4), i / 32);
            let q = byte(block, 48 + i / 64 * 32 + i % 32) >> (i / 32 % 2 * 4) & 15;
            let fifth = byte(block, 16 + i % 32) >> (i / 32) & 1;
            half(block, 0) * scale * (q | fifth << 4) as f32 - half(block, 2) * min
        }
    }
}

#[device]
impl Eights for q5_k {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let ([halves, first], [second, third]) =
                (eight_bytes::<Self>(block, 0), eight_bytes::<Self>(block, 8));
            let ((d, dmin), b) = (f16::unpack2(halves), i / 32);
            let (scale, min) = scale_and_min_of_words([first, second, third], b);
            let words = eight_bytes::<Self>(block, 48 + i / 64 * 32 + i % 32);
            let fifth = bits(eight_bytes::<Self>(block, 16 + i % 32), b, 4);
            Eight {
                added: Some(-dmin * min),
                ..Eight::new(either(nibbles(words, b % 2 == 1), fifth), 0, d * scale)
            }
        }
    }
}
