//! Nibbles that stand for other numbers: sixteen signed bytes, of which a permutation takes four.

#[device]
use crate::grid::repeat;
use cuda_std::{f16x2, prelude::*};

/// What nibbles stand for, four of them in a word: a table that needs no memory.
#[device]
#[derive(Clone, Copy)]
pub struct Codes([u32; 4]);

#[device]
impl Codes {
    pub const fn new(codes: [i8; 16]) -> Self {
        let mut words = [0; 4];
        let mut i = 0;
        while i < 16 {
            words[i / 4] |= (codes[i] as u8 as u32) << (8 * (i % 4));
            i += 1;
        }
        Self(words)
    }

    /// What the eight nibbles of a word stand for, a byte each.
    #[inline(always)]
    pub fn of(self, word: u32) -> [u32; 2] {
        // The fourth bit of a selector means something else: it chooses between what both halves of the table have for the other three.
        const THREE_BITS: u32 = 0x7777_7777;
        const FOURTH: u32 = 0x4444_4444;
        const FIRST: u32 = 0x3210_3210;
        let Self([a, b, c, d]) = self;
        let (places, halves) = (word & THREE_BITS, (word >> 1) & FOURTH | FIRST);
        [0, 16].map(|shift| {
            let places = places >> shift;
            f16x2::bytes(f16x2::bytes(a, b, places), f16x2::bytes(c, d, places), halves >> shift)
        })
    }

    /// What `nibble` stands for.
    #[inline(always)]
    pub fn get(self, nibble: u32) -> f32 {
        let Self(words) = self;
        let mut word = words[0];
        repeat(3, |i| {
            if nibble / 4 == i as u32 + 1 {
                word = words[i + 1];
            }
        });
        f32::from((word >> (8 * (nibble % 4))) as i8)
    }
}
