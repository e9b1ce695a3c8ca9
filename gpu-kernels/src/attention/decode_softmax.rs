//! The online softmax of the kernels that decode on tensor cores: what a warp holds of the heads that share a key.
//!
//! `mma.m16n8k16` has 16 rows and a group of heads at most 8, so each query takes two: `q = high + low`, two f16, which together are nearly as
//! good as f32. So do the weights of the values. (Two bf16 would be worth 16 bits: there are no kernels for pages of bf16.) The sums of `mma`
//! do not care in which order dimensions come, as long as queries and keys agree, and dimensions of the output may be any. So a lane
//! with `r = lane / 4` and `c = lane % 4` takes of keys `8 t + r` the 16-byte words `4 j + c` (second operand of `q · kᵀ`:
//! dimensions along k, keys along n), and of values `16 s + 8 u + 2 c` and the next one the words `r + 8 h`, whose halves it pairs
//! (second operand of `p · v`: keys along k; dimension `64 h + 8 r + t` is column `r` of tile `8 h + t`).

use cuda_std::prelude::*;

#[device]
use super::{decode_registers::parts, new_maximum};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::mma::MmaElement;

/// Scores of head `r` and of this lane's two keys of each tile of eight, of which the first `keys` are seen. `query(j, i)` is the first
/// operand of half `i` of word `4 j + c`, `key(t, j)` that word of key `8 t + r`.
///
/// # Safety
/// All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(super) unsafe fn scores<const KEY_TILES: usize, const WORDS: usize>(
    query: impl Fn(usize, usize) -> [u32; 4],
    key: impl Fn(usize, usize) -> [u32; 4],
    keys: u32,
) -> [[f32; 2]; KEY_TILES] {
    let c = warp::lane_id() % 4;
    let mut sums = [[[0.0f32; 4]; 2]; KEY_TILES];
    repeat(WORDS, |j| {
        let query = [query(j, 0), query(j, 1)];
        repeat(KEY_TILES, |t| {
            let k = key(t, j);
            repeat(2, |i| {
                // SAFETY: the caller's promise.
                sums[t][i] = unsafe { f16::mma_m16n8k16(query[i], [k[2 * i], k[2 * i + 1]], sums[t][i]) };
            });
        });
    });
    let mut scores = [[0.0f32; 2]; KEY_TILES];
    repeat(KEY_TILES, |t| {
        repeat(2, |i| {
            let [even, odd] = sums[t];
            let score = (even[i] + odd[i]) + (even[2 + i] + odd[2 + i]);
            let key = (8 * t + i) as u32 + 2 * c;
            scores[t][i] = if key < keys { score } else { f32::NEG_INFINITY };
        });
    });
    scores
}

/// The online softmax of head `r`, as far as this lane has seen it.
#[device]
pub(super) struct Softmax<const TILES: usize> {
    /// The largest score so far, the same in the head's four lanes.
    pub max: f32,
    /// The sum of this lane's weights, relative to `max`.
    sum: f32,
    /// Relative to `max`, with the weights' high parts (0, 1) and low parts (2, 3).
    acc: [[f32; 4]; TILES],
}

#[device]
impl<const TILES: usize> Softmax<TILES> {
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [[0.0; 4]; TILES] };

    /// Takes in the scores of some keys; returns what they are relative to.
    #[inline(always)]
    pub fn refer<const KEY_TILES: usize>(&mut self, scores: &[[f32; 2]; KEY_TILES]) -> f32 {
        let mut largest = f32::NEG_INFINITY;
        repeat(KEY_TILES, |t| largest = largest.max(scores[t][0]).max(scores[t][1]));
        largest = largest.max(warp::shuffle_xor(largest, 1));
        largest = largest.max(warp::shuffle_xor(largest, 2));
        let (max, reference) = new_maximum(self.max, largest);
        let shrink = (self.max - reference).exp2();
        self.max = max;
        self.sum *= shrink;
        repeat(TILES, |t| repeat(4, |i| self.acc[t][i] *= shrink));
        reference
    }

    /// Adds 16 values, of whose keys the scores are those of two tiles. `value(u, i, h)` is word `r + 8 h` of value `8 u + 2 c + i`.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    pub unsafe fn add_values<const HALVES: usize>(
        &mut self,
        reference: f32,
        scores: [[f32; 2]; 2],
        value: impl Fn(usize, usize, usize) -> [u32; 4],
    ) {
        let mut weights = [0; 4];
        repeat(2, |u| {
            let [a, b] = scores[u];
            let (a, b) = ((a - reference).exp2(), (b - reference).exp2());
            self.sum += a + b;
            [weights[2 * u], weights[2 * u + 1]] = parts::<f16>(a, b);
        });
        repeat(HALVES, |h| {
            // Of values `u` and `i`.
            let mut words = [[[0; 4]; 2]; 2];
            repeat(2, |u| repeat(2, |i| words[u][i] = value(u, i, h)));
            repeat(8, |t| {
                let mut b = [0; 2];
                repeat(2, |u| {
                    let [first, second] = words[u];
                    let (x, y) = (first[t / 2], second[t / 2]);
                    b[u] = if t % 2 == 0 { x & 0xffff | y << 16 } else { x >> 16 | y & 0xffff_0000 };
                });
                let acc = &mut self.acc[8 * h + t];
                // SAFETY: the caller's promise.
                *acc = unsafe { f16::mma_m16n8k16(weights, b, *acc) };
            });
        });
    }

    /// The sum of the head's weights, in all its lanes.
    #[inline(always)]
    pub fn whole_sum(&self) -> f32 {
        let sum = self.sum + warp::shuffle_xor(self.sum, 1);
        sum + warp::shuffle_xor(sum, 2)
    }

    /// Weighted sums of the dimensions `64 h + 16 c + 4 j ..` of head `r`.
    #[inline(always)]
    pub fn quad(&self, h: usize, j: usize) -> [f32; 4] {
        let mut quad = [0.0; 4];
        // Columns 2 c and 2 c + 1 of eight tiles are 16 neighbouring dimensions.
        repeat(4, |k| {
            let acc = self.acc[8 * h + 4 * (j % 2) + k];
            quad[k] = acc[j / 2] + acc[2 + j / 2];
        });
        quad
    }
}
