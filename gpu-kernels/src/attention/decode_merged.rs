//! Attention of single rows, split over the keys, whose splits the last block of each row merges: one kernel where
//! [`decode`](super::decode) has two.
//!
//! Measured on an H200 as there: 16.2 µs against 26.1 at 8192 tokens, 8.3 against 12.0 at 512: a launch and its drain less, and pages are
//! copied (`cp.async`) while others are computed on, the first before the kernel before this one has ended.

use cuda_std::prelude::*;

use super::{Attention, decode::MAX_WARPS};
#[device]
use super::{Merged, PADDING, Partial, Sequence, attend_page, row_words, stage_query};
#[device]
use crate::{
    PAGE_SIZE,
    fused::{launch_dependents, wait_for_dependencies},
    grid::{is_last_block, repeat},
    vector::Group,
};
#[device]
use cuda_std::{async_copy, memory};

/// Stages: while one is computed on, the next is copied.
#[device]
const STAGES: usize = 2;

/// Splits that are loaded before the first of them is merged, so that their latencies overlap.
#[device]
const MERGED_AT_ONCE: usize = 8;

/// Room in shared memory for `STAGES` times `PAGES` pages and one query a warp.
#[device]
#[derive(Clone, Copy)]
struct Stages {
    k: Shared<[u32; 4]>,
    v: Shared<[u32; 4]>,
    queries: Shared<f32>,
    is_last: Shared<u32>,
}

/// The keys and values that one block reads.
#[device]
struct Source<'a, E> {
    launch: &'a Attention<E>,
    sequence: Sequence,
    key_value_head: u32,
    stages: Stages,
}

#[device]
impl<E: Element> Source<'_, E> {
    /// Starts to copy keys `from .. end`, counted from the first of page `first_page`, and their values to the stage that
    /// begins at key `place`; the threads of the block share the work.
    ///
    /// # Safety
    /// The sequence has these keys, the stage has room for them, and nobody reads it.
    #[inline(always)]
    unsafe fn copy<const HEAD_DIM: usize>(&self, place: u32, first_page: u32, from: u32, end: u32) {
        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let mut word = from * v_words + thread::thread_idx_x();
        while word < end * v_words {
            let (key, column) = (word / v_words, word % v_words);
            // SAFETY: the caller's promise; each word has one thread.
            unsafe {
                let page = self.sequence.page_offset(
                    first_page + key / PAGE_SIZE,
                    self.launch.num_key_value_heads,
                    self.key_value_head,
                    HEAD_DIM,
                );
                let source = page + (key % PAGE_SIZE) as usize * HEAD_DIM + column as usize * E::LANES;
                let k = self.stages.k.add((place + key) * k_words + column);
                let v = self.stages.v.add(place * v_words + word);
                async_copy::copy_16_l2(k, self.launch.k_pages.add(source));
                async_copy::copy_16_l2(v, self.launch.v_pages.add(source));
            }
            word += thread::block_dim_x();
        }
    }
}

