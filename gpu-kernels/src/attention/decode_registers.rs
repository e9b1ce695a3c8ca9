//! What a warp of [`decode_mma`](super::decode_mma) has in registers: a page of keys and values, and the queries that see it.

use cuda_std::prelude::*;

#[device]
use super::formats::Pages;
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::memory;

/// Eight keys that are columns of one instruction.
#[device]
pub(super) const KEY_TILES: usize = 4;

/// A page in the registers of a warp. `WORDS` is the number of times eight values of a key that a lane has, `HALVES` that of a value.
#[device]
pub(super) struct Page<P: Pages, const WORDS: usize, const HALVES: usize> {
    pub k: [[P::Eight; WORDS]; KEY_TILES],
    /// Of value `16 s + 8 u + 2 c + i`.
    pub v: [[[[P::Eight; HALVES]; 2]; 2]; 2],
}

#[device]
impl<P: Pages, const WORDS: usize, const HALVES: usize> Page<P, WORDS, HALVES> {
    pub const EMPTY: Self = Self { k: [[P::EMPTY; WORDS]; KEY_TILES], v: [[[[P::EMPTY; HALVES]; 2]; 2]; 2] };

    /// Starts to load keys `from ..` of a page of which `keys` are to be read, at least 1; the last one stands in for those beyond.
    ///
    /// # Safety
    /// `k` and `v` lead to the page's keys and values, of which the first `keys` are written.
    #[inline(always)]
    pub unsafe fn load<const HEAD_DIM: usize, const NEWEST: bool>(
        &mut self,
        k: *const P,
        v: *const P,
        from: u32,
        keys: u32,
    ) {
        let (r, c) = (warp::lane_id() / 4, warp::lane_id() % 4);
        let word = |base: *const P, key: u32, word: u32| {
            let words = (WORDS * 4) as u32;
            // SAFETY: inside the page.
            unsafe { P::load::<HEAD_DIM, NEWEST>(base, (key.min(keys - 1) * words + word) as usize) }
        };
        repeat(KEY_TILES, |t| {
            let key = 8 * t as u32 + r;
            if key >= from {
                repeat(WORDS, |j| self.k[t][j] = word(k, key, 4 * j as u32 + c));
            }
        });
        repeat(2, |s| {
            repeat(2, |u| {
                repeat(2, |i| {
                    let key = (16 * s + 8 * u + i) as u32 + 2 * c;
                    if key >= from {
                        repeat(HALVES, |h| self.v[s][u][i][h] = word(v, key, 8 * h as u32 + r));
                    }
                });
            });
        });
    }
}

/// Query head `r` in the registers of a warp: for word `4 j + c` of it two first operands.
#[device]
pub(super) struct Query<const WORDS: usize>(pub [[[u32; 4]; 2]; WORDS]);

/// `[high, low]` of two values.
#[device]
#[inline(always)]
pub(super) fn parts<E: PackedElement>(a: f32, b: f32) -> [u32; 2] {
    let high = E::pack2(a, b);
    let (high_a, high_b) = E::unpack2(high);
    [high, E::pack2(a - high_a, b - high_b)]
}

#[device]
impl<const WORDS: usize> Query<WORDS> {
    /// # Safety
    /// `q` leads to the head's values, aligned to 16 bytes; the kernel before this one has ended.
    #[inline(always)]
    pub unsafe fn load<E: PackedElement>(q: *const f32, scale: f32) -> Self {
        let mut query = Self([[[0; 4]; 2]; WORDS]);
        // SAFETY: the caller's promise.
        repeat(WORDS, |j| query.0[j] = unsafe { query_word::<E>(q, scale, j as u32) });
        query
    }
}

/// Word `4 j + c` of a query: two first operands.
///
/// # Safety
/// As for [`Query::load`]; the head has that word.
#[device]
#[inline(always)]
pub(super) unsafe fn query_word<E: PackedElement>(q: *const f32, scale: f32, j: u32) -> [[u32; 4]; 2] {
    let c = warp::lane_id() % 4;
    let mut word = [[0; 4]; 2];
    repeat(2, |i| {
        let from = q.wrapping_add((8 * (4 * j + c)) as usize + 4 * i).cast::<[f32; 4]>();
        // SAFETY: inside the head.
        let v = unsafe { memory::load_l2(from) };
        let [high_0, low_0] = parts::<E>(v[0] * scale, v[1] * scale);
        let [high_1, low_1] = parts::<E>(v[2] * scale, v[3] * scale);
        word[i] = [high_0, low_0, high_1, low_1];
    });
    word
}
