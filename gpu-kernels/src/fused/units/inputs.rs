//! What a block multiplies its weights with: where rows of inputs come from, and how they are staged. See the [module](super).

use cuda_std::{f16x2, prelude::*};

#[device]
use super::stage::CHUNK;
#[device]
use crate::{
    grid::{offset, repeat},
    units::{SIGNS, Unit},
    vector::Group,
};
#[device]
use cuda_std::{
    memory,
    warp::{FULL_MASK, WarpReductionOp, warp_reduce},
};

/// Columns of a chunk that a lane stages.
#[device]
pub(crate) const WIDTH: usize = CHUNK as usize / 32;

/// Staged inputs of one unit, as a lane reads them.
#[device]
#[derive(Clone, Copy)]
pub struct Inputs {
    /// This lane's 16 bytes of the first two blocks of its column; the next two are 64 bytes on.
    pub(super) columns: Shared<[u32; 4]>,
    /// From one group of eight columns to the next, in 16 bytes.
    pub(super) group: u32,
    /// Of this lane's row of the first group: the scale, the sum of squares.
    pub(super) scales: Shared<[f32; 4]>,
    /// Likewise the digits, or the sums of the unit's blocks.
    pub(super) digits: Shared<[u32; 4]>,
}

#[device]
impl Inputs {
    /// Second operands of group `g` of eight columns: for each of the blocks `2 pair` and `2 pair + 1` the registers of its two halves; of halves, for 32
    /// inputs `pair` the registers of two operands.
    ///
    /// # Safety
    /// The inputs are complete and have such columns.
    #[inline(always)]
    pub unsafe fn columns(&self, g: u32, pair: u32) -> [u32; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.columns.get(g * self.group + 4 * pair) }
    }

    /// What the integers of input row `4 g + lane % 4` are multiplied with.
    ///
    /// # Safety
    /// The inputs are complete.
    #[inline(always)]
    pub unsafe fn scale(&self, g: u32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.scales.add(4 * g).cast::<f32>().get(0) }
    }

    /// The sums of that row's integers over each block of 32 columns, as three digits to the base of 256, the lowest first: a signed byte each
    /// for the four even blocks, then for the odd ones.
    ///
    /// # Safety
    /// The inputs are complete, and of a format that [asks](Unit::DIGITS) for them.
    #[inline(always)]
    pub unsafe fn digits(&self, g: u32) -> [[u32; 2]; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let digits = self.digits.add(8 * g);
            let [a, b, c, d] = digits.get(0);
            [[a, b], [c, d], digits.add(1).cast::<[u32; 2]>().get(0)]
        }
    }

    /// The sums of that row's integers over each of the four blocks of 32 columns of the unit.
    ///
    /// # Safety
    /// The inputs are complete, and of a format that [asks](Unit::SUMS) for them.
    #[inline(always)]
    pub unsafe fn sums(&self, g: u32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.digits.cast::<[f32; 4]>().add(8 * g).get(0) }
    }
}

/// Where inputs come from.
#[device]
pub(crate) trait Source {
    /// Whether they are normed: then their squares are summed up.
    const NORMED: bool;

    /// Eight columns of row `i` from `column` on.
    ///
    /// # Safety
    /// There are such a row and columns, and the kernel before this one has ended.
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH];

    /// What they are multiplied with before they are staged, the same for all rows, from L1 where it is there.
    ///
    /// # Safety
    /// There are such columns.
    unsafe fn weight(&self, column: u32) -> [f32; WIDTH];
}

/// f32 rows that are normed.
#[device]
pub(super) struct Normed {
    pub x: *const f32,
    pub norm: *const f32,
    pub cols: u32,
}

#[device]
impl Source for Normed {
    const NORMED: bool = true;

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { load_f32(self.x.add(offset(i, self.cols, column))) }
    }

    #[inline(always)]
    unsafe fn weight(&self, column: u32) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { f32::load_group(self.norm.add(column as usize)) }
    }
}

/// Eight values, from L2.
///
/// # Safety
/// `from` leads to them, aligned to 16 bytes.
#[device]
#[inline(always)]
unsafe fn load_f32(from: *const f32) -> [f32; WIDTH] {
    let mut values = [0.0; WIDTH];
    repeat(WIDTH / 4, |q| {
        // SAFETY: the caller's promise.
        let v = unsafe { memory::load_l2(from.add(4 * q).cast::<[f32; 4]>()) };
        repeat(4, |j| values[4 * q + j] = v[j]);
    });
    values
}

/// Values that inputs are made of.
#[device]
pub(crate) trait Input: Element {
    /// Eight of them, from L2.
    ///
    /// # Safety
    /// `from` leads to them, aligned to 16 bytes.
    unsafe fn load8(from: *const Self) -> [f32; WIDTH];
}

#[device]
impl Input for f32 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { load_f32(from) }
    }
}

#[device]
impl Input for f16 {
    #[inline(always)]
    unsafe fn load8(from: *const Self) -> [f32; WIDTH] {
        let mut values = [0.0; WIDTH];
        // SAFETY: the caller's promise.
        let words = unsafe { memory::load_l2(from.cast::<[u32; 4]>()) };
        repeat(4, |q| (values[2 * q], values[2 * q + 1]) = f16::unpack2(words[q]));
        values
    }
}

/// Rows of `x` as they are, of which `row` says for each input which it is.
#[device]
pub(crate) struct Picked<E, R> {
    pub x: *const E,
    pub cols: u32,
    pub row: R,
}

