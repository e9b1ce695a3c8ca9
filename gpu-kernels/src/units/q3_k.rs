//! Q3_K: two bits of each value as [`twos`] has them; then `[pair of blocks of 32][lane]` words of the third bits, inverted, which are signs: of register
//! `i` of block `h` of the pair bit `7 - (4 h + i)` of each byte; then for each row 12 bytes of its 16 scales of six bits, and for each row `d`.
//!
//! Of scale `4 p + k` the low four bits are in byte `k` of word `p / 2`, in the low half if `p` is even; the high two bits are bits `2 p` and `2 p + 1` of byte `k` of the third
//! word. So the four scales of a pair of blocks come out of two words.

use super::q5_k::byte_of_bits;
use super::q6_k::sum_sixteens;
use super::{
    EXPONENTS, HALVES_FACTOR, Halves, Unit, add_scaled, half, halves_of_bytes, scaled_half, twos, word,
};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::{f16x2, prelude::*};

/// Where the third bits of a unit begin, the scales, and `d`.
#[device]
const SIGNS: u32 = twos::BYTES;
#[device]
const SCALES: u32 = SIGNS + 512;
#[device]
const D: u32 = SCALES + 192;

/// What scales are stored with beside them.
#[device]
const ZERO: i32 = 32;

/// A block in a file: 32 bytes of third bits (bit `j` of byte `l` is column `l` of block `j` of 32), 64 of the other two, 12 of scales, `d`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q3_k;

/// The six bits of scale `i` of a row, of the 12 bytes that a file has of them.
///
/// # Safety
/// `scales` leads to them; `i` is below 16.
#[device]
#[inline(always)]
unsafe fn scale_in_file(scales: *const u8, i: u32) -> u8 {
    // SAFETY: the caller's promise.
    let byte = |at: u32| unsafe { *scales.add(at as usize) };
    byte(i % 8) >> (i / 8 * 4) & 15 | (byte(8 + i % 4) >> (i / 4 * 2) & 3) << 4
}

/// The six bits of the four scales of the blocks `2 pair` and `2 pair + 1`, a byte each, of the three words of a row.
#[device]
#[inline(always)]
fn scales_of_pair([first, second, high]: [u32; 3], pair: u32) -> u32 {
    const LOW_BITS: u32 = 0x0f0f_0f0f;
    const HIGH_BITS: u32 = 0x3030_3030;
    let low = if pair < 2 { first } else { second };
    let high = if pair == 3 { high >> 2 } else { high << (4 - 2 * pair) };
    (low >> (4 * (pair % 2))) & LOW_BITS | high & HIGH_BITS
}

/// The words of the scales of a row of a unit, which are `words`.
///
/// # Safety
/// `words` leads to those of a complete unit.
#[device]
#[inline(always)]
unsafe fn scales_of_row(words: Shared<u32>, row: u32) -> [u32; 3] {
    let of_row = words.add(3 * row);
    // SAFETY: the caller's promise.
    unsafe { [of_row.get(0), of_row.get(1), of_row.get(2)] }
}

