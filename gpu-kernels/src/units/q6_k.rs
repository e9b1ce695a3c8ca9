//! Q6_K: the low four bits of each value as in Q4_0's units, a lane's 16 bytes for a pair of blocks of 32, rotated so that those of columns `4 c ..` are in
//! bits 2 to 5 of a byte and those of `16 + 4 c ..` there after a rotation by four; then `[pair][lane][block]` words with the two high bits,
//! those of a signed number: of columns `4 c ..` of row `r` in bits 6 and 7, of row `r + 8` in 4 and 5, of columns `16 + 4 c ..` below them;
//! then for each row its 16 scales, and `d` for each row.

use super::q4_0::{nibbles_of_place, place_of_nibbles};
use super::{
    EXPONENTS, HALVES_FACTOR, Halves, SIGNED, Unit, add_scaled, half, halves_of_bytes, scaled_half,
    signed_byte_of, word,
};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::mma::mma_m16n8k16_s8;
use cuda_std::{f16x2, prelude::*};

/// Where the high bits of a unit begin, the scales, and `d`.
#[device]
const HIGH: u32 = 2048;
#[device]
const SCALES: u32 = HIGH + 1024;
#[device]
const D: u32 = SCALES + 256;

/// A block in a file: 128 bytes of low bits, 64 of high bits, 16 scales, `d`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q6_k;

/// The six bits of column `column` of a block in a file.
///
/// # Safety
/// `block` leads to one; `column` is below 256.
#[device]
#[inline(always)]
unsafe fn quant(block: *const u8, column: u32) -> u8 {
    // 128 columns at a time: quarters of 32, of which the first and third share bytes, the second and fourth.
    let (part, quarter, l) = (column / 128, column / 32 % 4, column % 32);
    // SAFETY: the caller's promise.
    unsafe {
        let low = *block.add((64 * part + 32 * (quarter % 2) + l) as usize) >> (4 * (quarter / 2)) & 15;
        let high = *block.add((128 + 32 * part + l) as usize) >> (2 * quarter) & 3;
        low | high << 4
    }
}

