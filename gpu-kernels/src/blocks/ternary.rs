//! TQ1_0 and TQ2_0: values that are -1, 0 or 1 times a scale.

use super::{Blocks, byte, eight::*, half, word};
use cuda_std::prelude::*;

/// 3^n, from a byte of a constant each.
#[device]
#[inline(always)]
fn power(n: u32) -> u32 {
    (0x51_1b_09_03_01_u64 >> (8 * n)) as u32 & 255
}

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
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let fraction = (byte(block, at) * power(n)) & 255;
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

#[device]
impl Eights for tq1_0 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            // Four bytes at a time: of the last part, whose digits are four bytes each, the second four values are the next digit.
            let (at, digits) = if i < 160 {
                ([i % 32, i % 32 + 4], [i / 32; 2])
            } else if i < 240 {
                ([32 + i % 16, 36 + i % 16], [(i - 160) / 16; 2])
            } else {
                ([48; 2], [(i - 240) / 4, (i - 240) / 4 + 1])
            };
            let four = |k: usize| {
                const LOW: u32 = 0x00ff_00ff;
                let bytes = word(block, at[k]) | word(block, at[k] + 2) << 16;
                let digit = |bytes: u32| {
                    let fractions = ((bytes & LOW) * power(digits[k])) & LOW;
                    ((fractions * 3) >> 8) & LOW
                };
                digit(bytes) | digit(bytes >> 8) << 8
            };
            Eight::new([four(0), four(1)], 1, half(block, 52))
        }
    }
}

#[device]
impl Eights for tq2_0 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let words = eight_bytes::<Self>(block, i / 128 * 32 + i % 32);
            Eight::new(words.map(|word| (word >> (i / 32 % 4 * 2)) & 0x0303_0303), 1, half(block, 64))
        }
    }
}
