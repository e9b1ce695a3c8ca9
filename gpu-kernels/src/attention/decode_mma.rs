//! Attention of single rows on tensor cores: a warp takes a page of 32 keys for all query heads that share them.
//!
//! K and V go from memory straight to the registers that the instruction takes, see `decode_softmax.rs`; a block's warps take pages in
//! turn and merge what they found, see `decode_split.rs`. A row has the bits that [`decode_staged`](super::decode_staged) gives it. Keys of earlier steps are loaded while the kernel before this one runs.

use cuda_std::prelude::*;

use super::{Attention, MAX_SPLITS, decode_split::padded};
#[device]
use super::{
    decode_registers::{KEY_TILES, Page, Query},
    decode_softmax::{Softmax, scores},
    decode_split::Splits,
    decode_staged::step_keys,
    formats::{AnyFloats, Output, Pages, q8_0},
    query_scale,
};
#[device]
use crate::{
    PAGE_SIZE,
    fused::{launch_dependents, wait_for_dependencies},
    grid::repeat,
    vector::Group,
};

/// Warps of a block.
pub const WARPS: u32 = 8;
/// Threads of a block.
pub const BLOCK_SIZE: u32 = 32 * WARPS;
/// The most query heads that share a key.
pub const MAX_GROUP: u32 = 8;

/// Splits that are loaded before the first of them is merged: those of 10 thousand keys.
#[device]
const MERGED_AT_ONCE: usize = 40;

/// Pages of each split of a row that sees `num_keys` keys: a power of two times the block's warps.
pub const fn split_pages(num_keys: u32) -> u32 {
    WARPS * num_keys.div_ceil(crate::PAGE_SIZE * WARPS).div_ceil(MAX_SPLITS).next_power_of_two()
}

/// The most splits of any row that sees at most `max_keys` keys.
pub const fn max_splits(max_keys: u32) -> u32 {
    let splits = max_keys.div_ceil(crate::PAGE_SIZE * WARPS);
    if splits < MAX_SPLITS { splits } else { MAX_SPLITS }
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
    if a.starts_next_late == 0 {
        launch_dependents();
    }
    // SAFETY: the grid has one row of blocks a row of the batch; all reads and writes stay in the arrays that the
    // kernel is given. Every return and every barrier depends only on what all threads of the block share.
    unsafe {
        let splits = Splits::of_block(&a, 1);
        if splits.is_empty() {
            return;
        }
        let end_page = splits.first_page(splits.end);
        // The kernel before this one writes the row's query and the keys of this step; all other keys are there.
        let known = splits.sequence.kv_len - splits.sequence.num_rows();
        let mut index = splits.first_page(splits.first) + warp::warp_id();
        let mut page = Page::<P, N, HALVES>::EMPTY;
        let mut keys = 0;
        let mut loaded = 0;
        let (mut k, mut v) = (a.k_pages, a.v_pages);
        if index < end_page {
            keys = (splits.num_keys - index * PAGE_SIZE).min(PAGE_SIZE);
            loaded = keys.min(known.saturating_sub(index * PAGE_SIZE));
            (k, v) = splits.page(&a, index, HEAD_DIM);
            if loaded > 0 {
                page.load::<HEAD_DIM, false>(k, v, 0, loaded);
            }
        }
        wait_for_dependencies();
        if a.starts_next_late != 0 {
            launch_dependents();
        }
        splits.store_newest::<P, HEAD_DIM>(&a);
        if loaded < keys {
            page.load::<HEAD_DIM, true>(k, v, loaded, keys);
        }
        let query = Query::<N>::load::<f16>(splits.query(&a, HEAD_DIM), query_scale::<HEAD_DIM>());
        let mut softmax = Softmax::<TILES>::EMPTY;
        // The same for all lanes of the warp.
        while index < end_page {
            if step_keys(HEAD_DIM as u32) == PAGE_SIZE {
                let scores =
                    scores::<KEY_TILES, N>(|j, i| query.0[j][i], |t, j| P::words(page.k[t][j]), keys);
                let reference = softmax.refer(&scores);
                repeat(2, |s| {
                    let scores = [scores[2 * s], scores[2 * s + 1]];
                    softmax.add_values::<HALVES>(reference, scores, |u, i, h| P::words(page.v[s][u][i][h]));
                });
            } else {
                add_half::<P, N, HALVES, TILES, 0>(&mut softmax, &query, &page, keys);
                add_half::<P, N, HALVES, TILES, 1>(&mut softmax, &query, &page, keys);
            }
            index += WARPS;
            if index < end_page {
                keys = (splits.num_keys - index * PAGE_SIZE).min(PAGE_SIZE);
                (k, v) = splits.page(&a, index, HEAD_DIM);
                page.load::<HEAD_DIM, false>(k, v, 0, keys);
            }
        }
        splits.merge::<P, O, HEAD_DIM, N, HALVES, TILES>(
            &a,
            out,
            splits.first,
            &softmax,
            outputs,
            statistics,
        );
        splits.finish::<P, O, HEAD_DIM, N, MERGED_AT_ONCE>(&a, out, is_last);
    }
}

/// Takes in keys `16 S ..` of a page, of which the row sees `keys`.
///
/// # Safety
/// All lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn add_half<P: Pages, const WORDS: usize, const HALVES: usize, const TILES: usize, const S: usize>(
    softmax: &mut Softmax<TILES>,
    query: &Query<WORDS>,
    page: &Page<P, WORDS, HALVES>,
    keys: u32,
) {
    let keys = keys.saturating_sub(16 * S as u32);
    // SAFETY: the caller's promise.
    unsafe {
        let scores = scores::<2, WORDS>(|j, i| query.0[j][i], |t, j| P::words(page.k[2 * S + t][j]), keys);
        let reference = softmax.refer(&scores);
        softmax.add_values::<HALVES>(reference, scores, |u, i, h| P::words(page.v[S][u][i][h]));
    }
}
