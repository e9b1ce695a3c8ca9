//! IQ2_XXS, IQ2_XS and IQ2_S: eight values at a time are an entry of a code book, with signs.

use super::{Blocks, byte, eight::*, grids, half, word};
use cuda_std::prelude::*;

/// What two bits stand for: 8, 25 or 43.
#[device]
const MAGNITUDES: u32 = 0x002b_1908;

/// Value `k` of an entry.
#[device]
#[inline(always)]
fn magnitude(entry: u16, k: u32) -> f32 {
    (MAGNITUDES >> (8 * (u32::from(entry) >> (2 * k) & 3)) & 255) as f32
}

/// `value` with sign `k` of eight: of the seven lowest bits and one more that makes the number of minus signs even.
#[device]
#[inline(always)]
pub fn with_sign_of_seven(value: f32, bits: u32, k: u32) -> f32 {
    with_sign(value, even_bits(bits), k)
}

/// `value` with sign `k` of eight.
#[device]
#[inline(always)]
pub fn with_sign(value: f32, signs: u32, k: u32) -> f32 {
    f32::from_bits(value.to_bits() ^ (signs << (31 - k) & 1 << 31))
}

/// The step of value `i` from scales of four bits for 16 values each.
///
/// # Safety
/// `scales` leads to them.
#[device]
#[inline(always)]
unsafe fn step(d: f32, scales: *const u8, i: u32) -> f32 {
    // SAFETY: the caller's promise.
    let scale = unsafe { byte(scales, i / 32) } >> (i / 16 % 2 * 4) & 15;
    d * (0.5 + scale as f32) * 0.25
}

/// Bytes 0 and 1: `d`, an f16. Eight bytes for each 32 values: four indices, then a u32 of four times seven signs ([`with_sign_of_seven`])
/// and in the top four bits a scale. A value is `d * (0.5 + scale) / 4 * entry`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq2_xxs;

#[device]
impl Blocks for iq2_xxs {
    const VALUES: u32 = 256;
    const BYTES: u32 = 66;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let (group, g) = (2 + i / 32 * 8, i / 8 % 4);
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let entry = grids::IQ2_XXS[byte(block, group + g) as usize];
            let bits = word(block, group + 4) | word(block, group + 6) << 16;
            let step = half(block, 0) * (0.5 + (bits >> 28) as f32) * 0.25;
            with_sign_of_seven(step * magnitude(entry, i % 8), bits >> (7 * g), i % 8)
        }
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: a u16 for each eight values, nine bits of index and seven signs ([`with_sign_of_seven`]). Then
/// scales of four bits, one for 16 values. A value is `d * (0.5 + scale) / 4 * entry`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq2_xs;

#[device]
impl Blocks for iq2_xs {
    const VALUES: u32 = 256;
    const BYTES: u32 = 74;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let code = word(block, 2 + i / 8 * 2);
            let entry = grids::IQ2_XS[(code & 511) as usize];
            let step = step(half(block, 0), block.add(66), i);
            with_sign_of_seven(step * magnitude(entry, i % 8), code >> 9, i % 8)
        }
    }
}

/// Bytes 0 and 1: `d`, an f16. For each eight values `g`: eight bits of index in byte `2 + g`, signs in byte `34 + g`, two more bits of index
/// in byte `66 + g / 4`. Then scales of four bits, one for 16 values. A value is `d * (0.5 + scale) / 4 * entry`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq2_s;

#[device]
impl Blocks for iq2_s {
    const VALUES: u32 = 256;
    const BYTES: u32 = 82;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        let g = i / 8;
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let index = byte(block, 2 + g) | (byte(block, 66 + g / 4) >> (2 * (g % 4)) & 3) << 8;
            let entry = grids::IQ2_S[index as usize];
            let step = step(half(block, 0), block.add(74), i);
            with_sign(step * magnitude(entry, i % 8), byte(block, 34 + g), i % 8)
        }
    }
}

#[device]
impl Eights for iq2_xxs {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let (group, g) = (2 + i / 32 * 8, i / 8 % 4);
            let entry = grids::IQ2_XXS[byte(block, group + g) as usize];
            let bits = word(block, group + 4) | word(block, group + 6) << 16;
            let step = half(block, 0) * (0.5 + (bits >> 28) as f32) * 0.25;
            eight_magnitudes(entry, even_bits(bits >> (7 * g)), step)
        }
    }
}

#[device]
impl Eights for iq2_xs {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let code = word(block, 2 + i / 8 * 2);
            let entry = grids::IQ2_XS[(code & 511) as usize];
            eight_magnitudes(entry, even_bits(code >> 9), step(half(block, 0), block.add(66), i))
        }
    }
}

#[device]
impl Eights for iq2_s {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let g = i / 8;
            let index = byte(block, 2 + g) | (byte(block, 66 + g / 4) >> (2 * (g % 4)) & 3) << 8;
            let step = step(half(block, 0), block.add(74), i);
            eight_magnitudes(grids::IQ2_S[index as usize], byte(block, 34 + g), step)
        }
    }
}

/// The eight values of an entry.
#[device]
#[inline(always)]
fn eight_magnitudes(entry: u16, signs: u32, step: f32) -> Eight {
    Eight { signs: Some(signs), ..Eight::new(choose_two_bits(MAGNITUDES, entry.into()), 0, step) }
}
