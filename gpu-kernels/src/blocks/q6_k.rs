//! Q6_K: 16 sub-blocks of 16 values of six bits, whose scales have eight.

use super::{Blocks, byte, eight::*, half};
use cuda_std::prelude::*;

/// Of value `128h + 32t + l`: bytes 0 to 127 have four bits, in the low half (`t` below 2) or the high one of byte `64h + 32 * (t % 2) + l`;
/// bytes 128 to 191 two, bits `2t` of byte `128 + 32h + l`; bytes 192 to 207 the scale, byte `192 + 8h + 2t + l / 16`, signed. Then `d`, an
/// f16. A value is `d * scale * (q - 32)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q6_k;

#[device]
impl Blocks for q6_k {
    const VALUES: u32 = 256;
    const BYTES: u32 = 210;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let (h, t) = (i / 128, i / 32 % 4);
            let low = byte(block, 64 * h + i % 64) >> (t / 2 * 4) & 15;
            let high = byte(block, 128 + 32 * h + i % 32) >> (2 * t) & 3;
            let scale = f32::from(byte(block, 192 + i / 16) as i8);
            half(block, 208) * scale * ((low | high << 4) as i32 - 32) as f32
        }
    }
}

#[device]
impl Eights for q6_k {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let (h, t) = (i / 128, i / 32 % 4);
            let low = nibbles(eight_bytes::<Self>(block, 64 * h + i % 64), t >= 2);
            let high = eight_bytes::<Self>(block, 128 + 32 * h + i % 32)
                .map(|word| ((word >> (2 * t)) & 0x0303_0303) << 4);
            let scale = i32::from(byte(block, 192 + i / 16) as i8);
            Eight::new(either(low, high), 32, half_times(block, 208, scale))
        }
    }
}
