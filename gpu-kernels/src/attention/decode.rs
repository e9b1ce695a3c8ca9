//! Attention of single rows, split over the keys, and the merge of the splits.
//!
//! Measured on an H200, 14 heads over 2 of 64 in bf16, one sequence of 8192 tokens: the plain kernel 437 µs, for one warp reads all keys of
//! its head; these two 26 µs, for 64 times 2 blocks share them; `merged` 16. See docs/kernel-lab.md.

use cuda_std::prelude::*;

#[device]
use super::{Merged, PADDING, Partial, Rows, row_words, stage_query};
#[device]
use crate::{
    grid::{divide, repeat},
    vector::{Group, load_words},
};

/// The most warps of a block of the split kernels.
pub const MAX_WARPS: u32 = 8;

/// Warps of a block of the split kernels, one query head each, where `heads_per_group = num_attention_heads /
/// num_key_value_heads`. Heads beyond [`MAX_WARPS`] take further rounds, each of which reads K and V again.
pub const fn split_warps(heads_per_group: u32) -> u32 {
    if heads_per_group < MAX_WARPS { heads_per_group } else { MAX_WARPS }
}

#[device]
struct Shape {
    num_attention_heads: u32,
    num_key_value_heads: u32,
    first_row: u32,
    max_rows: u32,
    num_splits: u32,
}

/// Room in shared memory for `PAGES` pages and one query a warp.
#[device]
#[derive(Clone, Copy)]
struct Stage {
    k: Shared<[u32; 4]>,
    v: Shared<[u32; 4]>,
    queries: Shared<f32>,
}

