//! Attention of single rows, split over the keys, and the merge of the splits.
//!
//! Measured on an H200, 14 heads over 2 of 64 in bf16, one sequence of 8192 tokens: the plain kernel 437 µs, for one warp reads all keys of
//! its head; these two 26 µs, for 64 times 2 blocks share them; `merged` 16. See docs/kernel-lab.md.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{Merged, PADDING, Partial, row_words, stage_query};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::repeat,
    vector::{Group, load_words},
};

/// The most warps of a block of the split kernels.
pub const MAX_WARPS: u32 = 8;

/// Warps of a block of the split kernels, one query head each. Heads beyond [`MAX_WARPS`] take further rounds, each of which reads K and V again.
pub const fn split_warps(heads_per_group: u32) -> u32 {
    if heads_per_group < MAX_WARPS { heads_per_group } else { MAX_WARPS }
}

/// Room in shared memory for `PAGES` pages and one query a warp.
#[device]
#[derive(Clone, Copy)]
struct Stage {
    k: Shared<[u32; 4]>,
    v: Shared<[u32; 4]>,
    queries: Shared<f32>,
}

/// The splits of `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v`, one block each, of the rows `first_row .. first_row + grid.x`. [`merge`]
/// puts them together.
///
/// Arguments, arithmetic and idea: see the [module](super).
///
/// Grid `[rows, num_key_value_heads, num_splits]`, block `[32 * split_warps(heads_per_group), 1, 1]`. A block reads its K and V
/// once, `PAGES` pages at a time, into shared memory, for all query heads that share them; each warp takes one of these heads, as
/// in the plain prefill kernel. `N` is `HEAD_DIM / 32`.
///
/// Two pages at a time hide the latency of one behind the other; for f32 heads of 128 and for heads of 256 they would not fit in 48 KiB.
///
/// # Safety
/// Grid and block are as above, arrays are as described, `partials` and `statistics` overlap nothing,
/// all of them aligned to 16 bytes. `counters` and `out` are not used.
#[kernel(
    (E, HEAD_DIM, N, PAGES) = [
        (f32, 64, 2, 2), (f32, 128, 4, 1), (f16, 64, 2, 2), (f16, 128, 4, 2), (f16, 256, 8, 1), (bf16, 64, 2, 2),
        (bf16, 128, 4, 2), (bf16, 256, 8, 1)
    ],
    name = "attention_decode_split_{E}_plain_h{HEAD_DIM}",
    max_threads = 256,
    min_blocks = 3,
)]
pub unsafe fn split<E: Group<N>, const HEAD_DIM: usize, const N: usize, const PAGES: u32>(
    a: Attention<E>,
    #[shared(PAGES * 32 * (HEAD_DIM * size_of::<E>() + PADDING) / 16)] k: Shared<[u32; 4]>,
    #[shared(PAGES * 32 * HEAD_DIM * size_of::<E>() / 16)] v: Shared<[u32; 4]>,
    #[shared(MAX_WARPS as usize * HEAD_DIM)] queries: Shared<f32>,
) where
    f32: Group<N>,
{
    let stage = Stage { k, v, queries };
    launch_dependents();
    wait_for_dependencies();
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let num_warps = thread::block_dim_x() / 32;
    let row = a.first_row + thread::block_idx_x();
    let key_value_head = thread::block_idx_y();
    let split = thread::block_idx_z();
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that
    // the kernel is given. Every return and every loop with a barrier in it depends only on what all threads of
    // the block share.
    unsafe {
        let sequence = a.sequence_of(row);
        if sequence.num_rows() > a.max_rows {
            return;
        }
        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(crate::PAGE_SIZE);
        let split_pages = super::split_pages(num_keys);
        let first_page = split * split_pages;
        if first_page >= num_pages {
            return;
        }
        let end_page = (first_page + split_pages).min(num_pages);

        let heads_per_group = a.heads_per_group;
        let query = stage.queries.add(warp_id * HEAD_DIM as u32);
        let mut round = 0;
        while round < heads_per_group {
            let head_of_group = round + warp_id;
            let has_head = head_of_group < heads_per_group;
            let head = key_value_head * heads_per_group + head_of_group;
            // No lane reads the last round's query any more: each warp has only its own.
            warp::sync_warp(warp::FULL_MASK);
            if has_head {
                let this_query = row as usize * a.num_attention_heads as usize + head as usize;
                stage_query::<HEAD_DIM>(a.q.add(this_query * HEAD_DIM), query);
            }
            let mut partial = Partial::<N>::EMPTY;
            let mut page = first_page;
            while page < end_page {
                let pages_here = (end_page - page).min(PAGES);
                // Nobody reads the last stage any more.
                thread::sync_threads();
                let mut i = 0;
                while i < pages_here {
                    let start =
                        sequence.page_offset(page + i, a.num_key_value_heads, key_value_head, HEAD_DIM);
                    let keys = (num_keys - (page + i) * crate::PAGE_SIZE).min(crate::PAGE_SIZE);
                    stage.load_page::<E, HEAD_DIM>(i, a.k_pages.add(start), a.v_pages.add(start), keys);
                    i += 1;
                }
                // The stage, and the query before the first one, are complete.
                thread::sync_threads();
                if has_head {
                    let mut i = 0;
                    while i < pages_here {
                        let keys = (num_keys - (page + i) * crate::PAGE_SIZE).min(crate::PAGE_SIZE);
                        stage.attend::<E, HEAD_DIM, N>(i, query, keys, &mut partial);
                        i += 1;
                    }
                }
                page += pages_here;
            }
            if has_head {
                let sum = warp::reduce_sum(partial.sum);
                let place = (thread::block_idx_x() as usize * a.num_attention_heads as usize + head as usize)
                    * a.num_splits as usize
                    + split as usize;
                <f32 as Group<N>>::store_group(
                    a.partials.add(place * HEAD_DIM + lane as usize * N),
                    partial.acc,
                );
                if lane == 0 {
                    <f32 as Group<2>>::store_group(a.statistics.add(2 * place), [partial.max, sum]);
                }
            }
            round += num_warps;
        }
    }
}