#[device]
impl<E: Input, R: Fn(u32) -> u32> Source for Picked<E, R> {
    const NORMED: bool = false;

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { E::load8(self.x.add(offset((self.row)(i), self.cols, column))) }
    }

    #[inline(always)]
    unsafe fn weight(&self, _: u32) -> [f32; WIDTH] {
        [1.0; WIDTH]
    }
}

/// Stages a row of a chunk as f16, times a power of two that it shares: this lane's values of it, if it has `some`.
///
/// # Safety
/// As [`stage_bytes_of_chunk`].
#[device]
#[inline(always)]
pub(super) unsafe fn stage_halves_of_chunk(
    values: [f32; WIDTH],
    some: bool,
    row: Shared<u8>,
    scale: Shared<f32>,
) {
    const SIGN: u32 = 1 << 31;
    // The largest value's exponent becomes 14, that of the largest f16 is 15; no scale is below the smallest normal f32.
    const EXPONENT: u32 = 14;
    let mut largest = 0;
    repeat(WIDTH, |j| largest = largest.max(values[j].to_bits() & !SIGN));
    // SAFETY: the caller's promise; a lane's place is its own.
    unsafe {
        let exponent = (warp_reduce(FULL_MASK, largest, WarpReductionOp::Max) >> 23).max(EXPONENT + 1);
        let factor = f32::from_bits((2 * 127 + EXPONENT - exponent) << 23);
        let mut words = [0u32; 4];
        repeat(4, |q| words[q] = f16::pack2(values[2 * q] * factor, values[2 * q + 1] * factor));
        if some {
            row.cast::<[u32; 4]>().set(warp::lane_id(), words);
        }
        if warp::lane_id() == 0 {
            scale.set(0, f32::from_bits((exponent - EXPONENT) << 23));
        }
    }
}

/// Stages a row of a chunk as signed bytes: this lane's values of it, if it has `some`. `low` is from the high bytes' column to that of the low ones.
///
/// # Safety
/// All lanes of the warp call it together; the places belong to the warp, and nobody reads them.
#[device]
#[inline(always)]
pub(super) unsafe fn stage_bytes_of_chunk<W: Unit>(
    values: [f32; WIDTH],
    some: bool,
    columns: Shared<u8>,
    low: u32,
    scale: Shared<f32>,
    digits: Shared<u8>,
) {
    // 127 * 256 and half a digit: what two signed bytes hold, to either side.
    const LARGEST: f32 = 32512.0;
    // Added to an integer it leaves that, and half a digit, in the low bits: the high byte is the nearest, and the low one lacks its sign.
    const ROUND: f32 = 12_582_912.0 + 128.0;
    let lane = warp::lane_id();
    let mut largest = 0.0f32;
    repeat(WIDTH, |j| largest = largest.max(values[j].abs()));
    // The bits of floats that are not negative are ordered as the floats are.
    // SAFETY: the caller's promise; below, places are this lane's own.
    unsafe {
        let largest = f32::from_bits(warp_reduce(FULL_MASK, largest.to_bits(), WarpReductionOp::Max));
        // Neither is exact, nor is the scale below: a digit of theirs is a thousandth of what rounding takes.
        let inverse = if largest >= f32::MIN_POSITIVE { LARGEST * largest.recip_approx() } else { 0.0 };
        let mut sum = 0u32;
        repeat(WIDTH / 4, |q| {
            let mut bits = [0; 4];
            repeat(4, |j| {
                bits[j] = values[4 * q + j].mul_add(inverse, ROUND).to_bits();
                sum = sum.wrapping_add(bits[j]);
            });
            let pairs = [[bits[0], bits[1]], [bits[2], bits[3]]].map(|[a, b]| f16x2::bytes(a, b, 0x5410));
            let low_bytes = f16x2::bytes(pairs[0], pairs[1], 0x6420) ^ SIGNS;
            let high_bytes = f16x2::bytes(pairs[0], pairs[1], 0x7531);
            // Of a pair of blocks columns `4 c ..` of both and of both halves side by side.
            let column = lane * WIDTH as u32 + 4 * q as u32;
            let place = column / 64 * 64 + column / 4 % 4 * 16 + column / 32 % 2 * 8 + column / 16 % 2 * 4;
            if some {
                columns.add(place).cast::<u32>().set(0, high_bytes);
                columns.add(place + low).cast::<u32>().set(0, low_bytes);
            }
        });
        if lane == 0 {
            scale.set(0, largest * const { 1.0 / (LARGEST * W::FACTOR) });
        }
        if W::DIGITS || W::SUMS {
            // Four lanes have a block.
            let sum = sum.wrapping_sub(const { (ROUND.to_bits()).wrapping_mul(WIDTH as u32) }) as i32;
            let sum = sum + warp::shuffle_xor(sum, 1);
            let mut sum = sum + warp::shuffle_xor(sum, 2);
            let block = lane / 4;
            if W::SUMS && lane.is_multiple_of(4) {
                digits.cast::<f32>().set(block, sum as f32);
            } else if lane.is_multiple_of(4) {
                repeat(3, |k| {
                    let digit = sum as i8;
                    sum = (sum - i32::from(digit)) >> 8;
                    digits.set((2 * k as u32 + block % 2) * 4 + block / 2, digit as u8);
                });
            }
        }
    }
}
