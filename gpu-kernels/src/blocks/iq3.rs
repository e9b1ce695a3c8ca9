//! IQ3_XXS and IQ3_S: four values at a time are an entry of a code book, with signs.

use super::iq2::{with_sign, with_sign_of_seven};
use super::{Blocks, byte, eight::*, grids, half, word};
use cuda_std::prelude::*;

/// The three bits of value `k` of an entry.
#[device]
#[inline(always)]
fn three(entry: u16, k: u32) -> u32 {
    u32::from(entry) >> (3 * k) & 7
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: indices. Then a u32 for each 32 values: four times seven signs ([`with_sign_of_seven`]) and in the
/// top four bits a scale. A value is `d * (0.5 + scale) / 2 * entry`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq3_xxs;

#[device]
impl Blocks for iq3_xxs {
    const VALUES: u32 = 256;
    const BYTES: u32 = 98;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let signs = 66 + i / 32 * 4;
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let three = three(grids::IQ3_XXS[byte(block, 2 + i / 4) as usize], i % 4);
            // 4, 12, 20 and so on, but the last is 62.
            let magnitude = 4 + 8 * three + three / 7 * 2;
            let bits = word(block, signs) | word(block, signs + 2) << 16;
            let step = half(block, 0) * (0.5 + (bits >> 28) as f32) * 0.5;
            with_sign_of_seven(step * magnitude as f32, bits >> (7 * (i / 8 % 4)), i % 8)
        }
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: eight bits of the indices, bytes 66 to 73 the ninth. Bytes 74 to 105: signs. Then scales of four
/// bits, one for 32 values. A value is `d * (1 + 2 * scale) * entry`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq3_s;

#[device]
impl Blocks for iq3_s {
    const VALUES: u32 = 256;
    const BYTES: u32 = 110;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let index = byte(block, 2 + i / 4) | (byte(block, 66 + i / 32) >> (i / 4 % 8) & 1) << 8;
            let magnitude = 1 + 2 * three(grids::IQ3_S[index as usize], i % 4);
            let scale = byte(block, 106 + i / 64) >> (i / 32 % 2 * 4) & 15;
            let step = half(block, 0) * (1 + 2 * scale) as f32;
            with_sign(step * magnitude as f32, byte(block, 74 + i / 8), i % 8)
        }
    }
}

#[device]
impl Eights for iq3_xxs {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let signs = 66 + i / 32 * 4;
            let bits = word(block, signs) | word(block, signs + 2) << 16;
            let step = half(block, 0) * (0.5 + (bits >> 28) as f32) * 0.5;
            let four = |at: u32| {
                let entry = grids::IQ3_XXS[byte(block, 2 + i / 4 + at) as usize];
                choose_three_bits([0x1c14_0c04, 0x3e34_2c24], entry.into())
            };
            Eight {
                signs: Some(even_bits(bits >> (7 * (i / 8 % 4)))),
                ..Eight::new([four(0), four(1)], 0, step)
            }
        }
    }
}

#[device]
impl Eights for iq3_s {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let scale = half_byte(block, 106 + i / 64, i / 32 % 2 == 1);
            let high = byte(block, 66 + i / 32);
            let four = |at: u32| {
                let index = byte(block, 2 + i / 4 + at) | (high >> (i / 4 % 8 + at) & 1) << 8;
                choose_three_bits([0x0705_0301, 0x0f0d_0b09], grids::IQ3_S[index as usize].into())
            };
            let step = half_times(block, 0, (1 + 2 * scale) as i32);
            Eight { signs: Some(byte(block, 74 + i / 8)), ..Eight::new([four(0), four(1)], 0, step) }
        }
    }
}
