//! Attention of rows, one warp each: the plain variant.

use cuda_std::prelude::*;

#[device]
use super::{Merged, Partial, Rows, stage_query};
#[device]
use crate::{
    grid::divide,
    vector::{Group, load_words},
};

/// Warps of a block, one query head each.
pub const WARPS: u32 = 4;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 32 * WARPS;

/// Heads of a launch and which of its rows it computes.
#[device]
struct Shape {
    num_attention_heads: u32,
    num_key_value_heads: u32,
    min_rows: u32,
}

#[device]
impl Shape {
    /// Query heads that share a key-value head.
    #[inline(always)]
    fn heads_per_group(&self) -> u32 {
        divide(self.num_attention_heads, self.num_key_value_heads).0
    }
}

/// # Safety
/// As for the kernels. `queries` has room for `WARPS * HEAD_DIM` values; `N` is `HEAD_DIM / 32`.
#[device]
#[inline(always)]
unsafe fn plain<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
    shape: &Shape,
    rows: &Rows,
    q: *const f32,
    k_pages: *const E,
    v_pages: *const E,
    out: *mut E,
    queries: Shared<f32>,
) {
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let row = thread::block_idx_x();
    let head = thread::block_idx_y() * WARPS + warp_id;
    // SAFETY: the grid has one row of blocks a token; all reads stay in the arrays that the kernel is given.
    unsafe {
        let sequence = rows.sequence_of(row);
        // Both conditions hold for a whole warp, and there is no barrier of the block below.
        if head >= shape.num_attention_heads || sequence.num_rows() < shape.min_rows {
            return;
        }
        let key_value_head = divide(head, shape.heads_per_group()).0;
        let this_query = (row as usize * shape.num_attention_heads as usize + head as usize) * HEAD_DIM;
        let query = queries.add(warp_id * HEAD_DIM as u32);
        stage_query::<HEAD_DIM>(q.add(this_query), query);
        warp::sync_warp(warp::FULL_MASK);

        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(crate::PAGE_SIZE);
        let split_pages = super::split_pages(num_keys);
        let mut partial = Partial::<N>::EMPTY;
        let mut merged = Merged::<N>::EMPTY;
        let mut page = 0;
        while page < num_pages {
            let start = sequence.page_offset(page, shape.num_key_value_heads, key_value_head, HEAD_DIM);
            let keys_here = (num_keys - page * crate::PAGE_SIZE).min(crate::PAGE_SIZE);

            let (keys, values) = (k_pages.add(start), v_pages.add(start + lane as usize * N));
            super::attend_page::<E, HEAD_DIM, N>(
                &mut partial,
                query,
                keys_here,
                |key, word| load_words(keys.add(key as usize * HEAD_DIM + word * E::LANES)),
                |key| E::load_group(values.add(key as usize * HEAD_DIM)),
            );

            page += 1;
            if page & (split_pages - 1) == 0 || page == num_pages {
                merged.take(&mut partial);
            }
        }
        E::store_group(out.add(this_query + lane as usize * N), merged.output());
    }
}

macro_rules! attention_prefill {
    ($($element:ident: $($head_dim:literal $name:ident),*;)*) => { $($(
        #[doc = concat!("`out = softmax(q · kᵀ / sqrt(", stringify!($head_dim), ")) · v`, causal, for every row of a batch; heads of ", stringify!($head_dim), " dimensions.")]
        ///
        /// Arrays, arithmetic and idea: see the [module](super).
        #[doc = concat!("K and V pages are ", stringify!($element), ", `out` is ", stringify!($element), " `[num_tokens, num_attention_heads * head_dim]`;")]
        /// f32 in between, rounded once. Rows of sequences that have fewer than `min_rows` rows in the batch are
        /// skipped: 1 computes all, 2 leaves single rows to the decode kernels.
        ///
        /// Grid `[num_tokens, ceil(num_attention_heads / WARPS), 1]`, exact in the rows; block `[BLOCK_SIZE, 1,
        /// 1]`. A warp computes one head of one row, a page at a time: for the scores lane `i` takes key `i`,
        /// for the values `head_dim / 32` dimensions.
        ///
        /// # Safety
        /// Grid and block are as above, arrays are as described, `out` overlaps nothing, all of them aligned to 16
        /// bytes.
        #[kernel(max_threads = 128, min_blocks = 5)]
        pub unsafe fn $name(
            num_attention_heads: u32,
            num_key_value_heads: u32,
            min_rows: u32,
            sequence_of_token: *const u32,
            query_start: *const u32,
            kv_len: *const u32,
            block_table: *const u32,
            max_blocks: u32,
            q: *const f32,
            k_pages: *const $element,
            v_pages: *const $element,
            out: *mut $element,
        ) {
            let shape = Shape { num_attention_heads, num_key_value_heads, min_rows };
            let rows = Rows { sequence_of_token, query_start, kv_len, block_table, max_blocks };
            let queries = shared_array![f32; WARPS as usize * $head_dim];
            // SAFETY: the kernel's own contract.
            unsafe {
                plain::<$element, $head_dim, { $head_dim / 32 }>(&shape, &rows, q, k_pages, v_pages, out, queries)
            }
        }
    )*)* };
}

attention_prefill! {
    f32: 64 attention_prefill_f32_plain_h64, 128 attention_prefill_f32_plain_h128;
    f16: 64 attention_prefill_f16_plain_h64, 128 attention_prefill_f16_plain_h128;
    bf16: 64 attention_prefill_bf16_plain_h64, 128 attention_prefill_bf16_plain_h128;
}