#[device]
impl Stage {
    /// Copies the first `keys` rows of a page to place `i` of the stage; the threads of the block share the work.
    ///
    /// # Safety
    /// `k` and `v` lead to `keys` rows, aligned to 16 bytes; barriers keep readers away.
    #[inline(always)]
    unsafe fn load_page<E: Element, const HEAD_DIM: usize>(
        self,
        i: u32,
        k: *const E,
        v: *const E,
        keys: u32,
    ) {
        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let (k_stage, v_stage) =
            (self.k.add(i * crate::PAGE_SIZE * k_words), self.v.add(i * crate::PAGE_SIZE * v_words));
        let mut word = thread::thread_idx_x();
        while word < keys * v_words {
            let (key, column) = (word / v_words, word % v_words);
            // SAFETY: inside the first `keys` rows; each word has one thread.
            unsafe {
                let k_word = load_words(k.add(word as usize * E::LANES));
                let v_word = load_words(v.add(word as usize * E::LANES));
                k_stage.set(key * k_words + column, k_word);
                v_stage.set(word, v_word);
            }
            word += thread::block_dim_x();
        }
    }

    /// A warp's query against the first `keys` keys of the page at place `i`.
    ///
    /// # Safety
    /// Page and query are complete; all lanes of the warp call it together, with the same `keys`.
    #[inline(always)]
    unsafe fn attend<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
        self,
        i: u32,
        query: Shared<f32>,
        keys: u32,
        partial: &mut Partial<N>,
    ) {
        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let keys_of_page = self.k.add(i * crate::PAGE_SIZE * k_words);
        // A row of V is 32 groups of N values.
        let values = self.v.add(i * crate::PAGE_SIZE * v_words).cast::<E::Word>().add(warp::lane_id());
        // SAFETY: rows below `keys` are complete.
        unsafe {
            super::attend_page::<E, HEAD_DIM, N>(
                partial,
                query,
                keys,
                |key, word| keys_of_page.get(key * k_words + word as u32),
                |key| E::split(values.get(32 * key)),
            );
        }
    }
}

/// Puts the splits of [`split`] together, in order: the attention of the rows `first_row .. first_row + grid.x`. Any head_dim.
///
/// Grid `[rows, num_attention_heads, 1]`, block `[head_dim, 1, 1]`: a thread a dimension.
///
/// # Safety
/// Grid and block are as above, arguments as for [`split`], which has run with the same ones; `out` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "attention_decode_merge_{E}_plain")]
pub unsafe fn merge<E: Element>(a: Attention<E>) {
    launch_dependents();
    wait_for_dependencies();
    let row = a.first_row + thread::block_idx_x();
    let (head, d, head_dim) =
        (thread::block_idx_y() as usize, thread::thread_idx_x() as usize, thread::block_dim_x() as usize);
    let heads = a.num_attention_heads as usize;
    // SAFETY: the grid has a block a row and head, the block a thread a dimension; the row has `count` splits, all of
    // them written.
    unsafe {
        let sequence = a.sequence_of(row);
        if sequence.num_rows() > a.max_rows {
            return;
        }
        let count = super::num_splits(sequence.num_keys(row)) as usize;
        let first = (thread::block_idx_x() as usize * heads + head) * a.num_splits as usize;
        let mut merged = Merged::<1>::EMPTY;
        repeat(count, |split| {
            let split = first + split;
            let [max, sum]: [f32; 2] = f32::load_group(a.statistics.add(2 * split));
            merged.add_split(max, sum, [*a.partials.add(split * head_dim + d)]);
        });
        let [value] = merged.output();
        *a.out.add((row as usize * heads + head) * head_dim + d) = E::from_f32(value);
    }
}
