//! Q4_0: nibbles in two's complement, a lane's 16 bytes for a pair of blocks: of each block the word of row `r` and that of `r + 8`, whose low
//! nibbles are columns `4 c ..` and high ones `16 + 4 c ..`. Then for each row the four scales of its blocks, f16.

use super::q8_0::{byte_of_scales, halves_of_block, multiply_blocks};
use super::{Halves, Unit, half, word};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, then 16 of nibbles, columns `j` and `j + 16` in byte `j`.
#[device]
const BLOCK: u32 = 18;
/// Bytes of quants of a unit.
#[device]
const QUANTS: u32 = 1024;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_0;

/// Where a byte of nibbles of a pair of blocks stands: its row, its block, and the column of its low nibble.
#[device]
#[inline(always)]
pub(super) fn place_of_nibbles(index: u32) -> (u32, u32, u32) {
    let (lane, word, byte) = (index / 16, index / 4 % 4, index % 4);
    (lane / 4 + 8 * (word % 2), word / 2, 4 * (lane % 4) + byte)
}

/// The inverse of [`place_of_nibbles`], for a column below 16.
#[device]
#[inline(always)]
pub(super) fn nibbles_of_place(r: u32, block: u32, column: u32) -> u32 {
    let lane = 4 * (r % 8) + column / 4;
    16 * lane + 4 * (r / 8 + 2 * block) + column % 4
}

/// A lane's words of row `r` and `r + 8` of a block, where nibbles lie as here.
///
/// # Safety
/// `unit` is complete and has the block.
#[device]
#[inline(always)]
pub(super) unsafe fn words_of_block(unit: Shared<u8>, block: u32) -> [u32; 2] {
    // SAFETY: the caller's promise.
    let [a, b, c, d] = unsafe { unit.cast::<[u32; 4]>().add(warp::lane_id()).get(block / 2 * 32) };
    if block.is_multiple_of(2) { [a, b] } else { [c, d] }
}

#[device]
impl Unit for q4_0 {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 128;
    /// Nibbles are multiplied as the high ones of bytes.
    const FACTOR: f32 = 16.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                let (r, block, column) = place_of_nibbles(index % 512);
                // 8 more, without a carry: two's complement.
                *row(r).add(((index / 512 * 2 + block) * BLOCK + 2 + column) as usize) ^ 0x88
            } else {
                byte_of_scales(row, index - QUANTS, BLOCK)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let block = column / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let d = half(unit.add((QUANTS + 8 * r + 2 * block) as usize));
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            // The nibbles as the high ones of bytes.
            let word = word(unit.add(at as usize)) << (4 - column / 16 % 2 * 4);
            let mut values = [0.0; 4];
            repeat(4, |j| values[j] = d * f32::from((word >> (8 * j)) as i8 >> 4));
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            let of_block = |block| operand(words_of_block(unit, block));
            multiply_blocks(of_block, unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for q4_0 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast().get(2 * (32 * pair + warp::lane_id()) + odd);
            halves_of_block::<APART>(operand(words), unit.add(QUANTS), 2 * pair + odd, Self::FACTOR)
        }
    }
}

/// The first operand of a block, of its words of row `r` and `r + 8`: nibbles as the high ones of bytes.
#[device]
#[inline(always)]
fn operand([v, w]: [u32; 2]) -> [u32; 4] {
    const HIGH: u32 = 0xf0f0_f0f0;
    [(v << 4) & HIGH, (w << 4) & HIGH, v & HIGH, w & HIGH]
}
