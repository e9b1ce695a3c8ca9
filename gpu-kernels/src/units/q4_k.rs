//! Q4_K: nibbles as in Q4_0's units, a lane's 16 bytes for a pair of blocks of 32; then 16 bytes for each row: `d` and `dmin`, low nibbles of the scales,
//! those of the minima (of even blocks in the low half of a byte, of odd ones in the high half), and the high two bits of all.
//!
//! So the scales of the four even, or odd, blocks come out of two words with a mask and a shift each.

use super::q4_0::{nibbles_of_place, place_of_nibbles};
use super::{
    HALVES_FACTOR, Halves, UNSIGNED, Unit, byte_of, bytes_of_rows, half, halves, halves_of_bytes,
    scaled_halves, word,
};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::mma::{dot4_s8, mma_m16n8k32_s8};
use cuda_std::{f16x2, prelude::*};

/// Bytes of nibbles of a unit.
#[device]
const QUANTS: u32 = 2048;

/// A block in a file: `d`, `dmin`, 12 bytes of scales and minima of six bits, 128 of nibbles.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_k;

/// Scale and minimum of block `j` of 32 values, from their 12 bytes.
///
/// # Safety
/// `scales` leads to them; `j` is below 8.
#[device]
#[inline(always)]
unsafe fn scale_and_minimum(scales: *const u8, j: u32) -> (u8, u8) {
    // SAFETY: the caller's promise.
    let byte = |i: u32| unsafe { *scales.add(i as usize) };
    if j < 4 {
        (byte(j) & 63, byte(j + 4) & 63)
    } else {
        (byte(j + 4) & 15 | byte(j - 4) >> 6 << 4, byte(j + 4) >> 4 | byte(j) >> 6 << 4)
    }
}

#[device]
impl Unit for q4_k {
    const COLS: u32 = 256;
    const BYTES: u32 = QUANTS + 256;
    const FACTOR: f32 = 1.0;
    const DIGITS: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                let (r, block, column) = place_of_nibbles(index % 512);
                let block = 2 * (index / 512) + block;
                // Blocks 2 i and 2 i + 1 share 32 bytes.
                let quants = row(r).add((16 + 32 * (block / 2)) as usize);
                let nibble = |column: u32| *quants.add(column as usize) >> (4 * (block % 2)) & 15;
                return nibble(column) | nibble(column + 16) << 4;
            }
            byte_of_scales(row, index - QUANTS)
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let block = column / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let word = word(unit.add(at as usize)) >> (column / 16 % 2 * 4);
            let [d, minimum] = scales_of_block(unit.add((QUANTS + 16 * r) as usize), block);
            let mut values = [0.0; 4];
            repeat(4, |j| values[j] = d.mul_rn((word >> (8 * j) & 15) as f32).add_rn(-minimum));
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 4]>().add(warp::lane_id());
            let operands = |pair: u32| {
                let [a, b, c, d] = words.get(32 * pair);
                [operand([a, b]), operand([c, d])]
            };
            multiply_superblock(operands, unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for q4_k {
    type Scales = Blocks;

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, odd: u32) -> Blocks {
        // SAFETY: the caller's promise.
        unsafe { Superblock::new(unit.add(QUANTS)).blocks(odd) }
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        scales: &Blocks,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        // SAFETY: the caller's promise.
        let words = unsafe { unit.cast().get(2 * (32 * pair + warp::lane_id()) + odd) };
        if APART {
            let [factors, less] = scales.factors(pair);
            halves_of_nibbles(words, factors, less)
        } else {
            scales.halves::<false>(operand(words), pair)
        }
    }
}

/// The first operand of a block of 32 columns, of its words of row `r` and `r + 8`.
#[device]
#[inline(always)]
pub(super) fn operand([v, w]: [u32; 2]) -> [u32; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    [v & LOW, w & LOW, (v >> 4) & LOW, (w >> 4) & LOW]
}

