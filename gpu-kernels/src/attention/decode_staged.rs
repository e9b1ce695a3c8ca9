//! As [`decode_mma`](super::decode_mma), with keys and values that wait in shared memory.
//!
//! Registers hold one page of a warp at most, and then leave room for few warps. Here each warp has room of its own in shared memory for a
//! step's keys and its values (`cp.async`): as soon as the keys are multiplied, those of its next step are copied to their place, and so the values,
//! so that a warp always has bytes under way and waits for no other until a split is merged. A step is a page, or half of one where heads are wide.
//! A block takes several splits of a row, one after the other, and copies the next one's pages meanwhile.
//!
//! A row's 16-byte words are copied by neighbouring lanes and lie side by side, in an order that depends on the row, so that the eight lanes
//! which are served at once find their words on different banks.

use cuda_std::prelude::*;

use super::{
    Attention,
    decode_mma::{MAX_GROUP, WARPS},
    decode_split::padded,
};
#[device]
use super::{
    decode_registers::query_word,
    decode_softmax::{Softmax, scores},
    decode_split::Splits,
    formats::Pages,
    query_scale,
};
#[device]
use crate::{
    PAGE_SIZE,
    fused::{launch_dependents, wait_for_dependencies},
    grid::repeat,
    vector::Group,
};
#[device]
use cuda_std::{async_copy, shared::dynamic_shared};

/// Keys of a step.
pub(super) const fn step_keys(head_dim: u32) -> u32 {
    if head_dim == 64 { 32 } else { 16 }
}

/// 16-byte words of a step's keys, and of its values.
const fn step_words(head_dim: u32) -> u32 {
    step_keys(head_dim) * head_dim / 8
}

/// 16-byte words of shared memory for the steps that wait, and for the queries behind them.
const fn words(head_dim: u32) -> (u32, u32) {
    (WARPS * 2 * step_words(head_dim), 2 * head_dim)
}

/// Bytes of dynamic shared memory: the steps that wait, the queries, and what warps found, to be merged.
pub const fn shared_bytes(head_dim: u32) -> u32 {
    let (steps, queries) = words(head_dim);
    16 * (steps + queries) + 4 * WARPS * MAX_GROUP * padded(head_dim)
}

/// Blocks that a multiprocessor of an H100 has room for.
pub const fn min_blocks(head_dim: u32) -> u32 {
    if head_dim == 256 { 1 } else { 2 }
}

/// The step that a warp takes next.
#[device]
#[derive(Clone, Copy)]
struct Step {
    page: u32,
    /// Its first key in the page.
    first: u32,
}

#[device]
impl Step {
    #[inline(always)]
    fn first_key(self) -> u32 {
        self.page * PAGE_SIZE + self.first
    }

    /// Whether it is a step of the row before page `end_page`.
    #[inline(always)]
    fn is_there(self, splits: &Splits, end_page: u32) -> bool {
        self.page < end_page && self.first_key() < splits.num_keys
    }

    #[inline(always)]
    fn next(self, keys: u32) -> Self {
        if self.first + keys < PAGE_SIZE {
            Self { first: self.first + keys, ..self }
        } else {
            Self { page: self.page + WARPS, first: 0 }
        }
    }
}

/// Keys of a step.
#[device]
#[derive(Clone, Copy)]
struct Range {
    from: u32,
    until: u32,
    /// Those that the row sees, at least 1: the last one stands in for those beyond.
    keys: u32,
}

/// Exclusive-or what the word of a row lies where it does: for keys, of which lanes read two rows at a time and four words.
#[device]
#[inline(always)]
fn key_order(row: u32) -> u32 {
    4 * (row % 2)
}

/// As [`key_order`], for values, of which lanes read every other row of eight and two words.
#[device]
#[inline(always)]
fn value_order(row: u32) -> u32 {
    2 * (row / 2 % 4)
}

