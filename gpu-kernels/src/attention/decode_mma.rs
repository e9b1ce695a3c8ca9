//! Attention of single rows on tensor cores: a warp takes a page of 32 keys for all query heads that share them.
//!
//! `mma.m16n8k16` has 16 rows and a group of heads at most 8, so each query takes two: `q = high + low`, two f16, which together are nearly as
//! good as f32. So do the weights of the values. (Two bf16 would be worth 16 bits: there are no kernels for pages of bf16.) K and V go
//! from memory straight to the registers that the instruction takes: its sums do not care in which order
//! dimensions come, as long as queries and keys agree, and dimensions of the output may be any. A lane with `r = lane / 4` and
//! `c = lane % 4` loads of keys `8 t + r` the 16-byte words `4 j + c` (second operand of `q · kᵀ`: dimensions along k, keys along
//! n), and of values `16 s + 8 u + 2 c` and the next one the words `r + 8 h`, whose halves it pairs (second operand of `p · v`: keys along k;
//! dimension `64 h + 8 r + t` is column `r` of tile `8 h + t`).
//!
//! A block's warps take pages in turn; they are merged in shared memory, and the splits of a row by its last block, as in
//! [`decode_merged`](super::decode_merged). Keys of earlier steps are loaded while the kernel before this one runs.

use cuda_std::prelude::*;

use super::{Attention, MAX_SPLITS};
#[device]
use super::{
    Merged, Sequence,
    decode_registers::{KEY_TILES, Page, Query, parts},
    formats::{AnyFloats, Output, Pages, q8_0},
    new_maximum, query_scale,
};
#[device]
use crate::{
    PAGE_SIZE,
    fused::{launch_dependents, wait_for_dependencies},
    grid::{is_last_block, offset, repeat},
    vector::Group,
};
#[device]
use cuda_std::{memory, mma::MmaElement};

/// Warps of a block.
pub const WARPS: u32 = 8;
/// Threads of a block.
pub const BLOCK_SIZE: u32 = 32 * WARPS;
/// The most query heads that share a key.
pub const MAX_GROUP: u32 = 8;

/// Pages of each split of a row that sees `num_keys` keys: a power of two times the block's warps.
pub const fn split_pages(num_keys: u32) -> u32 {
    WARPS * num_keys.div_ceil(crate::PAGE_SIZE * WARPS).div_ceil(MAX_SPLITS).next_power_of_two()
}

/// The most splits of any row that sees at most `max_keys` keys.
pub const fn max_splits(max_keys: u32) -> u32 {
    let splits = max_keys.div_ceil(crate::PAGE_SIZE * WARPS);
    if splits < MAX_SPLITS { splits } else { MAX_SPLITS }
}

/// Splits that are loaded before the first of them is merged, so that their latencies overlap: those of 10 thousand keys.
#[device]
const MERGED_AT_ONCE: usize = 40;

/// f32 values from one head's output to the next in shared memory.
const fn padded(head_dim: u32) -> u32 {
    head_dim + 8
}

/// The online softmax of head `r`, as far as this lane has seen it.
#[device]
struct Softmax<const TILES: usize> {
    /// The largest score so far, the same in the head's four lanes.
    max: f32,
    /// The sum of this lane's weights, relative to `max`.
    sum: f32,
    /// Relative to `max`, with the weights' high parts (0, 1) and low parts (2, 3).
    acc: [[f32; 4]; TILES],
}

