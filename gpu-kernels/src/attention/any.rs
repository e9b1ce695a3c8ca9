//! Attention over pages of any formats, of K and V of different ones too: what is wanted seldom, one kernel for each size of heads.
//!
//! With pages of floats it gives the bits of [`plain`](super::prefill::plain); those of eight bits are decoded to f32, which is exact.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{
    AHEAD, Merged, Partial, Score, formats,
    formats::{AnyFloats, Codes, Output, q8_0},
    four,
    prefill::WARPS,
    stage_query,
};
#[device]
use crate::{
    PAGE_SIZE,
    grid::{divide, repeat},
    vector::{Group, load8},
};

/// What a page holds of a head: rows of `HEAD_DIM` values.
#[device]
#[derive(Clone, Copy)]
struct Rows<const HEAD_DIM: usize> {
    head: *const u8,
    format: u32,
}

#[device]
impl<const HEAD_DIM: usize> Rows<HEAD_DIM> {
    /// Those before which there are `values` values in `pages`.
    #[inline(always)]
    fn at(pages: *const u8, format: u32, values: usize) -> Self {
        let bytes = match format {
            formats::F32 => 4 * values,
            formats::Q8_0 => formats::q8_0_bytes(values),
            _ => 2 * values,
        };
        Self { head: pages.wrapping_add(bytes), format }
    }

    /// Values `8 i ..` of a row.
    ///
    /// # Safety
    /// The row is written.
    #[inline(always)]
    unsafe fn eight(self, row: u32, i: usize) -> [f32; 8] {
        let at = row as usize * HEAD_DIM + 8 * i;
        // SAFETY: the caller's promise.
        unsafe {
            match self.format {
                formats::F32 => load8(self.head.cast::<f32>().add(at)),
                formats::F16 => load8(self.head.cast::<f16>().add(at)),
                formats::BF16 => load8(self.head.cast::<bf16>().add(at)),
                _ => self.codes::<8>(at),
            }
        }
    }

    /// Values `N * lane ..` of a row.
    ///
    /// # Safety
    /// The row is written.
    #[inline(always)]
    unsafe fn lanes<const N: usize>(self, row: u32, lane: u32) -> [f32; N]
    where
        f32: Group<N>,
        f16: Group<N>,
        bf16: Group<N>,
        q8_0: Codes<N>,
    {
        let at = row as usize * HEAD_DIM + lane as usize * N;
        // SAFETY: the caller's promise.
        unsafe {
            match self.format {
                formats::F32 => f32::load_group(self.head.cast::<f32>().add(at)),
                formats::F16 => f16::load_group(self.head.cast::<f16>().add(at)),
                formats::BF16 => bf16::load_group(self.head.cast::<bf16>().add(at)),
                _ => self.codes::<N>(at),
            }
        }
    }

    /// `N` values from the `at`th on, of one block.
    ///
    /// # Safety
    /// They are in eight bits, and written.
    #[inline(always)]
    unsafe fn codes<const N: usize>(self, at: usize) -> [f32; N]
    where
        q8_0: Codes<N>,
    {
        // SAFETY: the caller's promise.
        unsafe {
            let word = self.head.add(at).cast::<<q8_0 as Codes<N>>::Word>().read();
            let block = at as u32 / formats::BLOCK_VALUES;
            <q8_0 as Codes<N>>::times(word, formats::scale_of(self.head, HEAD_DIM, block))
        }
    }
}

/// A warp's query against the first `keys` keys of a page, as [`attend_page`](super::attend_page).
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
unsafe fn attend_page<const HEAD_DIM: usize, const N: usize>(
    partial: &mut Partial<N>,
    query: Shared<f32>,
    keys: u32,
    k: Rows<HEAD_DIM>,
    v: Rows<HEAD_DIM>,
) where
    f32: Group<N>,
    f16: Group<N>,
    bf16: Group<N>,
    q8_0: Codes<N>,
{
    let lane = warp::lane_id();
    let query = query.cast::<[f32; 4]>();
    let mut score = Score::ZERO;
    let mut i = 0;
    while i < HEAD_DIM / 8 {
        let mut eights = [[0.0; 8]; AHEAD];
        // SAFETY: rows below `keys` are written; values inside the head.
        repeat(AHEAD, |j| eights[j] = unsafe { k.eight(lane.min(keys - 1), i + j) });
        repeat(AHEAD, |j| {
            repeat(2, |half| {
                let quad = (2 * (i + j) + half) as u32;
                // SAFETY: inside the query.
                score.add(unsafe { query.get(quad) }, four(&eights[j], half));
            });
        });
        i += AHEAD;
    }
    let weight = partial.add_scores(if lane < keys { score.value() } else { f32::NEG_INFINITY });
    let mut key = 0;
    while key < keys {
        let mut values = [[0.0; N]; 2 * AHEAD];
        repeat(2 * AHEAD, |j| {
            // SAFETY: rows below `keys` are written.
            values[j] = unsafe { v.lanes::<N>((key + j as u32).min(keys - 1), lane) };
        });
        repeat(2 * AHEAD, |j| partial.add_value(warp::shuffle_idx(weight, key + j as u32), values[j]));
        key += 2 * AHEAD as u32;
    }
}