/// `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v` of the rows `first_row .. first_row + grid.x`, in splits, one block each; the last block
/// of a row merges them.
///
/// Arguments, arithmetic and idea: see the [module](super).
///
/// Grid `[rows, num_key_value_heads, num_splits]`, block `[32 * heads_per_group, 1, 1]`, of at most [`MAX_WARPS`] heads. A block
/// copies its K and V to shared memory, `PAGES` pages ahead of their use (as many as fit twice in 48 KiB: there are no kernels of
/// f32, whose pages are too large), for all query heads that share them; each warp takes one head. `N` is `HEAD_DIM / 32`.
///
/// # Safety
/// Grid and block are as above, arrays are as described, what is written overlaps nothing, all of it aligned to 16
/// bytes. Of what the kernels before this one write, only `q` and the keys and values of the batch's rows are read.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, N, PAGES) = [(64, 2, 2), (128, 4, 1)],
    name = "attention_decode_{E}_merged_h{HEAD_DIM}",
    max_threads = 256,
    min_blocks = 3,
)]
pub unsafe fn merged<E: Group<N>, const HEAD_DIM: usize, const N: usize, const PAGES: u32>(
    a: Attention<E>,
    #[shared(STAGES * PAGES * 32 * (HEAD_DIM * size_of::<E>() + PADDING) / 16)] k: Shared<[u32; 4]>,
    #[shared(STAGES * PAGES * 32 * HEAD_DIM * size_of::<E>() / 16)] v: Shared<[u32; 4]>,
    #[shared(MAX_WARPS as usize * HEAD_DIM)] queries: Shared<f32>,
    #[shared(1)] is_last: Shared<u32>,
) where
    f32: Group<N>,
{
    let stages = Stages { k, v, queries, is_last };
    launch_dependents();
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let row_of_launch = thread::block_idx_x();
    let row = a.first_row + row_of_launch;
    let (key_value_head, split) = (thread::block_idx_y(), thread::block_idx_z());
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that the
    // kernel is given. Every return and every loop with a barrier in it depends only on what all threads of the block share.
    unsafe {
        let sequence = a.sequence_of(row);
        if sequence.num_rows() > a.max_rows {
            return;
        }
        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(PAGE_SIZE);
        let split_pages = super::split_pages(num_keys);
        let first_page = split * split_pages;
        if first_page >= num_pages {
            return;
        }
        let end_page = (first_page + split_pages).min(num_pages);
        let source = Source { launch: &a, sequence, key_value_head, stages };
        let keys_of = |page: u32| {
            (num_keys - page * PAGE_SIZE).min(PAGES * PAGE_SIZE).min((end_page - page) * PAGE_SIZE)
        };
        let place_of = |stage: u32| stage * PAGES * PAGE_SIZE;

        // The kernel before this one writes the row's query and the keys of this step; all other keys are there.
        let keys = keys_of(first_page);
        let known = (sequence.kv_len - sequence.num_rows()).saturating_sub(first_page * PAGE_SIZE);
        source.copy::<HEAD_DIM>(0, first_page, 0, keys.min(known));
        wait_for_dependencies();
        if known < keys {
            source.copy::<HEAD_DIM>(0, first_page, known, keys);
        }
        async_copy::commit_group();

        let heads_per_group = a.heads_per_group;
        let head = key_value_head * heads_per_group + warp_id;
        let query = stages.queries.add(warp_id * HEAD_DIM as u32);
        let this_query = row as usize * a.num_attention_heads as usize + head as usize;
        stage_query::<HEAD_DIM>(a.q.add(this_query * HEAD_DIM), query);

        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let mut partial = Partial::<N>::EMPTY;
        let (mut page, mut stage) = (first_page, 0);
        while page < end_page {
            let next = page + PAGES;
            if next < end_page {
                source.copy::<HEAD_DIM>(place_of(1 - stage), next, 0, keys_of(next));
            }
            async_copy::commit_group();
            // All but the newest group: this stage is complete, for every thread after the barrier.
            async_copy::wait_group::<1>();
            thread::sync_threads();
            let keys = keys_of(page);
            let place = place_of(stage);
            let mut first = 0;
            while first < keys {
                let keys_of_page = stages.k.add((place + first) * k_words);
                // A row of V is 32 groups of N values.
                let values = stages.v.add((place + first) * v_words).cast::<E::Word>().add(lane);
                attend_page::<E, HEAD_DIM, N>(
                    &mut partial,
                    query,
                    (keys - first).min(PAGE_SIZE),
                    |key, word| keys_of_page.get(key * k_words + word as u32),
                    |key| E::split(values.get(32 * key)),
                );
                first += PAGE_SIZE;
            }
            // Nobody reads this stage any more when the next but one is copied to it.
            thread::sync_threads();
            stage = 1 - stage;
            page = next;
        }

        let sum = warp::reduce_sum(partial.sum);
        let count = num_pages.div_ceil(split_pages);
        let mut merged = Merged::<N>::EMPTY;
        if count == 1 {
            merged.add_split(partial.max, sum, partial.acc);
        } else {
            let first = (row_of_launch as usize * a.num_attention_heads as usize + head as usize)
                * a.num_splits as usize;
            let place = first + split as usize;
            <f32 as Group<N>>::store_group(a.partials.add(place * HEAD_DIM + lane as usize * N), partial.acc);
            if lane == 0 {
                <f32 as Group<2>>::store_group(a.statistics.add(2 * place), [partial.max, sum]);
            }
            let counter = a.counters.add((row_of_launch * a.num_key_value_heads + key_value_head) as usize);
            if !is_last_block(counter, count, stages.is_last) {
                return;
            }
            merge_splits(&mut merged, a.partials, a.statistics, first, count as usize, lane);
        }
        let to = (row as usize * a.num_attention_heads as usize + head as usize) * HEAD_DIM;
        E::store_group(a.out.add(to + lane as usize * N), merged.output());
    }
}

/// Merges the splits of one head in order; a warp's lanes each take their dimensions.
///
/// # Safety
/// The splits `first .. first + count` are written and visible.
#[device]
#[inline(always)]
unsafe fn merge_splits<const N: usize>(
    merged: &mut Merged<N>,
    partials: *const f32,
    statistics: *const f32,
    first: usize,
    count: usize,
    lane: u32,
) where
    f32: Group<N>,
{
    let mut split = 0;
    while split < count {
        let mut sums = [[0.0f32; 2]; MERGED_AT_ONCE];
        let mut accs = [[0.0f32; N]; MERGED_AT_ONCE];
        repeat(MERGED_AT_ONCE, |i| {
            // The last one stands in for those that do not exist.
            let place = first + (split + i).min(count - 1);
            // SAFETY: inside the splits. Past L1, which may hold older values.
            unsafe {
                sums[i] = memory::load_l2(statistics.add(2 * place).cast::<[f32; 2]>());
                accs[i] = memory::load_l2(partials.add((place * 32 + lane as usize) * N).cast::<[f32; N]>());
            }
        });
        repeat(MERGED_AT_ONCE, |i| {
            if split + i < count {
                merged.add_split(sums[i][0], sums[i][1], accs[i]);
            }
        });
        split += MERGED_AT_ONCE;
    }
}