#[device]
impl<const TILES: usize> Softmax<TILES> {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [[0.0; 4]; TILES] };

    /// Takes in the first `keys` keys of a page.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn add_page<P: Pages, const WORDS: usize, const HALVES: usize>(
        &mut self,
        query: &Query<WORDS>,
        page: &Page<P, WORDS, HALVES>,
        keys: u32,
    ) {
        let c = warp::lane_id() % 4;
        let mut scores = [[0.0f32; 2]; KEY_TILES];
        repeat(KEY_TILES, |t| {
            let mut sums = [[0.0f32; 4]; 2];
            repeat(WORDS, |j| {
                let k = P::words(page.k[t][j]);
                repeat(2, |i| {
                    // SAFETY: the caller's promise.
                    sums[i] = unsafe { f16::mma_m16n8k16(query.0[j][i], [k[2 * i], k[2 * i + 1]], sums[i]) };
                });
            });
            repeat(2, |i| {
                let score = (sums[0][i] + sums[1][i]) + (sums[0][2 + i] + sums[1][2 + i]);
                let key = (8 * t + i) as u32 + 2 * c;
                scores[t][i] = if key < keys { score } else { f32::NEG_INFINITY };
            });
        });

        let mut largest = f32::NEG_INFINITY;
        repeat(KEY_TILES, |t| largest = largest.max(scores[t][0]).max(scores[t][1]));
        largest = largest.max(warp::shuffle_xor(largest, 1));
        largest = largest.max(warp::shuffle_xor(largest, 2));
        let (max, reference) = new_maximum(self.max, largest);
        let shrink = (self.max - reference).exp2();
        self.max = max;
        self.sum *= shrink;
        repeat(TILES, |t| repeat(4, |i| self.acc[t][i] *= shrink));

        repeat(2, |s| {
            let mut weights = [0; 4];
            repeat(2, |u| {
                let [a, b] = scores[2 * s + u];
                let (a, b) = ((a - reference).exp2(), (b - reference).exp2());
                self.sum += a + b;
                [weights[2 * u], weights[2 * u + 1]] = parts::<f16>(a, b);
            });
            repeat(HALVES, |h| {
                // Of values `u` and `i`.
                let mut words = [[[0; 4]; 2]; 2];
                repeat(2, |u| repeat(2, |i| words[u][i] = P::words(page.v[s][u][i][h])));
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
        });
    }
}

/// Merges the `count` splits of one head; a warp's lanes each take their dimensions.
///
/// # Safety
/// The splits `first .. first + count`, at most [`MAX_SPLITS`], are written and visible; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn merge_splits<E, const N: usize>(
    merged: &mut Merged<N>,
    launch: &Attention<E>,
    first: usize,
    count: u32,
) where
    f32: Group<N>,
{
    let lane = warp::lane_id();
    // Of splits `lane` and `lane + 32`. Past L1, which may hold older values.
    let mut statistics = [[f32::NEG_INFINITY, 0.0]; 2];
    repeat(2, |i| {
        let split = lane + 32 * i as u32;
        if split < count {
            let place = launch.statistics.cast_const().cast::<[f32; 2]>();
            // SAFETY: inside the splits.
            statistics[i] = unsafe { memory::load_l2(place.add(first + split as usize)) };
        }
    });
    let mut weights = [0.0; 2];
    let (mut max, mut sum, mut acc) = (0.0, 0.0, [0.0f32; N]);
    let mut split = 0;
    while split < count {
        let mut accs = [[0.0f32; N]; MERGED_AT_ONCE];
        repeat(MERGED_AT_ONCE, |i| {
            if split + (i as u32) < count {
                let place = launch.partials.cast_const().cast::<[f32; N]>();
                // SAFETY: inside the splits.
                accs[i] =
                    unsafe { memory::load_l2(place.add((first + split as usize + i) * 32 + lane as usize)) };
            }
        });
        if split == 0 {
            max = warp::reduce_max(statistics[0][0].max(statistics[1][0]));
            repeat(2, |i| weights[i] = (statistics[i][0] - max).exp2());
            sum = warp::reduce_sum(statistics[0][1] * weights[0] + statistics[1][1] * weights[1]);
        }
        repeat(MERGED_AT_ONCE, |i| {
            let split = split + i as u32;
            let weight = warp::shuffle_idx(if split < 32 { weights[0] } else { weights[1] }, split % 32);
            repeat(N, |d| acc[d] = weight.mul_add(accs[i][d], acc[d]));
        });
        split += MERGED_AT_ONCE as u32;
    }
    merged.add_split(max, sum, acc);
}

/// `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v` of the rows `first_row .. first_row + grid.x` on tensor cores, in splits, one block each;
/// the last block of a row merges them.
///
/// Arguments and idea: see the [module](self) and its [parent](super). Two values of bf16 are not enough for what the other kernels
/// promise: pages are f16.
///
/// Grid `[rows, num_key_value_heads, num_splits]`, block `[BLOCK_SIZE, 1, 1]`; at most [`MAX_GROUP`] query heads share a key. `N` is
/// `HEAD_DIM / 32`, `HALVES` is `HEAD_DIM / 64` and `TILES` `HEAD_DIM / 8`.
///
/// # Safety
/// Grid and block are as above, arrays are as described, what is written overlaps nothing, all of it aligned to 16
/// bytes. Of what the kernels before this one write, only `q` and the keys and values of the batch's rows are read.
#[kernel(
    E = [f16],
    (HEAD_DIM, N, HALVES, TILES) = [(64, 2, 1, 8), (128, 4, 2, 16)],
    name = "attention_decode_{E}_mma_h{HEAD_DIM}",
    max_threads = 256,
)]
pub unsafe fn mma<
    E: Pages + Group<N>,
    const HEAD_DIM: usize,
    const N: usize,
    const HALVES: usize,
    const TILES: usize,