/// Scales and minima of a lane's two rows of a unit: a byte for each of the four even blocks, and of the odd ones.
#[device]
pub(super) struct Superblock {
    /// `d` and `dmin`, f16.
    d: [u32; 2],
    scales: [[u32; 2]; 2],
    minima: [[u32; 2]; 2],
}

#[device]
impl Superblock {
    /// Of the 16 bytes of each row at `scales`.
    ///
    /// # Safety
    /// They are complete.
    #[inline(always)]
    pub(super) unsafe fn new(scales: Shared<u8>) -> Self {
        const LOW: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x3030_3030;
        let row = warp::lane_id() / 4;
        let mut all = Self { d: [0; 2], scales: [[0; 2]; 2], minima: [[0; 2]; 2] };
        // SAFETY: the caller's promise.
        unsafe {
            let rows = scales.cast::<[u32; 4]>();
            let rows = [rows.get(row), rows.get(row + 8)];
            repeat(2, |r| {
                let [d, s, m, high] = rows[r];
                all.d[r] = d;
                all.scales[r] = [s & LOW | (high << 4) & HIGH, (s >> 4) & LOW | (high << 2) & HIGH];
                all.minima[r] = [m & LOW | high & HIGH, (m >> 4) & LOW | (high >> 2) & HIGH];
            });
        }
        all
    }

    /// Those of the even blocks, or of the odd ones.
    #[inline(always)]
    pub(super) fn blocks(self, odd: u32) -> Blocks {
        let of = |[even, uneven]: [u32; 2]| if odd == 0 { even } else { uneven };
        let Self { d: [low, high], scales, minima } = self;
        let factors = |selector, factor| {
            f16x2::mul(f16x2::bytes(low, high, selector), f16x2::splat(f16::from_f32_const(factor)))
        };
        Blocks {
            d: factors(0x5410, HALVES_FACTOR),
            dmin: factors(0x7632, -HALVES_FACTOR),
            scales: bytes_of_rows(scales.map(of)),
            minima: bytes_of_rows(minima.map(of)),
        }
    }
}

/// Scales and minima of the even, or the odd blocks of a lane's two rows: a half of each word is the first row's, or a byte of two.
#[device]
#[derive(Clone, Copy)]
pub struct Blocks {
    /// Times [`HALVES_FACTOR`]; `dmin` less than 0.
    d: u32,
    dmin: u32,
    scales: [u32; 2],
    minima: [u32; 2],
}

#[device]
impl Blocks {
    /// [`Halves::halves`] of the first operand of block `pair` of these.
    #[inline(always)]
    pub(super) fn halves<const APART: bool>(&self, operand: [u32; 4], pair: u32) -> [[u32; 4]; 2] {
        let [[low, high], [of_low, of_high]] = self.factors(pair);
        let less = Some([of_low, of_high, of_low, of_high]);
        halves_of_bytes::<false, APART>(operand, [low, high, low, high], less)
    }

    /// What both rows of block `pair` of these are multiplied with, and what is added then.
    #[inline(always)]
    fn factors(&self, pair: u32) -> [[u32; 2]; 2] {
        [(self.scales, self.d), (self.minima, self.dmin)].map(|(of, d)| scaled_halves(of, pair, UNSIGNED, d))
    }
}

/// [`Halves::halves`] of a block of nibbles as they are in the unit, with what each row is multiplied with and what is added then: its columns change places, and a nibble is in
/// an f16 with one instruction where it is.
#[device]
#[inline(always)]
pub(super) fn halves_of_nibbles(words: [u32; 2], scales: [u32; 2], less: [u32; 2]) -> [[u32; 4]; 2] {
    const LOW: u32 = 0x000f_000f;
    const HIGH: u32 = 0x00f0_00f0;
    const SIXTEENTH: u32 = f16x2::splat(f16::from_f32_const(1.0 / 16.0));
    const LESS: u32 = f16x2::splat(f16::from_f32_const(-64.0));
    let mut operands = [[0; 4]; 2];
    repeat(4, |i| {
        let (r, apart) = (i % 2, i / 2);
        let word = words[r] >> (8 * apart);
        let low = f16x2::sub(f16x2::masked(word, LOW, UNSIGNED), UNSIGNED);
        let high = f16x2::mul_add(f16x2::masked(word, HIGH, UNSIGNED), SIXTEENTH, LESS);
        repeat(2, |half| {
            let value = if half == 0 { low } else { high };
            operands[half][2 * apart + r] = f16x2::mul_add(value, scales[r], less[r]);
        });
    });
    operands
}

