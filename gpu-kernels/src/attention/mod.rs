//! Causal grouped-query attention over pages, for ragged batches.
//!
//! # One arithmetic for all kernels, but for those of tensor cores
//! A row of the batch gets the same bits from every kernel of one kind, whatever else is in the batch, however a
//! prompt was cut into chunks and whether its prefix was cached (a zero may differ in sign). There are two kinds: the kernels
//! `mma` round queries and weights to the pages' format, see [`prefill_mma`] for their arithmetic; the others
//! round nothing but the result. For a row that sees `num_keys` keys (its position + 1), and one head, these compute:
//!
//! 1. `q` is multiplied with `log2(e) / sqrt(head_dim)`, so that the softmax is one of powers of 2.
//! 2. A score is two chains of fused multiply-adds, over even and over odd dimensions in ascending order, then
//!    their sum.
//! 3. The pages of the row are cut into splits of [`split_pages`]`(num_keys)` pages: a function of the row's own
//!    length. In a split, pages follow each other in the online softmax of Milakov and Gimelshein 2018 ("Online
//!    normalizer calculation for softmax"): key `i` of a page belongs to lane `i`, which sums the weights of
//!    its keys; values are accumulated key by key, in order. At the end of a split the lanes' sums are added in
//!    a butterfly.
//! 4. Splits are merged in order (as in Flash-Decoding, Dao et al. 2023); the result is divided by the merged sum.
//!
//! Every multiply-add is written as one, so that nothing is left to the compiler's choice; pages and splits without a
//! visible key change nothing and never make a NaN of infinities (see [`Partial`] and [`Merged`]).
//!
//! Pages of eight bits are decoded, which is exact in f32; tensor cores are given the values rounded to f16.
//!
//! # Arguments that all kernels share
//! See [`Attention`]. Row `r` of sequence `s` has the position `kv_len[s] - (query_start[s + 1] - r)`.
//!
//! The rows' own K and V are in the pages already. `num_attention_heads` is any multiple of
//! `num_key_value_heads`: query head `h` reads key-value head `h / (num_attention_heads /
//! num_key_value_heads)`.

use cuda_std::prelude::*;
use cuda_std::tensor_map::TensorMap;

#[device]
use crate::{grid::repeat, vector::Group};

pub mod any;
pub mod decode;
pub mod decode_merged;
pub mod decode_mma;
pub mod decode_staged;
pub mod formats;
pub mod prefill;

pub mod prefill_mma;
pub mod prefill_tiled;
pub mod prefill_wgmma;

mod decode_registers;
mod decode_softmax;
mod decode_split;
mod mma_segment;
mod mma_softmax;
mod mma_stages;
mod wgmma_segment;

/// The most splits that a row is cut into.
pub const MAX_SPLITS: u32 = 64;

/// The fewest pages of a split (but for a row's last).
pub const MIN_SPLIT_PAGES: u32 = 2;

/// Pages of each split of a row that sees `num_keys` keys, a power of two.
pub const fn split_pages(num_keys: u32) -> u32 {
    let pages = num_keys.div_ceil(crate::PAGE_SIZE);
    let needed = pages.div_ceil(MAX_SPLITS).next_power_of_two();
    if needed < MIN_SPLIT_PAGES { MIN_SPLIT_PAGES } else { needed }
}

/// Splits of a row that sees `num_keys` keys.
pub const fn num_splits(num_keys: u32) -> u32 {
    num_keys.div_ceil(crate::PAGE_SIZE).div_ceil(split_pages(num_keys))
}

/// The most splits of any row that sees at most `max_keys` keys. ([`num_splits`] itself falls where splits grow.)
pub const fn max_splits(max_keys: u32) -> u32 {
    let splits = max_keys.div_ceil(crate::PAGE_SIZE).div_ceil(MIN_SPLIT_PAGES);
    if splits < MAX_SPLITS { splits } else { MAX_SPLITS }
}

/// `log2(e) / sqrt(head_dim)`.
#[device]
#[inline(always)]
pub fn query_scale<const HEAD_DIM: usize>() -> f32 {
    const LOG2_E: f64 = core::f64::consts::LOG2_E;
    const {
        match HEAD_DIM {
            32 => (LOG2_E * core::f64::consts::FRAC_1_SQRT_2 / 4.0) as f32,
            64 => (LOG2_E / 8.0) as f32,
            128 => (LOG2_E * core::f64::consts::FRAC_1_SQRT_2 / 8.0) as f32,
            256 => (LOG2_E / 16.0) as f32,
            _ => panic!("head_dim is 32, 64, 128 or 256"),
        }
    }
}

