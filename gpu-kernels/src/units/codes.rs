//! How units have nibbles that stand for other numbers.
//!
//! A lane's 16 bytes for a pair of blocks of 32: of each block the word of row `r` and that of `r + 8`, whose eight nibbles are, from the lowest on,
//! columns `4 c` to `4 c + 3` and those 16 behind them. So four neighbouring nibbles are a selector.

use super::word;
#[device]
use crate::{codes::Codes, grid::repeat};
use cuda_std::prelude::*;

#[device]
impl Codes {
    /// The first operand of a block, of its words of row `r` and `r + 8`.
    #[inline(always)]
    pub(super) fn operand(self, words: [u32; 2]) -> [u32; 4] {
        let [[a, c], [b, d]] = words.map(|word| self.of(word));
        [a, b, c, d]
    }

    /// Four columns of row `r` of the nibbles of a unit, from `column` on.
    ///
    /// # Safety
    /// `nibbles` leads to them, aligned to four; there are such a row and columns.
    #[inline(always)]
    pub(super) unsafe fn quad(self, nibbles: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (block, lane) = (column / 32, 4 * (r % 8) + column % 16 / 4);
        let at = 512 * (block / 2) + 16 * lane + 4 * (r / 8 + 2 * (block % 2));
        // SAFETY: the caller's promise.
        let word = unsafe { word(nibbles.add(at as usize)) } >> (16 * (column / 16 % 2));
        let mut values = [0.0; 4];
        repeat(4, |j| values[j] = self.get(word >> (4 * j) & 15));
        values
    }
}

/// Byte `index` of the nibbles of a unit; `nibbles(r, block)` leads to the 16 bytes of a block in a file, columns `j` and `j + 16` in byte `j`.
///
/// # Safety
/// As [`Unit::byte`](super::Unit::byte).
#[device]
#[inline(always)]
pub(super) unsafe fn byte_of_nibbles(nibbles: impl Fn(u32, u32) -> *const u8, index: u32) -> u8 {
    let (pair, lane, word, byte) = (index / 512, index / 16 % 32, index / 4 % 4, index % 4);
    let column = 4 * (lane % 4) + 2 * (byte % 2);
    // SAFETY: the caller's promise.
    let nibble = |column: u32| unsafe {
        let from = nibbles(lane / 4 + 8 * (word % 2), 2 * pair + word / 2);
        *from.add(column as usize) >> (4 * (byte / 2)) & 15
    };
    nibble(column) | nibble(column + 1) << 4
}
