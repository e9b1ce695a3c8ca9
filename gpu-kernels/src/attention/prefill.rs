//! Attention of rows, one warp each: the plain variant.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{Merged, Partial, stage_query};
#[device]
use crate::{
    grid::divide,
    vector::{Group, load_words},
};

/// Warps of a block, one query head each.
pub const WARPS: u32 = 4;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 32 * WARPS;

/// `out = softmax(q · kᵀ / sqrt(HEAD_DIM)) · v`, causal, for every row of a batch that is not skipped.
///
/// Arguments, arithmetic and idea: see the [module](super). f32 in between, rounded once.
///
/// Grid `[num_tokens, ceil(num_attention_heads / WARPS), 1]`, exact in the rows; block `[BLOCK_SIZE, 1,
/// 1]`. A warp computes one head of one row, a page at a time: for the scores lane `i` takes key `i`,
/// for the values `N = HEAD_DIM / 32` dimensions.
///
/// # Safety
/// Grid and block are as above, arrays are as described, `out` overlaps nothing, all of them aligned to 16
/// bytes.
#[kernel(
    E = [f32, f16, bf16],
    (HEAD_DIM, N) = [(32, 1), (64, 2), (128, 4), (256, 8)],
    name = "attention_prefill_{E}_plain_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = 5,
)]
pub unsafe fn plain<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
    a: Attention<E>,
    #[shared(WARPS as usize * HEAD_DIM)] queries: Shared<f32>,
) {
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let row = thread::block_idx_x();
    let head = thread::block_idx_y() * WARPS + warp_id;
    // SAFETY: the grid has one row of blocks a token; all reads stay in the arrays that the kernel is given.
    unsafe {
        let sequence = a.sequence_of(row);
        // Both conditions hold for a whole warp, and there is no barrier of the block below.
        if head >= a.num_attention_heads || sequence.num_rows() < a.min_rows {
            return;
        }
        let key_value_head = divide(head, a.heads_per_group).0;
        let this_query = (row as usize * a.num_attention_heads as usize + head as usize) * HEAD_DIM;
        let query = queries.add(warp_id * HEAD_DIM as u32);
        stage_query::<HEAD_DIM>(a.q.add(this_query), query);
        warp::sync_warp(warp::FULL_MASK);

        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(crate::PAGE_SIZE);
        let split_pages = super::split_pages(num_keys);
        let mut partial = Partial::<N>::EMPTY;
        let mut merged = Merged::<N>::EMPTY;
        let mut page = 0;
        while page < num_pages {
            let start = sequence.page_offset(page, a.num_key_value_heads, key_value_head, HEAD_DIM);
            let keys_here = (num_keys - page * crate::PAGE_SIZE).min(crate::PAGE_SIZE);

            let (keys, values) = (a.k_pages.add(start), a.v_pages.add(start + lane as usize * N));
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
        E::store_group(a.out.add(this_query + lane as usize * N), merged.output());
    }
}
