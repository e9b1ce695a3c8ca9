//! Arithmetic with two f16 in a word at once (PTX's `f16x2`), each rounded to nearest, ties to even; and bytes of words.
//!
//! Route on the device: `asm!` between registers, which nothing else fuses or splits. A NaN is 0x7fff.

use crate::target::f16x2 as target;

/// `value` in both halves.
#[inline(always)]
#[must_use]
pub const fn splat(value: half::f16) -> u32 {
    let bits = value.to_bits() as u32;
    bits | bits << 16
}

/// `a - b`.
#[inline(always)]
#[must_use]
pub fn sub(a: u32, b: u32) -> u32 {
    target::sub(a, b)
}

/// `a * b`.
#[inline(always)]
#[must_use]
pub fn mul(a: u32, b: u32) -> u32 {
    target::mul(a, b)
}

/// `a * b + c`, rounded once.
#[inline(always)]
#[must_use]
pub fn mul_add(a: u32, b: u32, c: u32) -> u32 {
    target::mul_add(a, b, c)
}

/// Four of the eight bytes of `low` (0 to 3) and `high` (4 to 7): byte `i` of the result is the one that bits `4 i` to `4 i + 2` of `selector` name; where bit
/// `4 i + 3` is set it is that byte's sign, eight times. One instruction, `prmt`.
#[inline(always)]
#[must_use]
pub fn bytes(low: u32, high: u32, selector: u32) -> u32 {
    target::bytes(low, high, selector)
}

/// `word & mask | bits` as one instruction, `lop3`; of two constants the compiler would make two.
#[inline(always)]
#[must_use]
pub fn masked(word: u32, mask: u32, bits: u32) -> u32 {
    target::masked(word, mask, bits)
}
