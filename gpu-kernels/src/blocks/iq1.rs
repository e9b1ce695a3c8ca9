//! IQ1_S and IQ1_M: eight values at a time are an entry of a code book of -1, 0 and 1, all a little higher or lower.

use super::{Blocks, byte, eight::*, grids, half, word};
use cuda_std::prelude::*;

/// Value `k` of an entry, an eighth higher or lower.
#[device]
#[inline(always)]
fn value(index: u32, k: u32, lower: bool) -> f32 {
    let delta = if lower { -0.125 } else { 0.125 };
    // All indices of eleven bits are entries.
    let entry = u32::from(grids::IQ1_S[(index & 2047) as usize]);
    (entry >> (2 * k) & 3) as f32 - 1.0 + delta
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 33: eight bits of the indices. Then a u16 for each 32 values: four times three more bits of index,
/// a scale of three bits, and whether values are lower. A value is `d * (2 * scale + 1) * (entry ± 0.125)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq1_s;

#[device]
impl Blocks for iq1_s {
    const VALUES: u32 = 256;
    const BYTES: u32 = 50;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let high = word(block, 34 + i / 32 * 2);
            let index = byte(block, 2 + i / 8) | (high >> (i / 8 % 4 * 3) & 7) << 8;
            let step = half(block, 0) * (2 * (high >> 12 & 7) + 1) as f32;
            step * value(index, i % 8, high >> 15 != 0)
        }
    }
}

/// `d` of a block of IQ1_M.
///
/// # Safety
/// `block` leads to one.
#[device]
#[inline(always)]
unsafe fn d_of_m(block: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    let part = |at: u32| unsafe { word(block, 48 + 2 * at) >> 12 << (4 * at) };
    Element::to_f32(f16::from_bits((part(0) | part(1) | part(2) | part(3)) as u16))
}

/// Bytes 0 to 31: eight bits of the indices. Half of a byte from 32 on for each eight values: three more, and whether values are lower. Then
/// four u16 of four scales of three bits, one for 16 values; their top four bits are, the lowest first, an f16 `d`. A value is
/// `d * (2 * scale + 1) * (entry ± 0.125)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq1_m;

#[device]
impl Blocks for iq1_m {
    const VALUES: u32 = 256;
    const BYTES: u32 = 56;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let high = byte(block, 32 + i / 16) >> (i / 8 % 2 * 4);
            let scale = word(block, 48 + i / 64 * 2) >> (i / 16 % 4 * 3) & 7;
            let index = byte(block, i / 8) | (high & 7) << 8;
            d_of_m(block) * (2 * scale + 1) as f32 * value(index, i % 8, high & 8 != 0)
        }
    }
}

#[device]
impl Eights for iq1_s {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let high = word(block, 34 + i / 32 * 2);
            let index = byte(block, 2 + i / 8) | (high >> (i / 8 % 4 * 3) & 7) << 8;
            eight(index, high >> 15 != 0, half_times(block, 0, (2 * (high >> 12 & 7) + 1) as i32))
        }
    }
}

#[device]
impl Eights for iq1_m {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let high = byte(block, 32 + i / 16) >> (i / 8 % 2 * 4);
            let scale = word(block, 48 + i / 64 * 2) >> (i / 16 % 4 * 3) & 7;
            let index = byte(block, i / 8) | (high & 7) << 8;
            eight(index, high & 8 != 0, d_of_m(block) * (2 * scale + 1) as f32)
        }
    }
}

/// The eight values of an entry, in eighths.
#[device]
#[inline(always)]
fn eight(index: u32, lower: bool, step: f32) -> Eight {
    let entry = grids::IQ1_S[(index & 2047) as usize].into();
    // Eight times 0, 1 and 2, and what is between lower and higher; 9 more than they are.
    let table = if lower { 0x0010_0800 } else { 0x0012_0a02 };
    Eight::new(choose_two_bits(table, entry), 9, step * 0.125)
}