/// What all kernels take; `num_sequences` and `max_blocks` are as in `engine/core/batch.rs`. Kernels of decoding do not look at
/// `min_rows`, those of prefill not at what stands between it and the arrays, nor at the scratch.
#[kernel_args]
pub struct Attention<E> {
    pub num_tokens: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    /// `num_attention_heads / num_key_value_heads`
    pub heads_per_group: u32,
    /// Rows of sequences that have fewer rows in the batch are skipped: 1 computes all, 2 leaves single rows to the kernels of
    /// decoding.
    pub min_rows: u32,
    /// The row of the batch that the grid's first one computes.
    pub first_row: u32,
    /// Rows of sequences that have more rows in the batch are skipped: `u32::MAX` computes all, 1 leaves longer sequences to the
    /// kernels of prefill.
    pub max_rows: u32,
    /// Third dimension of the grid and of the scratch, at least the kernel's `max_splits` of the longest row.
    pub num_splits: u32,
    /// Splits of a block, a power of two, of kernels that take several, one after the other: then the grid has so many fewer blocks.
    pub splits_at_once: u32,
    /// Of kernels of single rows: whether the next kernel starts behind this one's wait, if not 0, or at once. Where its blocks take a multiprocessor for
    /// themselves they come too soon.
    pub starts_next_late: u32,
    /// u32 `[num_tokens]`
    pub sequence_of_token: *const u32,
    /// u32 `[num_sequences + 1]`
    pub query_start: *const u32,
    /// u32 `[num_sequences]`
    pub kv_len: *const u32,
    /// u32 `[num_sequences, max_blocks]`
    pub block_table: *const u32,
    pub max_blocks: u32,
    /// f32 `[num_tokens, num_attention_heads * head_dim]`
    pub q: *const f32,
    /// Of kernels that take several: the formats of K, of V and of `out`, numbers of [`formats`].
    pub k_format: u32,
    pub v_format: u32,
    pub out_format: u32,
    /// Of kernels of decoding for pages of eight bits: the format of `k_new` and `v_new`, or [`formats::NONE`]: no row is there.
    pub new_format: u32,
    /// Newest keys of rows that are not in the pages yet: the kernel stores them there. `[pages, num_key_value_heads, PAGE_SIZE, head_dim]`, row
    /// `r` of the batch as that of slot `r`
    pub k_new: *const u8,
    /// Their values
    pub v_new: *const u8,
    /// E, one layer's `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`, in eight bits as [`formats`] says
    pub k_pages: *const E,
    /// As `k_pages`
    pub v_pages: *const E,
    /// Of kernels that copy boxes, of a page's rows: maps of both, as matrices `[num_pages * num_key_value_heads * PAGE_SIZE, head_dim]`
    pub k_map: *const TensorMap,
    pub v_map: *const TensorMap,
    /// Scratch, f32 `[grid.x, num_attention_heads, num_splits, head_dim]`: each split's weighted sum of values. Splits that a row
    /// does not have are left as they were.
    pub partials: *mut f32,
    /// Scratch, f32 `[grid.x, num_attention_heads, num_splits, 2]`: each split's largest score (to the base 2) and sum of weights
    pub statistics: *mut f32,
    /// Scratch, u32 `[grid.x, num_key_value_heads]`, 0 before the first launch, and again after each
    pub counters: *mut u32,
    /// E `[num_tokens, num_attention_heads * head_dim]`; rows that are skipped are left alone
    pub out: *mut E,
}

/// A sequence's part of a batch.
#[device]
#[derive(Clone, Copy)]
pub struct Sequence {
    /// Its pages, in order.
    pub blocks: *const u32,
    /// Keys in its pages.
    pub kv_len: u32,
    /// Its first row.
    pub start: u32,
    /// The row after its last.
    pub end: u32,
}

#[device]
impl<E> Attention<E> {
    /// The sequence that `row` belongs to.
    ///
    /// # Safety
    /// The arrays are as described and `row` is a row of the batch.
    #[inline(always)]
    pub unsafe fn sequence_of(&self, row: u32) -> Sequence {
        // SAFETY: the caller's promise.
        unsafe {
            let sequence = *self.sequence_of_token.add(row as usize) as usize;
            Sequence {
                blocks: self.block_table.add(sequence * self.max_blocks as usize),
                kv_len: *self.kv_len.add(sequence),
                start: *self.query_start.add(sequence),
                end: *self.query_start.add(sequence + 1),
            }
        }
    }
}

