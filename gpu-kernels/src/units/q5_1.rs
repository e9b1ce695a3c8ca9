//! Q5_1: nibbles, scales and minima as Q4_1 has them, but for `[pair of blocks][lane]` words of the fifth bits between them, as Q5_K has those.

use super::q4_0::{nibbles_of_place, place_of_nibbles, words_of_block};
use super::q4_1::{halves_of_bytes_with_minima, halves_of_scales, multiply_with_minima, scale_and_minimum};
use super::q5_k::{byte_of_bits, operand};
use super::q8_0::byte_of_scales;
use super::{Halves, Unit, word};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, the minimum, the fifth bits of 32 columns, then 16 of nibbles, columns `j` and `j + 16` in byte `j`.
#[device]
const BLOCK: u32 = 24;
/// Where the fifth bits of a unit begin, and its scales.
#[device]
const FIFTH: u32 = 1024;
#[device]
const SCALES: u32 = FIFTH + 256;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_1;

#[device]
impl Unit for q5_1 {
    const COLS: u32 = 128;
    const BYTES: u32 = SCALES + 256;
    const FACTOR: f32 = 1.0;
    const SUMS: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < FIFTH {
                let (r, block, column) = place_of_nibbles(index % 512);
                *row(r).add(((index / 512 * 2 + block) * BLOCK + 8 + column) as usize)
            } else if index < SCALES {
                let (pair, lane, byte) = ((index - FIFTH) / 128, (index - FIFTH) / 4 % 32, index % 4);
                byte_of_bits([pair, lane, byte], |r, block, column| {
                    *row(r).add((block * BLOCK + 4 + column / 8) as usize) >> (column % 8) & 1
                })
            } else {
                byte_of_scales(row, index - SCALES, BLOCK)
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
            let [d, minimum] = scale_and_minimum(unit.add(SCALES as usize), r, block);
            let mut values = [0.0; 4];
            repeat(4, |j| {
                let q = low >> (8 * j) & 15 | (fifth >> (8 * j) & 1) << 4;
                values[j] = d.mul_rn(q as f32).add_rn(minimum);
            });
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let fifth = unit.add(FIFTH).cast::<u32>().add(lane);
            let of_block = |block: u32| {
                operand(words_of_block(unit, block), fifth.get(block / 2 * 32) >> (4 * (block % 2)))
            };
            multiply_with_minima(of_block, unit.add(SCALES), x, sums);
        }
    }
}

#[device]
impl Halves for q5_1 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        let at = 32 * pair + warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let (words, fifth) = (unit.cast().get(2 * at + odd), unit.add(FIFTH).cast::<u32>().get(at));
            let scales = halves_of_scales(unit.add(SCALES), 2 * pair + odd);
            halves_of_bytes_with_minima::<APART>(operand(words, fifth >> (4 * odd)), scales)
        }
    }
}
