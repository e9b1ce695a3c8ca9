//! Two bits of each value, as Q2_K and Q3_K have them: `[pair of blocks of 32][lane][block]` words, of columns `4 c ..` of row `r` in bits 6 and 7 of a byte,
//! of row `r + 8` in 4 and 5, of columns `16 + 4 c ..` below them.

#[device]
use crate::grid::repeat;
use cuda_std::prelude::*;

/// Bytes of these of a unit of 256 columns.
#[device]
pub(super) const BYTES: u32 = 1024;

/// Where a byte of these stands: its block, and of its bits from `6 - 2 k` on the row and the column in the block.
#[device]
#[inline(always)]
fn places(index: u32) -> (u32, impl Fn(u32) -> (u32, u32)) {
    let (lane, byte) = (index / 8 % 32, index % 4);
    let place = move |k: u32| (lane / 4 + 8 * (k % 2), 4 * (lane % 4) + 16 * (k / 2) + byte);
    (index / 256 * 2 + index / 4 % 2, place)
}

/// Byte `index` of these; `quants(r)` leads to the 64 bytes that a row's block of a file has of them: columns `32 j` to `32 j + 31` of 128 are bits `2 j` and
/// `2 j + 1` of 32 bytes.
///
/// # Safety
/// As [`Unit::byte`](super::Unit::byte).
#[device]
#[inline(always)]
pub(super) unsafe fn byte(quants: impl Fn(u32) -> *const u8, index: u32) -> u8 {
    let (block, place) = places(index);
    let mut bits = 0;
    repeat(4, |k| {
        let (r, column) = place(k as u32);
        // SAFETY: the caller's promise.
        let byte = unsafe { *quants(r).add((32 * (block / 4) + column) as usize) };
        bits |= (byte >> (2 * (block % 4)) & 3) << (6 - 2 * k);
    });
    bits
}

/// The word of four columns of row `r` of a unit, from `column` on, and the register of a first operand that they are: `word >> (6 - 2 register)` has them.
///
/// # Safety
/// `unit` leads to these, aligned to four; there are such a row and columns.
#[device]
#[inline(always)]
pub(super) unsafe fn word_of(unit: *const u8, r: u32, column: u32) -> (u32, u32) {
    let (block, lane) = (column / 32, 4 * (r % 8) + column % 16 / 4);
    let at = block / 2 * 256 + 8 * lane + 4 * (block % 2);
    // SAFETY: the caller's promise.
    (unsafe { super::word(unit.add(at as usize)) }, r / 8 + 2 * (column / 16 % 2))
}