#[device]
impl Sequence {
    /// Its rows in this batch.
    #[inline(always)]
    pub fn num_rows(&self) -> u32 {
        self.end - self.start
    }

    /// Keys that `row` sees: its position + 1.
    #[inline(always)]
    pub fn num_keys(&self, row: u32) -> u32 {
        self.kv_len - (self.end - row) + 1
    }

    /// Element of a layer's pages where key-value head `head` of the sequence's page `index` starts.
    ///
    /// # Safety
    /// The sequence has more than `index` pages.
    #[inline(always)]
    pub unsafe fn page_offset(
        &self,
        index: u32,
        num_key_value_heads: u32,
        head: u32,
        head_dim: usize,
    ) -> usize {
        // SAFETY: the caller's promise.
        let page = unsafe { *self.blocks.add(index as usize) } as usize;
        (page * num_key_value_heads as usize + head as usize) * crate::PAGE_SIZE as usize * head_dim
    }
}

/// The largest of two running maxima and what to subtract from scores for it: the maximum itself, but 0 while no key
/// was seen, since -∞ - (-∞) would be NaN.
#[device]
#[inline(always)]
fn new_maximum(a: f32, b: f32) -> (f32, f32) {
    let max = a.max(b);
    (max, if max == f32::NEG_INFINITY { 0.0 } else { max })
}

/// A split's online softmax of one query, held by a warp. `N` of the head's dimensions belong to each lane.
#[device]
#[derive(Clone, Copy)]
pub struct Partial<const N: usize> {
    /// The largest score so far, the same in every lane.
    pub max: f32,
    /// The sum of this lane's weights, relative to `max`.
    pub sum: f32,
    /// The weighted sum of values in this lane's dimensions, relative to `max`.
    pub acc: [f32; N],
}

#[device]
impl<const N: usize> Partial<N> {
    /// No keys.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [0.0; N] };

    /// Takes in the scores of a page, one a lane, -∞ for keys that the row does not see; returns the weight of
    /// this lane's key. A page of which no key is seen changes nothing: the shrinking factor is 2^0 and the
    /// weights are 2^-∞.
    ///
    /// All 32 lanes of the warp must call it together.
    #[inline(always)]
    pub fn add_scores(&mut self, score: f32) -> f32 {
        let (max, reference) = new_maximum(self.max, warp::reduce_max(score));
        let shrink = (self.max - reference).exp2();
        let weight = (score - reference).exp2();
        self.max = max;
        self.sum = self.sum.mul_add(shrink, weight);
        repeat(N, |d| self.acc[d] *= shrink);
        weight
    }

    /// Takes in the value of one key, this lane's dimensions of it.
    #[inline(always)]
    pub fn add_value(&mut self, weight: f32, value: [f32; N]) {
        repeat(N, |d| self.acc[d] = weight.mul_add(value[d], self.acc[d]));
    }
}

/// The merge of the splits so far of one query.
#[device]
#[derive(Clone, Copy)]
pub struct Merged<const N: usize> {
    max: f32,
    sum: f32,
    acc: [f32; N],
}

#[device]
impl<const N: usize> Merged<N> {
    /// No splits.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [0.0; N] };

    /// Takes in the next split: its maximum, the sum of its weights over all lanes, its accumulators. A split
    /// without keys (-∞, 0, 0) changes nothing: the factors are 2^0 and 2^-∞.
    #[inline(always)]
    pub fn add_split(&mut self, max: f32, sum: f32, acc: [f32; N]) {
        let (new_max, reference) = new_maximum(self.max, max);
        let (old, new) = ((self.max - reference).exp2(), (max - reference).exp2());
        self.max = new_max;
        self.sum = sum.mul_add(new, self.sum * old);
        repeat(N, |d| self.acc[d] = acc[d].mul_add(new, self.acc[d] * old));
    }

    /// Takes in what a warp holds and empties it.
    ///
    /// All 32 lanes of the warp must call it together.
    #[inline(always)]
    pub fn take(&mut self, partial: &mut Partial<N>) {
        self.add_split(partial.max, warp::reduce_sum(partial.sum), partial.acc);
        *partial = Partial::EMPTY;
    }

