//! TQ1_0 and TQ2_0: values that are -1, 0 or 1 times a scale.

use super::{Blocks, byte, half};
use cuda_std::prelude::*;

/// Base 3, five digits a byte: 160 values in bytes 0 to 31, 80 in bytes 32 to 47, and four digits a byte in 48 to 51; digit `n` of byte `m` of
/// a part of `c` bytes is value `n * c + m` of it. A byte is the number of its digits, the first highest, as a fraction of 243 in 256ths,
/// rounded up. Bytes 52 and 53: `d`, an f16. A value is `d * (digit - 1)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct tq1_0;

#[device]
impl Blocks for tq1_0 {
    const VALUES: u32 = 256;
    const BYTES: u32 = 54;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let (at, n) = if i < 160 {
            (i % 32, i / 32)
        } else if i < 240 {
            (32 + i % 16, (i - 160) / 16)
        } else {
            (48 + i % 4, (i - 240) / 4)
        };
        // 3^n, from a byte of a constant each.
        let power = (0x51_1b_09_03_01_u64 >> (8 * n)) as u32 & 255;
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let fraction = (byte(block, at) * power) & 255;
            let digit = (fraction * 3) >> 8;
            half(block, 52) * (digit as f32 - 1.0)
        }
    }
}

/// Bits `2n` and `2n + 1` of byte `32h + m`: digit of value `128h + 32n + m`. Bytes 64 and 65: `d`, an f16. A value is `d * (digit - 1)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct tq2_0;

#[device]
impl Blocks for tq2_0 {
    const VALUES: u32 = 256;
    const BYTES: u32 = 66;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let digit = byte(block, i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
            half(block, 64) * (digit as f32 - 1.0)
        }
    }
}
