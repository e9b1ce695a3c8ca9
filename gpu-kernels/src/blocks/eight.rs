//! Eight neighbouring values of a block at once, as small integers with a scale: what tensor cores get of a matrix that stays as a file has it.

use super::{Blocks, byte, word};
#[device]
use crate::{
    codes::Codes,
    grid::repeat,
    units::{EXPONENTS, UNSIGNED},
};
use cuda_std::{f16x2, prelude::*};

/// Eight values; `k` is `scale * (byte k - zero)`, with the sign that bit `k` of `signs` says where there are any, plus `added`.
#[device]
pub struct Eight {
    /// Unsigned, the first four and the others.
    pub bytes: [u32; 2],
    pub zero: u32,
    pub signs: Option<u32>,
    pub scale: f32,
    pub added: Option<f32>,
}

#[device]
impl Eight {
    /// Of a block that has a scale alone.
    #[inline(always)]
    pub fn new(bytes: [u32; 2], zero: u32, scale: f32) -> Self {
        Self { bytes, zero, signs: None, scale, added: None }
    }

    /// The values times `factor` as f16, two in a word: the scale is rounded, what is added, and the value.
    #[inline(always)]
    pub fn halves(self, factor: f32) -> [u32; 4] {
        let both = |value: f32| f16::pack2(value * factor, value * factor);
        // A byte `b` behind the byte 0x64 is the f16 1024 + b.
        let (zero, scale) = (UNSIGNED + self.zero * 0x0001_0001, both(self.scale));
        // Where the signs of two f16 are the bits of both; eight bits do not meet 15 places on.
        const PLACES: [u32; 4] = [1 << 15 | 1 << 30, 1 << 13 | 1 << 28, 1 << 11 | 1 << 26, 1 << 9 | 1 << 24];
        let mut words = [0; 4];
        repeat(4, |pair| {
            let selector = if pair % 2 == 0 { 0x4140 } else { 0x4342 };
            let value = f16x2::sub(f16x2::bytes(self.bytes[pair / 2], EXPONENTS, selector), zero);
            let value = match self.added {
                Some(added) => f16x2::mul_add(value, scale, both(added)),
                None => f16x2::mul(value, scale),
            };
            words[pair] = match self.signs {
                Some(signs) => value ^ signs.wrapping_mul(PLACES[pair]) & 0x8000_8000,
                None => value,
            };
        });
        words
    }
}

#[device]
impl Codes {
    /// Eight values that stand for those of a table, each the low half of a byte.
    #[inline(always)]
    pub(super) fn eight(self, [first, second]: [u32; 2], scale: f32) -> Eight {
        const SIGNS: u32 = 0x8080_8080;
        // Those of both words in turns.
        let [a, b] = self.of(first | second << 4);
        let bytes = [0x6420, 0x7531].map(|selector| f16x2::bytes(a, b, selector) ^ SIGNS);
        Eight::new(bytes, 128, scale)
    }
}

/// A format whose values are small integers with scales.
#[device]
pub trait Eights: Blocks {
    /// Values `i` to `i + 7` of a block.
    ///
    /// # Safety
    /// `block` leads to a block, aligned to the powers of two up to eight that divide its length; `i` is a multiple of 8 below [`Blocks::VALUES`].
    unsafe fn eight(block: *const u8, i: u32) -> Eight;

    /// Those in the columns `8 eighth` to `8 eighth + 7` of a row.
    ///
    /// # Safety
    /// `row` leads to the blocks of a row that has such columns, aligned as for [`Eights::eight`].
    #[inline(always)]
    unsafe fn at(row: *const u8, eighth: u32) -> Eight {
        let column = 8 * eighth;
        // SAFETY: the caller's row has this block.
        unsafe { Self::eight(row.add(Self::row_bytes(column)), column % Self::VALUES) }
    }
}

/// Eight bytes from byte `at` of a block of `W` on, in loads as wide as blocks and `at` are aligned: by powers of two up to eight that divide the length
/// of a block, and `at`.
///
/// # Safety
/// The block has them.
#[device]
#[inline(always)]
pub(super) unsafe fn eight_bytes<W: Blocks>(block: *const u8, at: u32) -> [u32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let from = block.add(at as usize);
        if W::BYTES.is_multiple_of(8) {
            let both = from.cast::<u64>().read();
            [both as u32, (both >> 32) as u32]
        } else if W::BYTES.is_multiple_of(4) {
            [from.cast::<u32>().read(), from.cast::<u32>().add(1).read()]
        } else {
            [0, 4].map(|i| word(block, at + i) | word(block, at + i + 2) << 16)
        }
    }
}