    /// The attention's output.
    #[inline(always)]
    pub fn output(&self) -> [f32; N] {
        let mut output = self.acc;
        repeat(N, |d| output[d] /= self.sum);
        output
    }
}

/// Bytes that a row of K in shared memory is longer than the key: with them, 16-byte accesses of 8 lanes to 8
/// neighbouring rows touch every bank once.
#[device]
const PADDING: usize = 16;

/// 16-byte words of a row of K in shared memory, and of V.
#[device]
const fn row_words<E, const HEAD_DIM: usize>() -> (u32, u32) {
    let bytes = HEAD_DIM * size_of::<E>();
    (((bytes + PADDING) / 16) as u32, (bytes / 16) as u32)
}

/// A score in the making: the two chains of fused multiply-adds.
#[device]
#[derive(Clone, Copy)]
pub struct Score([f32; 2]);

#[device]
impl Score {
    pub const ZERO: Self = Self([0.0; 2]);

    /// Four more dimensions.
    #[inline(always)]
    pub fn add(&mut self, q: [f32; 4], k: [f32; 4]) {
        self.0[0] = q[0].mul_add(k[0], self.0[0]);
        self.0[1] = q[1].mul_add(k[1], self.0[1]);
        self.0[0] = q[2].mul_add(k[2], self.0[0]);
        self.0[1] = q[3].mul_add(k[3], self.0[1]);
    }

    /// The score.
    #[inline(always)]
    pub fn value(self) -> f32 {
        self.0[0] + self.0[1]
    }
}

/// Values `4i .. 4i + 4` of the 16 bytes that `lanes` were loaded from.
#[device]
#[inline(always)]
fn four(lanes: &[f32], i: usize) -> [f32; 4] {
    [lanes[4 * i], lanes[4 * i + 1], lanes[4 * i + 2], lanes[4 * i + 3]]
}

/// Writes a query to shared memory, multiplied with [`query_scale`]; the lanes of one warp each take some dimensions.
///
/// # Safety
/// `q` leads to `HEAD_DIM` values, `shared` to room for them.
#[device]
#[inline(always)]
unsafe fn stage_query<const HEAD_DIM: usize>(q: *const f32, shared: Shared<f32>) {
    let mut d = warp::lane_id();
    while d < HEAD_DIM as u32 {
        // SAFETY: `d` is below HEAD_DIM.
        unsafe { shared.set(d, *q.add(d as usize) * query_scale::<HEAD_DIM>()) }
        d += 32;
    }
}

/// Values that are loaded before the first of them is used, so that their latencies overlap.
#[device]
const AHEAD: usize = 4;

/// A warp's query against the first `keys` keys of a page. `key_word(key, i)` loads 16-byte word `i` of a key,
/// `value(key)` this lane's dimensions of a value; both are asked for keys below `keys` only. Where there are
/// fewer keys than lanes, the last one stands in and is given the weight 0.
///
/// # Safety
/// The query is complete in shared memory; all lanes of the warp call it together, with the same `keys`, at least 1.
#[device]
#[inline(always)]
unsafe fn attend_page<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
    partial: &mut Partial<N>,
    query: Shared<f32>,
    keys: u32,
    key_word: impl Fn(u32, usize) -> [u32; 4],
    value: impl Fn(u32) -> [f32; N],
) {
    let lane = warp::lane_id();
    let query = query.cast::<[f32; 4]>();
    let mut score = Score::ZERO;
    repeat(HEAD_DIM / E::LANES / AHEAD, |i| {
        let mut words = [[0; 4]; AHEAD];
        repeat(AHEAD, |j| words[j] = key_word(lane.min(keys - 1), AHEAD * i + j));
        repeat(AHEAD, |j| {
            let lanes = E::unpack(words[j]);
            repeat(E::LANES / 4, |k| {
                let quad = (AHEAD * i + j) * (E::LANES / 4) + k;
                // SAFETY: inside the query.
                score.add(unsafe { query.get(quad as u32) }, four(lanes.as_ref(), k));
            });
        });
    });
    let weight = partial.add_scores(if lane < keys { score.value() } else { f32::NEG_INFINITY });
    let mut key = 0;
    while key < keys {
        let mut values = [[0.0; N]; 2 * AHEAD];
        repeat(2 * AHEAD, |j| values[j] = value((key + j as u32).min(keys - 1)));
        repeat(2 * AHEAD, |j| partial.add_value(warp::shuffle_idx(weight, key + j as u32), values[j]));
        key += 2 * AHEAD as u32;
    }
}