>(
    a: Attention<E>,
    #[shared((WARPS * MAX_GROUP * padded(HEAD_DIM)) as usize)] outputs: Shared<f32>,
    #[shared((WARPS * MAX_GROUP) as usize)] statistics: Shared<[f32; 2]>,
    #[shared(1)] is_last: Shared<u32>,
) where
    f32: Group<N>,
{
    // SAFETY: the kernel's own contract.
    unsafe { attend::<E, _, HEAD_DIM, N, HALVES, TILES>(a, a.out, outputs, statistics, is_last) }
}

/// As [`mma`], over pages of eight bits, which are half as many bytes; `out` of any format.
///
/// # Safety
/// As there.
#[kernel(
    E = [q8_0],
    (HEAD_DIM, N, HALVES, TILES) = [(64, 2, 1, 8), (128, 4, 2, 16)],
    name = "attention_decode_{E}_mma_h{HEAD_DIM}",
    max_threads = 256,
)]
pub unsafe fn mma_blocks<
    E: Pages,
    const HEAD_DIM: usize,
    const N: usize,
    const HALVES: usize,
    const TILES: usize,
>(
    a: Attention<E>,
    #[shared((WARPS * MAX_GROUP * padded(HEAD_DIM)) as usize)] outputs: Shared<f32>,
    #[shared((WARPS * MAX_GROUP) as usize)] statistics: Shared<[f32; 2]>,
    #[shared(1)] is_last: Shared<u32>,
) where
    f32: Group<N>,
    f16: Group<N>,
    bf16: Group<N>,
{
    let out = AnyFloats { to: a.out.cast(), format: a.out_format };
    // SAFETY: the kernel's own contract.
    unsafe { attend::<E, _, HEAD_DIM, N, HALVES, TILES>(a, out, outputs, statistics, is_last) }
}

/// # Safety
/// As for the kernels.
#[device]
#[inline(always)]
unsafe fn attend<
    P: Pages,
    O: Output<N>,
    const HEAD_DIM: usize,
    const N: usize,
    const HALVES: usize,
    const TILES: usize,
