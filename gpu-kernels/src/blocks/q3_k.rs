//! Q3_K: 16 sub-blocks of 16 values of three bits, whose scales have six.

use super::{Blocks, byte, eight::*, half};
use cuda_std::prelude::*;

/// Bytes 0 to 31: the third bits; sub-block `8h + 2j + s` has bit `4h + j` of bytes `16s + l`. Bytes 32 to 95: the other two, as in
/// [`q2_k`](super::q2_k). Bytes 96 to 107: scales `i`, four bits in the low half of byte `i` or the high one of byte `i - 8`, two in bits
/// `2 * (i / 4)` of byte `8 + i % 4`. Then `d`, an f16. A value is `d * (scale - 32) * (q - 4)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q3_k;

#[device]
impl Blocks for q3_k {
    const VALUES: u32 = 256;
    const BYTES: u32 = 110;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let b = i / 16;
            let scale = byte(block, 96 + b % 8) >> (b / 8 * 4) & 15
                | (byte(block, 104 + b % 4) >> (b / 4 * 2) & 3) << 4;
            let q = byte(block, 32 + i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
            let third = byte(block, i % 32) >> (i / 32) & 1;
            half(block, 108) * (scale as i32 - 32) as f32 * ((q | third << 2) as i32 - 4) as f32
        }
    }
}

#[device]
impl Eights for q3_k {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let b = i / 16;
            let scale =
                half_byte(block, 96 + b % 8, b >= 8) | (byte(block, 104 + b % 4) >> (b / 4 * 2) & 3) << 4;
            let words = eight_bytes::<Self>(block, 32 + i / 128 * 32 + i % 32);
            let low = words.map(|word| (word >> (i / 32 % 4 * 2)) & 0x0303_0303);
            let third = bits(eight_bytes::<Self>(block, i % 32), i / 32, 2);
            Eight::new(either(low, third), 4, half_times(block, 108, scale as i32 - 32))
        }
    }
}