/// Starts to copy the rows `range` of a step's keys or values to the warp's place for them.
///
/// # Safety
/// `from` leads to the step, of which those are written; nobody uses the place. All lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn copy<const HEAD_DIM: usize>(
    place: Shared<[u32; 4]>,
    from: *const f16,
    range: Range,
    order: impl Fn(u32) -> u32,
) {
    let words = const { HEAD_DIM as u32 / 8 };
    let rows_at_once = const { 32 / (HEAD_DIM as u32 / 8) };
    let (first, word) = (warp::lane_id() / words, warp::lane_id() % words);
    repeat(const { step_words(HEAD_DIM as u32) as usize / 32 }, |i| {
        let row = first + i as u32 * rows_at_once;
        if row >= range.from && row < range.until {
            let from = from.wrapping_add(row.min(range.keys - 1) as usize * HEAD_DIM + 8 * word as usize);
            // SAFETY: the caller's promise.
            unsafe { async_copy::copy_16_l2(place.add(row * words + (word ^ order(row))), from) }
        }
    });
}

/// `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v` of the rows `first_row .. first_row + grid.x` on tensor cores, in splits,
/// [`splits_at_once`](Attention::splits_at_once) a block; the last block of a row merges them.
///
/// Block and heads: see [`decode_mma::mma`](super::decode_mma::mma), and the grid, which has `ceil(num_splits / splits_at_once)` blocks for a row and head; dynamic shared memory [`shared_bytes`]. `N` is the dimensions of a
/// lane that merges, `WORDS` is `HEAD_DIM / 32`, `HALVES` is `HEAD_DIM / 64`, `TILES` `HEAD_DIM / 8`; a step is `KEY_TILES` times 8 keys, `PAIRS`
/// times 16; `AT_ONCE` splits are merged at once.
///
/// # Safety
/// As there.
#[kernel(
    E = [f16],
    (HEAD_DIM, N, WORDS, HALVES, TILES, KEY_TILES, PAIRS, AT_ONCE, MIN_BLOCKS) = [
        (64, 2, 2, 1, 8, 4, 2, 16, 2),
        (128, 4, 4, 2, 16, 2, 1, 16, 2),
        (256, 4, 8, 4, 32, 2, 1, 40, 1),
    ],
    name = "attention_decode_{E}_staged_h{HEAD_DIM}",
    max_threads = 256,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn staged<
    E: Pages + Group<N>,
    const HEAD_DIM: usize,
    const N: usize,
    const WORDS: usize,
    const HALVES: usize,
    const TILES: usize,
    const KEY_TILES: usize,
    const PAIRS: usize,
    const AT_ONCE: usize,