#[device]
impl Unit for q6_k {
    const COLS: u32 = 256;
    const BYTES: u32 = D + 32;
    /// Values are multiplied as the upper six bits of bytes.
    const FACTOR: f32 = 4.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < HIGH {
                // A byte of the word of nibbles after a rotation to the left by 2.
                let (r, block, column) = place_of_nibbles(index % 512 / 4 * 4);
                let first = (2 * (index / 512) + block) * 32 + column;
                let mut word = 0;
                repeat(4, |i| {
                    let nibble = |column: u32| u32::from(quant(row(r), column) & 15);
                    word |= (nibble(first + i as u32) | nibble(first + 16 + i as u32) << 4) << (8 * i);
                });
                (word.rotate_left(2) >> (8 * (index % 4))) as u8
            } else if index < SCALES {
                let (pair, lane) = ((index - HIGH) / 256, (index - HIGH) / 8 % 32);
                let (block, byte) = (2 * pair + (index - HIGH) / 4 % 2, index % 4);
                let mut bits = 0;
                repeat(4, |k| {
                    let (r, column) =
                        (lane / 4 + 8 * (k as u32 % 2), 4 * (lane % 4) + 16 * (k as u32 / 2) + byte);
                    // 32 less: the highest bit is the sign.
                    let high = (quant(row(r), 32 * block + column) ^ 32) >> 4;
                    bits |= high << (6 - 2 * k);
                });
                bits
            } else if index < D {
                *row((index - SCALES) / 16).add((192 + (index - SCALES) % 16) as usize)
            } else {
                *row((index - D) / 2).add((208 + (index - D) % 2) as usize)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (block, second) = (column / 32, column / 16 % 2);
        // SAFETY: the caller's promise.
        unsafe {
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let low = word(unit.add(at as usize)).rotate_right(2 + 4 * second);
            let lane = 4 * (r % 8) + column % 16 / 4;
            let high = word(unit.add((HIGH + block / 2 * 256 + 8 * lane + block % 2 * 4) as usize));
            let high = high >> (6 - 2 * (r / 8 + 2 * second));
            let scale = *unit.add((SCALES + 16 * r + column / 16) as usize) as i8;
            let d = half(unit.add((D + 2 * r) as usize)).mul_rn(scale.into());
            let mut values = [0.0; 4];
            repeat(4, |j| {
                let q = (low >> (8 * j) & 15) << 2 | (high >> (8 * j) & 3) << 6;
                values[j] = d.mul_rn(((q as u8 as i8) >> 2).into());
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
            let words = unit.cast::<[u32; 4]>();
            let high_words = unit.add(HIGH).cast::<[u32; 2]>();
            let scales = unit.add(SCALES).cast::<[u32; 4]>();
            let scales = [scales.get(row), scales.get(row + 8)];
            let d = unit.add(D).cast::<f16>();
            let d = [Element::to_f32(d.get(row)), Element::to_f32(d.get(row + 8))];
            let mut total = [[0i32; 4]; G];
            repeat(4, |pair| {
                let w = words.get(pair as u32 * 32 + lane);
                let high = high_words.get(pair as u32 * 32 + lane);
                let mut columns = [[0; 4]; G];
                repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
                let scale = |r: usize, i: usize| signed_byte_of(scales[r][pair], i as u32);
                // 16 columns: half `i % 2` of block `i / 2`.
                let part =
                    |i: usize| part_of_operand([w[i / 2 * 2], w[i / 2 * 2 + 1]], high[i / 2], (i % 2) as u32);
                sum_sixteens(part, scale, &columns, &mut total);
            });
            add_scaled(&total, d, x, sums);
        }
    }
}

/// Adds the products of a pair of blocks of 32 columns, 16 of them at a time: `part(i)` is the first operand of columns `16 i ..`, `scale(r, i)` what their
/// products of this lane's row `r` of two are multiplied with.
///
/// # Safety
/// All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(super) unsafe fn sum_sixteens<const G: usize>(
    part: impl Fn(usize) -> [u32; 2],
    scale: impl Fn(usize, usize) -> i32,
    columns: &[[u32; 4]; G],
    total: &mut [[i32; 4]; G],
) {
    repeat(4, |i| {
        let a = part(i);
        let s = [scale(0, i), scale(1, i)];
        repeat(G, |g| {
            // SAFETY: the caller's promise.
            let dot = unsafe { mma_m16n8k16_s8(a, columns[g][i], [0; 4]) };
            repeat(4, |k| total[g][k] += s[k / 2] * dot[k]);
        });
    });
}

#[device]
impl Halves for q6_k {
    /// `d` of both rows, each twice, as often as weights are larger.
    type Scales = [u32; 2];

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, _: u32) -> [u32; 2] {
        let d = unit.add(D).cast::<u16>().add(warp::lane_id() / 4);
        // SAFETY: the caller's promise.
        let d = unsafe { [d.get(0), d.get(8)] };
        d.map(|d| scaled_half(d.into(), 0, HALVES_FACTOR / Self::FACTOR))
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        d: &[u32; 2],
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        let lane = warp::lane_id();
        let at = 2 * (32 * pair + lane) + odd;
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 2]>().get(at);
            let high = unit.add(HIGH).cast::<u32>().get(at);
            // Of each row those of both halves of the block.
            let scales = unit.add(SCALES).cast::<u16>().add(8 * (lane / 4) + 2 * pair + odd);
            let scales = [scales.get(0), scales.get(64)].map(|scales| u32::from(scales ^ 0x8080));
            let scale = |r: usize, half: u32| {
                let scale = f16x2::bytes(scales[r], EXPONENTS, 0x4040 + 0x0101 * half);
                f16x2::mul(f16x2::sub(scale, SIGNED), d[r])
            };
            let scales = [scale(0, 0), scale(1, 0), scale(0, 1), scale(1, 1)];
            let ([a, b], [c, e]) = (part_of_operand(words, high, 0), part_of_operand(words, high, 1));
            halves_of_bytes::<true, APART>([a, b, c, e], scales, None)
        }
    }
}

/// The first operand of 16 columns, half `half` of a block, of its words of low bits and that of high ones: signed, the upper six bits of bytes.
#[device]
#[inline(always)]
fn part_of_operand([v, w]: [u32; 2], high: u32, half: u32) -> [u32; 2] {
    const LOW_BITS: u32 = 0x3c3c_3c3c;
    const HIGH_BITS: u32 = 0xc0c0_c0c0;
    let (turn, h) = (4 * half, high << (4 * half));
    let (v, w) = (v.rotate_right(turn), w.rotate_right(turn));
    [v & LOW_BITS | h & HIGH_BITS, w & LOW_BITS | (h << 2) & HIGH_BITS]
}