/// # Safety
/// As for the kernels. `stage` has room for `PAGES` pages of K with padded rows and of V, and `MAX_WARPS`
/// queries; `N` is `HEAD_DIM / 32`.
#[device]
#[inline(always)]
unsafe fn split<E: Group<N>, const HEAD_DIM: usize, const N: usize, const PAGES: u32>(
    shape: &Shape,
    rows: &Rows,
    q: *const f32,
    k_pages: *const E,
    v_pages: *const E,
    partials: *mut f32,
    statistics: *mut f32,
    stage: Stage,
) where
    f32: Group<N>,
{
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let num_warps = thread::block_dim_x() / 32;
    let row = shape.first_row + thread::block_idx_x();
    let key_value_head = thread::block_idx_y();
    let split = thread::block_idx_z();
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that
    // the kernel is given. Every return and every loop with a barrier in it depends only on what all threads of
    // the block share.
    unsafe {
        let sequence = rows.sequence_of(row);
        if sequence.num_rows() > shape.max_rows {
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

        let heads_per_group = divide(shape.num_attention_heads, shape.num_key_value_heads).0;
        let query = stage.queries.add(warp_id * HEAD_DIM as u32);
        let mut round = 0;
        while round < heads_per_group {
            let head_of_group = round + warp_id;
            let has_head = head_of_group < heads_per_group;
            let head = key_value_head * heads_per_group + head_of_group;
            // No lane reads the last round's query any more: each warp has only its own.
            warp::sync_warp(warp::FULL_MASK);
            if has_head {
                let this_query = row as usize * shape.num_attention_heads as usize + head as usize;
                stage_query::<HEAD_DIM>(q.add(this_query * HEAD_DIM), query);
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
                        sequence.page_offset(page + i, shape.num_key_value_heads, key_value_head, HEAD_DIM);
                    let keys = (num_keys - (page + i) * crate::PAGE_SIZE).min(crate::PAGE_SIZE);
                    stage.load_page::<E, HEAD_DIM>(i, k_pages.add(start), v_pages.add(start), keys);
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
                let place = (thread::block_idx_x() as usize * shape.num_attention_heads as usize
                    + head as usize)
                    * shape.num_splits as usize
                    + split as usize;
                <f32 as Group<N>>::store_group(
                    partials.add(place * HEAD_DIM + lane as usize * N),
                    partial.acc,
                );
                if lane == 0 {
                    <f32 as Group<2>>::store_group(statistics.add(2 * place), [partial.max, sum]);
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

macro_rules! attention_decode_split {
    ($($element:ident $size:literal: $($head_dim:literal $pages:literal $name:ident),*;)*) => { $($(
        #[doc = concat!("The splits of `softmax(q · kᵀ / sqrt(", stringify!($head_dim), ")) · v`, one block each, for rows of a batch; heads of ", stringify!($head_dim), " dimensions.")]
        /// A merge kernel puts them together.
        ///
        #[doc = concat!("Arrays, arithmetic and idea: see the [module](super). K and V pages are ", stringify!($element), ". Computes the rows")]
        /// `first_row .. first_row + grid.x`, except those of sequences that have more than `max_rows` rows in
        /// the batch: `u32::MAX` computes all, 1 leaves longer sequences to the prefill kernels.
        ///
        /// - `num_splits`: third dimension of the grid and of the workspace, at least
        ///   [`num_splits`](super::num_splits) of each row, which [`max_splits`](super::max_splits) of the
        ///   longest sequence is
        /// - `partials`: f32 `[grid.x, num_attention_heads, num_splits, head_dim]`, each split's weighted sum
        ///   of values
        /// - `statistics`: f32 `[grid.x, num_attention_heads, num_splits, 2]`, each split's largest score (to
        ///   the base 2) and sum of weights
        ///
        /// Splits that a row does not have are left as they were.
        ///
        /// Grid `[rows, num_key_value_heads, num_splits]`, block `[32 * split_warps(num_attention_heads /
        /// num_key_value_heads), 1, 1]`. A block reads its K and V once, into shared memory, for all query
        /// heads that share them; each warp takes one of these heads, as in the plain prefill kernel.
        ///
        /// # Safety
        /// Grid and block are as above, arrays are as described, `partials` and `statistics` overlap nothing,
        /// all of them aligned to 16 bytes.
        #[kernel(max_threads = 256, min_blocks = 3)]
        pub unsafe fn $name(
            num_attention_heads: u32,
            num_key_value_heads: u32,
            first_row: u32,
            max_rows: u32,
            num_splits: u32,
            sequence_of_token: *const u32,
            query_start: *const u32,
            kv_len: *const u32,
            block_table: *const u32,
            max_blocks: u32,
            q: *const f32,
            k_pages: *const $element,
            v_pages: *const $element,
            partials: *mut f32,
            statistics: *mut f32,
        ) {
            let shape = Shape { num_attention_heads, num_key_value_heads, first_row, max_rows, num_splits };
            let rows = Rows { sequence_of_token, query_start, kv_len, block_table, max_blocks };
            let stage = Stage {
                k: shared_array![[u32; 4]; $pages * 32 * ($head_dim * $size + PADDING) / 16],
                v: shared_array![[u32; 4]; $pages * 32 * $head_dim * $size / 16],
                queries: shared_array![f32; MAX_WARPS as usize * $head_dim],
            };
            // SAFETY: the kernel's own contract.
            unsafe {
                split::<$element, $head_dim, { $head_dim / 32 }, $pages>(
                    &shape, &rows, q, k_pages, v_pages, partials, statistics, stage,
                )
            }
        }
    )*)* };
}

// Two pages at a time hide the latency of one behind the other; for f32 heads of 128 they would not fit in 48 KiB.
attention_decode_split! {
    f32 4: 64 2 attention_decode_split_f32_plain_h64, 128 1 attention_decode_split_f32_plain_h128;
    f16 2: 64 2 attention_decode_split_f16_plain_h64, 128 2 attention_decode_split_f16_plain_h128;
    bf16 2: 64 2 attention_decode_split_bf16_plain_h64, 128 2 attention_decode_split_bf16_plain_h128;
}

/// # Safety
/// As for the kernels.
#[device]
#[inline(always)]
unsafe fn merge<E: Element>(
    shape: &Shape,
    rows: &Rows,
    partials: *const f32,
    statistics: *const f32,
    out: *mut E,
) {
    let row = shape.first_row + thread::block_idx_x();
    let (head, d, head_dim) =
        (thread::block_idx_y() as usize, thread::thread_idx_x() as usize, thread::block_dim_x() as usize);
    let heads = shape.num_attention_heads as usize;
    // SAFETY: the grid has a block a row and head, the block a thread a dimension; the row has `count` splits, all of
    // them written.
    unsafe {
        let sequence = rows.sequence_of(row);
        if sequence.num_rows() > shape.max_rows {
            return;
        }
        let count = super::num_splits(sequence.num_keys(row)) as usize;
        let first = (thread::block_idx_x() as usize * heads + head) * shape.num_splits as usize;
        let mut merged = Merged::<1>::EMPTY;
        repeat(count, |split| {
            let split = first + split;
            let [max, sum]: [f32; 2] = f32::load_group(statistics.add(2 * split));
            merged.add_split(max, sum, [*partials.add(split * head_dim + d)]);
        });
        let [value] = merged.output();
        *out.add((row as usize * heads + head) * head_dim + d) = E::from_f32(value);
    }
}

macro_rules! attention_decode_merge {
    ($($element:ident $name:ident;)*) => { $(
        /// Puts the splits of the split kernels together, in order: the attention of rows.
        ///
        #[doc = concat!("`out`: ", stringify!($element), " `[num_tokens, num_attention_heads * head_dim]`, of which the rows `first_row .. first_row + grid.x`")]
        /// are written, except those of sequences that have more than `max_rows` rows in the batch. Everything
        /// else is as it was for the split kernel; any head_dim.
        ///
        /// Grid `[rows, num_attention_heads, 1]`, block `[head_dim, 1, 1]`: a thread a dimension.
        ///
        /// # Safety
        /// Grid, block and arrays are as above and as for the split kernel, which has run with the same values.
        #[kernel]
        pub unsafe fn $name(
            num_attention_heads: u32,
            first_row: u32,
            max_rows: u32,
            num_splits: u32,
            sequence_of_token: *const u32,
            query_start: *const u32,
            kv_len: *const u32,
            partials: *const f32,
            statistics: *const f32,
            out: *mut $element,
        ) {
            let shape = Shape { num_attention_heads, num_key_value_heads: 1, first_row, max_rows, num_splits };
            let rows = Rows { sequence_of_token, query_start, kv_len, block_table: query_start, max_blocks: 0 };
            // SAFETY: the kernel's own contract; the block table is not read.
            unsafe { merge(&shape, &rows, partials, statistics, out) }
        }
    )* };
}

attention_decode_merge! {
    f32 attention_decode_merge_f32_plain;
    f16 attention_decode_merge_f16_plain;
    bf16 attention_decode_merge_bf16_plain;
}
