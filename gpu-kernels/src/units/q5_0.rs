//! Q5_0: as Q4_0 the low four bits of each value, rotated so that those of columns `4 c ..` are in bits 3 to 6 of a byte and those of `16 + 4 c ..` there
//! after a rotation by four; then `[lane][pair of blocks]` words of the fifth bits, inverted, which are signs: of register `i` of block `h`
//! of the pair bit `7 - (4 h + i)` of each byte; then for each row the four scales of its blocks, f16.

use super::q4_0::{nibbles_of_place, place_of_nibbles, words_of_block};
use super::q5_k::byte_of_bits;
use super::q8_0::{byte_of_scales, halves_of_block, multiply_blocks};
use super::{Halves, Unit, half, word};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, the fifth bits of 32 columns, then 16 of nibbles, columns `j` and `j + 16` in byte `j`.
#[device]
const BLOCK: u32 = 22;
/// Bytes of nibbles of a unit.
#[device]
const NIBBLES: u32 = 1024;
/// And with the fifth bits.
#[device]
const QUANTS: u32 = NIBBLES + 256;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_0;

/// The bits of a byte, those that leave it at the top coming back at the bottom, in a whole word: byte `byte` of it.
#[device]
#[inline(always)]
fn byte_of(word: u32, byte: u32) -> u8 {
    (word >> (8 * byte)) as u8
}

#[device]
impl Unit for q5_0 {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 128;
    /// Values are multiplied as the upper five bits of bytes.
    const FACTOR: f32 = 8.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < NIBBLES {
                // The word of nibbles, as Q4_0 has it, and the byte of it after a rotation to the left by 3.
                let (r, block, column) = place_of_nibbles(index % 512 / 4 * 4);
                let nibbles = row(r).add(((index / 512 * 2 + block) * BLOCK + 6 + column) as usize);
                let byte = |i: usize| u32::from(*nibbles.add(i));
                let word = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
                byte_of(word.rotate_left(3), index % 4)
            } else if index < QUANTS {
                let (lane, pair, byte) = ((index - NIBBLES) / 8, (index - NIBBLES) / 4 % 2, index % 4);
                let fifth = byte_of_bits([pair, lane, byte], |r, block, column| {
                    *row(r).add((block * BLOCK + 2 + column / 8) as usize) >> (column % 8) & 1
                });
                (!fifth).reverse_bits()
            } else {
                byte_of_scales(row, index - QUANTS, BLOCK)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (block, second) = (column / 32, column / 16 % 2);
        // SAFETY: the caller's promise.
        unsafe {
            let d = half(unit.add((QUANTS + 8 * r + 2 * block) as usize));
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let nibbles = word(unit.add(at as usize)).rotate_right(3 + 4 * second);
            let (lane, register) = (4 * (r % 8) + column % 16 / 4, r / 8 + 2 * second);
            let signs = word(unit.add((NIBBLES + 8 * lane + block / 2 * 4) as usize));
            let signs = signs >> (7 - (4 * (block % 2) + register));
            let mut values = [0.0; 4];
            repeat(4, |j| {
                let (nibble, sign) = (nibbles >> (8 * j) & 15, signs >> (8 * j) & 1);
                values[j] = d * (nibble as i32 - 16 * sign as i32) as f32;
            });
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let signs = unit.add(NIBBLES).cast::<u32>().add(2 * lane);
            let of_block =
                |block: u32| operand(words_of_block(unit, block), signs.get(block / 2) << (4 * (block % 2)));
            multiply_blocks(of_block, unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for q5_0 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast().get(2 * (32 * pair + lane) + odd);
            let signs = unit.add(NIBBLES).cast::<u32>().get(2 * lane + pair) << (4 * odd);
            halves_of_block::<APART>(operand(words, signs), unit.add(QUANTS), 2 * pair + odd, Self::FACTOR)
        }
    }
}

/// The first operand of a block, of its words of row `r` and `r + 8`, and of those of its fifth bits.
#[device]
#[inline(always)]
fn operand([v, w]: [u32; 2], signs: u32) -> [u32; 4] {
    const LOW: u32 = 0x7878_7878;
    const SIGN: u32 = 0x8080_8080;
    [
        v & LOW | signs & SIGN,
        w & LOW | (signs << 1) & SIGN,
        v.rotate_right(4) & LOW | (signs << 2) & SIGN,
        w.rotate_right(4) & LOW | (signs << 3) & SIGN,
    ]
}