/// The two f16 of the word at byte `at` of a block, which is a multiple of four.
///
/// # Safety
/// The block has it, and is aligned to four bytes.
#[device]
#[inline(always)]
pub(super) unsafe fn two_halves(block: *const u8, at: u32) -> [f32; 2] {
    // SAFETY: the caller's promise.
    f16::unpack2(unsafe { block.add(at as usize).cast::<u32>().read() }).into()
}

/// The low halves of bytes, or the high ones.
#[device]
#[inline(always)]
pub(super) fn nibbles(words: [u32; 2], high: bool) -> [u32; 2] {
    words.map(|word| (word >> if high { 4 } else { 0 }) & 0x0f0f_0f0f)
}

/// The nibbles of values `i` to `i + 7` of `2 * COUNT`, of which the first `COUNT` are in the low halves of bytes, from byte `at` of a block on.
///
/// # Safety
/// As [`eight_bytes`].
#[device]
#[inline(always)]
pub(super) unsafe fn four_bits<W: Blocks, const COUNT: u32>(block: *const u8, at: u32, i: u32) -> [u32; 2] {
    // SAFETY: the caller's promise.
    nibbles(unsafe { eight_bytes::<W>(block, at + i % COUNT) }, i >= COUNT)
}

/// Bit `k` of eight as bit `to` of byte `k`.
#[device]
#[inline(always)]
pub(super) fn spread(bits: u32, to: u32) -> [u32; 2] {
    [bits & 15, bits >> 4 & 15].map(|bits| ((bits * 0x0020_4081) & 0x0101_0101) << to)
}

/// Bit `from` of each of eight bytes as their bit `to`.
#[device]
#[inline(always)]
pub(super) fn bits(words: [u32; 2], from: u32, to: u32) -> [u32; 2] {
    words.map(|word| ((word >> from) & 0x0101_0101) << to)
}

/// Both, where no bit is in both.
#[device]
#[inline(always)]
pub(super) fn either([a, b]: [u32; 2], [c, d]: [u32; 2]) -> [u32; 2] {
    [a | c, b | d]
}

/// Of eight values of two bits, the first lowest, the bytes of `table` that they choose.
#[device]
#[inline(always)]
pub(super) fn choose_two_bits(table: u32, entry: u32) -> [u32; 2] {
    // Two bits in each nibble.
    let nibbles = (entry | entry << 8) & 0x00ff_00ff;
    let nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f;
    let nibbles = (nibbles | nibbles << 2) & 0x3333_3333;
    [nibbles, nibbles >> 16].map(|selector| f16x2::bytes(table, 0, selector))
}

/// Of four values of three bits, the first lowest, the bytes of `table` that they choose.
#[device]
#[inline(always)]
pub(super) fn choose_three_bits([low, high]: [u32; 2], entry: u32) -> u32 {
    let selector = entry & 7 | (entry & 0x38) << 1 | (entry & 0x1c0) << 2 | (entry & 0xe00) << 3;
    f16x2::bytes(low, high, selector)
}

/// The eight bits that seven stand for: the highest makes their number even.
#[device]
#[inline(always)]
pub(super) fn even_bits(bits: u32) -> u32 {
    let seven = bits & 127;
    seven | (seven.count_ones() & 1) << 7
}

/// The f16 at byte `at` of a block times an integer.
///
/// # Safety
/// As [`super::half`].
#[device]
#[inline(always)]
pub(super) unsafe fn half_times(block: *const u8, at: u32, integer: i32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { super::half(block, at) * integer as f32 }
}

/// The low four bits of byte `at` of a block, or the high ones.
///
/// # Safety
/// The block has it.
#[device]
#[inline(always)]
pub(super) unsafe fn half_byte(block: *const u8, at: u32, high: bool) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { byte(block, at) >> if high { 4 } else { 0 } & 15 }
}