>(
    a: Attention<E>,
    #[shared((WARPS * MAX_GROUP) as usize)] statistics: Shared<[f32; 2]>,
    #[shared(1)] is_last: Shared<u32>,
) where
    f32: Group<N>,
{
    const { assert!(KEY_TILES == 2 * PAIRS && 8 * KEY_TILES as u32 == step_keys(HEAD_DIM as u32)) }
    let keys_of_step = const { 8 * KEY_TILES as u32 };
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let (r, c) = (lane / 4, lane % 4);
    if a.starts_next_late == 0 {
        launch_dependents();
    }
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that the
    // kernel is given. Every return and every barrier depends only on what all threads of the block share; a warp's places are its own, and
    // its lanes wait for each other before they read what others copied, and before that is overwritten.
    unsafe {
        let splits = Splits::of_block(&a, a.splits_at_once);
        if splits.is_empty() {
            return;
        }
        let end_page = splits.first_page(splits.end);
        let (step_words, row_words) = const { (step_words(HEAD_DIM as u32), HEAD_DIM as u32 / 8) };
        let (steps, query_words) = const { words(HEAD_DIM as u32) };
        let keys = dynamic_shared::<[u32; 4]>().add(warp_id * 2 * step_words);
        let values = keys.add(step_words);
        let queries = dynamic_shared::<[u32; 4]>().add(steps + lane);
        let outputs = dynamic_shared::<[u32; 4]>().add(steps + query_words).cast::<f32>();
        // What this lane reads first of them.
        let key = keys.add(r * row_words + (c ^ key_order(r)));
        let value = values.add(2 * c * row_words + (r ^ value_order(2 * c)));
        let page_of = |step: Step| {
            let (k, v) = splits.page(&a, step.page, HEAD_DIM);
            let first = step.first as usize * HEAD_DIM;
            (k.cast::<f16>().add(first), v.cast::<f16>().add(first))
        };
        let keys_of = |step: Step| (splits.num_keys - step.first_key()).min(keys_of_step);

        // The kernel before this one writes the row's query and the keys of this step; all other keys are there.
        let known = splits.sequence.kv_len - splits.sequence.num_rows();
        let mut step = Step { page: splits.first_page(splits.first) + warp_id, first: 0 };
        let mut next = step.next(keys_of_step);
        let (mut k, mut v) = (a.k_pages.cast(), a.v_pages.cast());
        let (mut all, mut there) = (0, 0);
        if step.is_there(&splits, end_page) {
            all = keys_of(step);
            there = all.min(known.saturating_sub(step.first_key()));
            (k, v) = page_of(step);
        }
        let range = Range { from: 0, until: if there == all { keys_of_step } else { there }, keys: there };
        if there > 0 {
            copy::<HEAD_DIM>(keys, k, range, key_order);
        }
        async_copy::commit_group();
        if there > 0 {
            copy::<HEAD_DIM>(values, v, range, value_order);
        }
        async_copy::commit_group();
        wait_for_dependencies();
        if a.starts_next_late != 0 {
            launch_dependents();
        }
        if there < all {
            let range = Range { from: there, until: keys_of_step, keys: all };
            copy::<HEAD_DIM>(keys, k, range, key_order);
            copy::<HEAD_DIM>(values, v, range, value_order);
            async_copy::wait_all();
        }
        // First operands of all lanes, which are the same for all warps.
        let mut j = warp_id;
        while j < WORDS as u32 {
            let words = query_word::<f16>(splits.query(&a, HEAD_DIM), query_scale::<HEAD_DIM>(), j);
            repeat(2, |i| queries.set((2 * j + i as u32) * 32, words[i]));
            j += WARPS;
        }

        let mut split = splits.first;
        while split < splits.end {
            // Queries are there, and nobody merges the split before any more.
            thread::sync_threads();
            let mut softmax = Softmax::<TILES>::EMPTY;
            let split_end = splits.first_page(split + 1);
            // The same for all lanes of the warp.
            while step.is_there(&splits, split_end) {
                let is_next = next.is_there(&splits, end_page);
                let mut range = Range { from: 0, until: keys_of_step, keys: keys_of_step };
                if is_next {
                    (k, v) = page_of(next);
                    range.keys = keys_of(next);
                }
                async_copy::wait_group::<1>();
                warp::sync_warp(warp::FULL_MASK);
                let scores = scores::<KEY_TILES, WORDS>(
                    |j, i| queries.get((2 * j + i) as u32 * 32),
                    |t, j| {
                        let word = Shared::<[u32; 4]>::from_address(key.address() ^ (j as u32 % 2 * 4 * 16));
                        word.get(8 * t as u32 * row_words + j as u32 / 2 * 8)
                    },
                    keys_of(step),
                );
                warp::sync_warp(warp::FULL_MASK);
                if is_next {
                    copy::<HEAD_DIM>(keys, k, range, key_order);
                }
                async_copy::commit_group();
                let reference = softmax.refer(&scores);
                async_copy::wait_group::<1>();
                warp::sync_warp(warp::FULL_MASK);
                repeat(PAIRS, |s| {
                    let scores = [scores[2 * s], scores[2 * s + 1]];
                    softmax.add_values::<HALVES>(reference, scores, |u, i, h| {
                        value.get((16 * s + 8 * u + i) as u32 * row_words + 8 * h as u32)
                    });
                });
                warp::sync_warp(warp::FULL_MASK);
                if is_next {
                    copy::<HEAD_DIM>(values, v, range, value_order);
                }
                async_copy::commit_group();
                step = next;
                next = next.next(keys_of_step);
            }
            splits.merge::<E, _, HEAD_DIM, N, HALVES, TILES>(&a, a.out, split, &softmax, outputs, statistics);
            split += 1;
        }
        splits.finish::<E, _, HEAD_DIM, N, AT_ONCE>(&a, a.out, is_last);
    }
}