/// `out = softmax(q · kᵀ / sqrt(HEAD_DIM)) · v`, causal, of the rows `first_row .. first_row + grid.x` whose sequences have from `min_rows`
/// to `max_rows` rows.
///
/// Arguments, arithmetic and idea: see the [module](super); formats are those of the arguments.
///
/// Grid `[rows, ceil(num_attention_heads / WARPS), num_splits]`, block `[BLOCK_SIZE, 1, 1]` of [`prefill`](super::prefill): a warp
/// computes one head of one row. With one split it computes all of it; with more only its own, for
/// [`merge`](super::decode::merge) to put together.
///
/// # Safety
/// Grid and block are as above, arrays are as described, what is written overlaps nothing, all of it aligned to 16 bytes. `counters` are
/// not used.
#[kernel(
    (HEAD_DIM, N) = [(32, 1), (64, 2), (128, 4), (256, 8)],
    name = "attention_any_h{HEAD_DIM}",
    max_threads = 128,
)]
pub unsafe fn any<const HEAD_DIM: usize, const N: usize>(
    a: Attention<u8>,
    #[shared(WARPS as usize * HEAD_DIM)] queries: Shared<f32>,
) where
    f32: Group<N>,
    f16: Group<N>,
    bf16: Group<N>,
    q8_0: Codes<N>,
{
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let row = a.first_row + thread::block_idx_x();
    let head = thread::block_idx_y() * WARPS + warp_id;
    let split = thread::block_idx_z();
    // SAFETY: the grid has one row of blocks a row of the batch; all reads stay in the arrays that the kernel is given.
    unsafe {
        let sequence = a.sequence_of(row);
        let rows = sequence.num_rows();
        // This holds for a whole warp, and there is no barrier of the block below.
        if head >= a.num_attention_heads || rows < a.min_rows || rows > a.max_rows {
            return;
        }
        let num_keys = sequence.num_keys(row);
        let num_pages = num_keys.div_ceil(PAGE_SIZE);
        let split_pages = super::split_pages(num_keys);
        let in_splits = a.num_splits > 1;
        let mut page = if in_splits { split * split_pages } else { 0 };
        if page >= num_pages {
            return;
        }
        let end_page = if in_splits { (page + split_pages).min(num_pages) } else { num_pages };

        let key_value_head = divide(head, a.heads_per_group).0;
        let this_query = (row as usize * a.num_attention_heads as usize + head as usize) * HEAD_DIM;
        let query = queries.add(warp_id * HEAD_DIM as u32);
        stage_query::<HEAD_DIM>(a.q.add(this_query), query);
        warp::sync_warp(warp::FULL_MASK);

        let mut partial = Partial::<N>::EMPTY;
        let mut merged = Merged::<N>::EMPTY;
        while page < end_page {
            let start = sequence.page_offset(page, a.num_key_value_heads, key_value_head, HEAD_DIM);
            let k = Rows::at(a.k_pages, a.k_format, start);
            let v = Rows::at(a.v_pages, a.v_format, start);
            let keys = (num_keys - page * PAGE_SIZE).min(PAGE_SIZE);
            attend_page::<HEAD_DIM, N>(&mut partial, query, keys, k, v);
            page += 1;
            if !in_splits && (page & (split_pages - 1) == 0 || page == num_pages) {
                merged.take(&mut partial);
            }
        }
        if !in_splits {
            let out = AnyFloats { to: a.out, format: a.out_format };
            out.store(this_query + lane as usize * N, merged.output());
            return;
        }
        let sum = warp::reduce_sum(partial.sum);
        let place = (thread::block_idx_x() as usize * a.num_attention_heads as usize + head as usize)
            * a.num_splits as usize
            + split as usize;
        <f32 as Group<N>>::store_group(a.partials.add(place * HEAD_DIM + lane as usize * N), partial.acc);
        if lane == 0 {
            <f32 as Group<2>>::store_group(a.statistics.add(2 * place), [partial.max, sum]);
        }
    }
}