#[device]
impl Unit for q3_k {
    const COLS: u32 = 256;
    const BYTES: u32 = D + 32;
    /// Values are multiplied as the upper three bits of bytes.
    const FACTOR: f32 = 32.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < SIGNS {
                twos::byte(|r| row(r).add(32), index)
            } else if index < SCALES {
                let (pair, lane, byte) = ((index - SIGNS) / 128, (index - SIGNS) / 4 % 32, index % 4);
                let third = byte_of_bits([pair, lane, byte], |r, block, column| {
                    *row(r).add(column as usize) >> block & 1
                });
                (!third).reverse_bits()
            } else if index < D {
                let (r, place) = ((index - SCALES) / 12, (index - SCALES) % 12);
                let scale = |pair: u32| scale_in_file(row(r).add(96), 4 * pair + place % 4);
                if place < 8 {
                    let first = place / 4 * 2;
                    return scale(first) & 15 | scale(first + 1) << 4;
                }
                let mut bits = 0;
                repeat(4, |pair| bits |= scale(pair as u32) >> 4 << (2 * pair));
                bits
            } else {
                *row((index - D) / 2).add((108 + (index - D) % 2) as usize)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (block, lane) = (column / 32, 4 * (r % 8) + column % 16 / 4);
        // SAFETY: the caller's promise.
        unsafe {
            let (low, register) = twos::word_of(unit, r, column);
            let low = low >> (6 - 2 * register);
            let signs = word(unit.add((SIGNS + 128 * (block / 2) + 4 * lane) as usize));
            let signs = signs >> (7 - (4 * (block % 2) + register));
            let scales = unit.add((SCALES + 12 * r) as usize);
            let scales = scales_of_pair([0, 4, 8].map(|at| word(scales.add(at))), block / 2);
            let scale = (scales >> (8 * (column / 16 % 4)) & 63) as i32 - ZERO;
            let d = half(unit.add((D + 2 * r) as usize)).mul_rn(scale as f32);
            let mut values = [0.0; 4];
            repeat(4, |j| {
                let q = (low >> (8 * j) & 3) as i32 - 4 * (signs >> (8 * j) & 1) as i32;
                values[j] = d.mul_rn(q as f32);
            });
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let lane = warp::lane_id();
        let row = lane / 4;
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 2]>().add(lane);
            let signs = unit.add(SIGNS).cast::<u32>().add(lane);
            let scales = unit.add(SCALES).cast::<u32>();
            let scales = [scales_of_row(scales, row), scales_of_row(scales, row + 8)];
            let d = unit.add(D).cast::<f16>().add(row);
            let d = [Element::to_f32(d.get(0)), Element::to_f32(d.get(8))];
            let mut total = [[0i32; 4]; G];
            repeat(4, |pair| {
                let (words, signs) = (words.get(32 * pair as u32), signs.get(32 * pair as u32));
                let scales = scales.map(|of_row| scales_of_pair(of_row, pair as u32));
                let mut columns = [[0; 4]; G];
                repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
                let scale = |r: usize, i: usize| (scales[r] >> (8 * i) & 63) as i32 - ZERO;
                let part = |i: usize| part_of_operand(words[i / 2], signs << (4 * (i / 2)), i as u32 % 2);
                sum_sixteens(part, scale, &columns, &mut total);
            });
            add_scaled(&total, d, x, sums);
        }
    }
}

#[device]
impl Halves for q3_k {
    /// `d` of both rows, each twice, as often as weights are larger; the scales of both.
    type Scales = ([u32; 2], [[u32; 3]; 2]);

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, _: u32) -> Self::Scales {
        let row = warp::lane_id() / 4;
        let (d, scales) = (unit.add(D).cast::<u16>().add(row), unit.add(SCALES).cast::<u32>());
        // SAFETY: the caller's promise.
        unsafe {
            let d = [d.get(0), d.get(8)].map(|d| scaled_half(d.into(), 0, HALVES_FACTOR / Self::FACTOR));
            (d, [scales_of_row(scales, row), scales_of_row(scales, row + 8)])
        }
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        (d, scales): &Self::Scales,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        const BIASED: u32 = f16x2::splat(f16::from_f32_const(1024.0 + ZERO as f32));
        let at = 32 * pair + warp::lane_id();
        // SAFETY: the caller's promise.
        let (word, signs) = unsafe {
            (unit.cast::<u32>().get(2 * at + odd), unit.add(SIGNS).cast::<u32>().get(at) << (4 * odd))
        };
        let scales = scales.map(|of_row| scales_of_pair(of_row, pair));
        let scale = |r: usize, half: u32| {
            let scale = f16x2::bytes(scales[r], EXPONENTS, 0x4040 + 0x0101 * (2 * odd + half));
            f16x2::mul(f16x2::sub(scale, BIASED), d[r])
        };
        let scales = [scale(0, 0), scale(1, 0), scale(0, 1), scale(1, 1)];
        let ([a, b], [c, e]) = (part_of_operand(word, signs, 0), part_of_operand(word, signs, 1));
        halves_of_bytes::<true, APART>([a, b, c, e], scales, None)
    }
}

/// The first operand of 16 columns, half `half` of a block, of its word of two bits and that of signs, whose first is the block's: signed, the upper three
/// bits of bytes.
#[device]
#[inline(always)]
fn part_of_operand(word: u32, signs: u32, half: u32) -> [u32; 2] {
    const BITS: u32 = 0x6060_6060;
    const SIGN: u32 = 0x8080_8080;
    let (word, signs) = (word << (4 * half), signs << (2 * half));
    [(word >> 1) & BITS | signs & SIGN, (word << 1) & BITS | (signs << 1) & SIGN]
}
