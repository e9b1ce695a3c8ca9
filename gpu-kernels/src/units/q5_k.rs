//! Q5_K: nibbles and scales as Q4_K has them; then `[pair of blocks][lane]` words of the fifth bits: of register `i` of block `h` of the pair bit `4 h + i` of
//! each byte.

use super::q4_0::{nibbles_of_place, place_of_nibbles};
use super::q4_k::{Blocks, Superblock, byte_of_scales, multiply_superblock, scales_of_block};
use super::{Halves, Unit, word};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Where the scales of a unit begin, and its fifth bits.
#[device]
const SCALES: u32 = 2048;
#[device]
const FIFTH: u32 = SCALES + 256;

/// A block in a file: `d`, `dmin`, 12 bytes of scales and minima of six bits, 32 of fifth bits (bit `j` of byte `l` is column `l` of block `j` of
/// 32), 128 of nibbles.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_k;

#[device]
impl Unit for q5_k {
    const COLS: u32 = 256;
    const BYTES: u32 = FIFTH + 512;
    const FACTOR: f32 = 1.0;
    const DIGITS: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < SCALES {
                let (r, block, column) = place_of_nibbles(index % 512);
                let block = 2 * (index / 512) + block;
                // Blocks 2 i and 2 i + 1 share 32 bytes.
                let quants = row(r).add((48 + 32 * (block / 2)) as usize);
                let nibble = |column: u32| *quants.add(column as usize) >> (4 * (block % 2)) & 15;
                nibble(column) | nibble(column + 16) << 4
            } else if index < FIFTH {
                byte_of_scales(row, index - SCALES)
            } else {
                let (pair, lane, byte) = ((index - FIFTH) / 128, (index - FIFTH) / 4 % 32, index % 4);
                byte_of_bits([pair, lane, byte], |r, block, column| {
                    *row(r).add((16 + column) as usize) >> block & 1
                })
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (block, second) = (column / 32, column / 16 % 2);
        // SAFETY: the caller's promise.
        unsafe {
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let low = word(unit.add(at as usize)) >> (4 * second);
            let lane = 4 * (r % 8) + column % 16 / 4;
            let fifth = word(unit.add((FIFTH + 128 * (block / 2) + 4 * lane) as usize));
            let fifth = fifth >> (4 * (block % 2) + r / 8 + 2 * second);
            let [d, minimum] = scales_of_block(unit.add((SCALES + 16 * r) as usize), block);
            let mut values = [0.0; 4];
            repeat(4, |j| {
                let q = low >> (8 * j) & 15 | (fifth >> (8 * j) & 1) << 4;
                values[j] = d.mul_rn(q as f32).add_rn(-minimum);
            });
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 4]>().add(lane);
            let fifth = unit.add(FIFTH).cast::<u32>().add(lane);
            let of_pair = |pair: u32| {
                let ([a, b, c, d], bits) = (words.get(32 * pair), fifth.get(32 * pair));
                [operand([a, b], bits), operand([c, d], bits >> 4)]
            };
            multiply_superblock(of_pair, unit.add(SCALES), x, sums);
        }
    }
}

#[device]
impl Halves for q5_k {
    type Scales = Blocks;

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, odd: u32) -> Blocks {
        // SAFETY: the caller's promise.
        unsafe { Superblock::new(unit.add(SCALES)).blocks(odd) }
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        scales: &Blocks,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        let at = 32 * pair + warp::lane_id();
        // SAFETY: the caller's promise.
        let (words, fifth) =
            unsafe { (unit.cast().get(2 * at + odd), unit.add(FIFTH).cast::<u32>().get(at)) };
        scales.halves::<APART>(operand(words, fifth >> (4 * odd)), pair)
    }
}

/// A byte of words with a bit of each value of a pair of blocks of 32, for byte `byte` of the registers of a lane: of register `i` of block `h` of the pair bit
/// `4 h + i`. `bit(r, block, column)` is that of a value.
#[device]
#[inline(always)]
pub(super) fn byte_of_bits([pair, lane, byte]: [u32; 3], bit: impl Fn(u32, u32, u32) -> u8) -> u8 {
    let mut bits = 0;
    repeat(8, |k| {
        let (block, register) = (2 * pair + k as u32 / 4, k as u32 % 4);
        let (r, column) = (lane / 4 + 8 * (register % 2), 4 * (lane % 4) + byte + 16 * (register / 2));
        bits |= bit(r, block, column) << k;
    });
    bits
}

/// The first operand of a block of 32 columns, of its words of row `r` and `r + 8`, and of its fifth bits, the lowest four of each byte.
#[device]
#[inline(always)]
pub(super) fn operand([v, w]: [u32; 2], bits: u32) -> [u32; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    const BIT: u32 = 0x1010_1010;
    [
        v & LOW | (bits << 4) & BIT,
        w & LOW | (bits << 3) & BIT,
        (v >> 4) & LOW | (bits << 2) & BIT,
        (w >> 4) & LOW | (bits << 1) & BIT,
    ]
}