/// Byte `index` of the 16 bytes of scales for each row, whose block in a file is at `row(r)`.
///
/// # Safety
/// As [`Unit::byte`].
#[device]
#[inline(always)]
pub(super) unsafe fn byte_of_scales(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
    let byte = index % 4;
    // SAFETY: the caller's promise.
    unsafe {
        let block = row(index / 16);
        let even = scale_and_minimum(block.add(4), 2 * byte);
        let odd = scale_and_minimum(block.add(4), 2 * byte + 1);
        match index / 4 % 4 {
            0 => *block.add(byte as usize),
            1 => even.0 & 15 | odd.0 << 4,
            2 => even.1 & 15 | odd.1 << 4,
            _ => even.0 >> 4 | odd.0 >> 4 << 2 | even.1 >> 4 << 4 | odd.1 >> 4 << 6,
        }
    }
}

/// Of the 16 bytes of scales of a row what its block `block` of 32 is multiplied with, and what is taken away.
///
/// # Safety
/// `row` leads to them, aligned to two; `block` is below 8.
#[device]
#[inline(always)]
pub(super) unsafe fn scales_of_block(row: *const u8, block: u32) -> [f32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = |word: u32| *row.add((4 * word + block / 2) as usize);
        let low = |word: u32| byte(word) >> (4 * (block % 2)) & 15;
        let high = byte(3) >> (2 * (block % 2));
        let (scale, minimum) = (low(1) | (high & 3) << 4, low(2) | (high >> 4 & 3) << 4);
        [half(row).mul_rn(scale.into()), half(row.add(2)).mul_rn(minimum.into())]
    }
}

/// [`Unit::multiply`] of a format with scales and minima as here: `operands(pair)` are the first operands of the blocks `2 pair` and `2 pair + 1`, `scales`
/// leads to the 16 bytes of each row.
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
pub(super) unsafe fn multiply_superblock<const G: usize>(
    operands: impl Fn(u32) -> [[u32; 4]; 2],
    scales: Shared<u8>,
    x: &Inputs,
    sums: &mut [[f32; 2]; G],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let Superblock { d: of_rows, scales, minima } = Superblock::new(scales);
        let mut total = [[0i32; 4]; G];
        repeat(4, |pair| {
            let a = operands(pair as u32);
            let mut columns = [[0; 4]; G];
            repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
            repeat(2, |h| {
                let scale = |r: usize| byte_of(scales[r][h], pair as u32);
                let s = [scale(0), scale(1)];
                repeat(G, |g| {
                    let dot = mma_m16n8k32_s8(a[h], [columns[g][2 * h], columns[g][2 * h + 1]], [0; 4]);
                    repeat(4, |i| total[g][i] += s[i / 2] * dot[i]);
                });
            });
        });
        repeat(G, |g| {
            let scale = x.scale(g as u32);
            let digits = x.digits(g as u32);
            repeat(2, |r| {
                let [d, dmin] = halves(of_rows[r]);
                let [even, odd] = minima[r];
                let mut minimum = 0;
                repeat(3, |k| {
                    let [of_even, of_odd] = digits[2 - k];
                    minimum = dot4_s8(even, of_even, dot4_s8(odd, of_odd, minimum << 8));
                });
                let dot = (total[g][2 * r] as f32).mul_add(256.0, total[g][2 * r + 1] as f32);
                sums[g][r] += scale * (d * dot - dmin * minimum as f32);
            });
        });
    }
}