>(
    a: Attention<P>,
    out: O,
    outputs: Shared<f32>,
    statistics: Shared<[f32; 2]>,
    is_last: Shared<u32>,
) where
    f32: Group<N>,
{
    launch_dependents();
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let (r, c) = (lane / 4, lane % 4);
    let row_of_launch = thread::block_idx_x();
    let row = a.first_row + row_of_launch;
    let (key_value_head, split) = (thread::block_idx_y(), thread::block_idx_z());
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that the
    // kernel is given. Every return and every barrier depends only on what all threads of the block share.
    unsafe {
        let sequence: Sequence = a.sequence_of(row);
        if sequence.num_rows() > a.max_rows {
            return;
        }
        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(PAGE_SIZE);
        let split_pages = split_pages(num_keys);
        let first_page = split * split_pages;
        if first_page >= num_pages {
            return;
        }
        let end_page = (first_page + split_pages).min(num_pages);
        let heads_per_group = a.heads_per_group;
        let page_of = |index: u32| {
            let start = sequence.page_offset(index, a.num_key_value_heads, key_value_head, HEAD_DIM);
            (a.k_pages.add(P::place(start)), a.v_pages.add(P::place(start)))
        };

        // The kernel before this one writes the row's query and the keys of this step; all other keys are there.
        let known = sequence.kv_len - sequence.num_rows();
        let mut index = first_page + warp_id;
        let mut page = Page::<P, N, HALVES>::EMPTY;
        let mut keys = 0;
        let mut loaded = 0;
        let (mut k, mut v) = (a.k_pages, a.v_pages);
        if index < end_page {
            keys = (num_keys - index * PAGE_SIZE).min(PAGE_SIZE);
            loaded = keys.min(known.saturating_sub(index * PAGE_SIZE));
            (k, v) = page_of(index);
            if loaded > 0 {
                page.load::<HEAD_DIM, false>(k, v, 0, loaded);
            }
        }
        wait_for_dependencies();
        // The same for the whole block.
        if end_page == num_pages {
            let newest = num_keys - 1;
            let start =
                sequence.page_offset(newest / PAGE_SIZE, a.num_key_value_heads, key_value_head, HEAD_DIM);
            P::store_newest::<HEAD_DIM>(&a, row, key_value_head, start, newest % PAGE_SIZE);
        }
        if loaded < keys {
            page.load::<HEAD_DIM, true>(k, v, loaded, keys);
        }
        let head = key_value_head * heads_per_group + r.min(heads_per_group - 1);
        let query = Query::<N>::load::<f16>(
            a.q.add(offset(row, a.num_attention_heads, head) * HEAD_DIM),
            query_scale::<HEAD_DIM>(),
        );
        let mut softmax = Softmax::<TILES>::EMPTY;
        // The same for all lanes of the warp.
        while index < end_page {
            softmax.add_page::<P, N, HALVES>(&query, &page, keys);
            index += WARPS;
            if index < end_page {
                keys = (num_keys - index * PAGE_SIZE).min(PAGE_SIZE);
                (k, v) = page_of(index);
                page.load::<HEAD_DIM, false>(k, v, 0, keys);
            }
        }

        let mut sum = softmax.sum;
        sum += warp::shuffle_xor(sum, 1);
        sum += warp::shuffle_xor(sum, 2);
        let stride = padded(HEAD_DIM as u32);
        let place = warp_id * MAX_GROUP + r;
        if c == 0 {
            statistics.set(place, [softmax.max, sum]);
        }
        repeat(HALVES, |h| {
            // Columns 2 c and 2 c + 1 of eight tiles: 16 neighbouring dimensions.
            repeat(2, |i| {
                repeat(2, |j| {
                    let mut quad = [0.0; 4];
                    repeat(4, |k| {
                        let acc = softmax.acc[8 * h + 4 * j + k];
                        quad[k] = acc[i] + acc[2 + i];
                    });
                    let dimension = 64 * h as u32 + 16 * c + (8 * i + 4 * j) as u32;
                    outputs.add(place * stride + dimension).cast::<[f32; 4]>().set(0, quad);
                });
            });
        });
        thread::sync_threads();

        // A warp a head: it merges what the warps found, then, if it is the last block of its row, the splits.
        let has_head = warp_id < heads_per_group;
        let head = key_value_head * heads_per_group + warp_id.min(heads_per_group - 1);
        let mut of_block = [[0.0f32; 2]; WARPS as usize];
        let mut max = f32::NEG_INFINITY;
        repeat(WARPS as usize, |w| {
            of_block[w] = statistics.get(w as u32 * MAX_GROUP + warp_id);
            max = max.max(of_block[w][0]);
        });
        let (mut sum, mut acc) = (0.0f32, [0.0f32; N]);
        repeat(WARPS as usize, |w| {
            // The first warp of a split has a page, so there is a maximum; warps without one weigh nothing.
            let weight = (of_block[w][0] - max).exp2();
            sum = of_block[w][1].mul_add(weight, sum);
            repeat(N, |d| {
                let place = (w as u32 * MAX_GROUP + warp_id) * stride + lane * N as u32 + d as u32;
                acc[d] = outputs.get(place).mul_add(weight, acc[d]);
            });
        });
        let count = num_pages.div_ceil(split_pages);
        let mut merged = Merged::<N>::EMPTY;
        if count == 1 {
            merged.add_split(max, sum, acc);
        } else {
            let first = offset(row_of_launch, a.num_attention_heads, head) * a.num_splits as usize;
            let place = first + split as usize;
            if has_head {
                <f32 as Group<N>>::store_group(a.partials.add(place * HEAD_DIM + lane as usize * N), acc);
                if lane == 0 {
                    <f32 as Group<2>>::store_group(a.statistics.add(2 * place), [max, sum]);
                }
            }
            let counter = a.counters.add((row_of_launch * a.num_key_value_heads + key_value_head) as usize);
            if !is_last_block(counter, count, is_last) {
                return;
            }
            if has_head {
                merge_splits(&mut merged, &a, first, count);
            }
        }
        if has_head {
            let to = offset(row, a.num_attention_heads, head) * HEAD_DIM;
            out.store(to + lane as usize * N, merged.output());
        }
    }
}
