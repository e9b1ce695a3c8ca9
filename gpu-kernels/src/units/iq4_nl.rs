//! IQ4_NL: nibbles as [`codes`](super::codes) has them; then for each row the four scales of its blocks, f16.

use super::codes::byte_of_nibbles;
use super::q4_0::words_of_block;
use super::q8_0::{byte_of_scales, halves_of_block, multiply_blocks};
use super::{Halves, Unit, half};
use crate::blocks::iq4::CODES;
#[device]
use crate::fused::units::Inputs;
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, then 16 of nibbles.
#[device]
const BLOCK: u32 = 18;
/// Bytes of nibbles of a unit.
#[device]
const QUANTS: u32 = 1024;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq4_nl;

#[device]
impl Unit for iq4_nl {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 128;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                byte_of_nibbles(|r, block| row(r).add((block * BLOCK + 2) as usize), index)
            } else {
                byte_of_scales(row, index - QUANTS, BLOCK)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let d = half(unit.add((QUANTS + 8 * r + 2 * (column / 32)) as usize));
            CODES.quad(unit, r, column).map(|code| d.mul_rn(code))
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            let of_block = |block| CODES.operand(words_of_block(unit, block));
            multiply_blocks(of_block, unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for iq4_nl {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast().get(2 * (32 * pair + warp::lane_id()) + odd);
            halves_of_block::<APART>(CODES.operand(words), unit.add(QUANTS), 2 * pair + odd, Self::FACTOR)
        }
    }
}
