//! A block's splits of a row, of the kernels that decode on tensor cores: which they are, and how what its warps found becomes the row's output.
//!
//! A block's warps take pages in turn; they are merged in shared memory, and the splits of a row by its last block, as in
//! [`decode_merged`](super::decode_merged).

use cuda_std::prelude::*;

#[device]
use super::{
    Attention, Merged, Sequence,
    decode_mma::split_pages,
    decode_mma::{MAX_GROUP, WARPS},
    decode_softmax::Softmax,
    formats::{Output, Pages},
};
#[device]
use crate::{
    PAGE_SIZE,
    grid::{is_last_block, offset, repeat},
    vector::Group,
};
#[device]
use cuda_std::memory;

/// f32 values from one head's output to the next in shared memory.
pub(super) const fn padded(head_dim: u32) -> u32 {
    head_dim + 8
}

/// What a block computes of a row, for the heads that share a key-value head: some of its splits.
#[device]
pub(super) struct Splits {
    pub sequence: Sequence,
    pub row: u32,
    pub key_value_head: u32,
    /// Keys that the row sees.
    pub num_keys: u32,
    /// The block's, `first .. end` of the row's `count`.
    pub first: u32,
    pub end: u32,
    count: u32,
    /// Blocks that the row has.
    num_blocks: u32,
    /// Of each split but the last.
    pages: u32,
    /// The row's.
    num_pages: u32,
}

/// `a / b`, rounded up, of a power of two.
#[device]
#[inline(always)]
fn divide_up(a: u32, b: u32) -> u32 {
    (a + b - 1) >> b.trailing_zeros()
}

#[device]
impl Splits {
    /// The block's own, `at_once` of them, a power of two; none where the row does not have them or is to be skipped.
    ///
    /// # Safety
    /// As for the kernels.
    #[inline(always)]
    pub unsafe fn of_block<P>(a: &Attention<P>, at_once: u32) -> Self {
        let row = a.first_row + thread::block_idx_x();
        // SAFETY: the grid has one row of blocks a row of the batch.
        let sequence: Sequence = unsafe { a.sequence_of(row) };
        let num_keys = sequence.num_keys(row);
        let num_pages = if sequence.num_rows() > a.max_rows { 0 } else { num_keys.div_ceil(PAGE_SIZE) };
        let pages = split_pages(num_keys);
        let count = divide_up(num_pages, pages);
        let num_blocks = divide_up(count, at_once);
        let first = (thread::block_idx_z() * at_once).min(count);
        let end = (first + at_once).min(count);
        Self {
            sequence,
            row,
            key_value_head: thread::block_idx_y(),
            num_keys,
            first,
            end,
            count,
            num_blocks,
            pages,
            num_pages,
        }
    }

    /// Whether there is nothing to do.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first == self.end
    }

    /// The first page of a split; of the one behind the last, the page behind the row's last.
    #[inline(always)]
    pub fn first_page(&self, split: u32) -> u32 {
        (split * self.pages).min(self.num_pages)
    }

    /// Where the keys of its key-value head in page `index` begin, and the values.
    ///
    /// # Safety
    /// The sequence has more than `index` pages.
    #[inline(always)]
    pub unsafe fn page<P: Pages>(
        &self,
        a: &Attention<P>,
        index: u32,
        head_dim: usize,
    ) -> (*const P, *const P) {
        // SAFETY: the caller's promise.
        unsafe {
            let start =
                self.sequence.page_offset(index, a.num_key_value_heads, self.key_value_head, head_dim);
            (a.k_pages.add(P::place(start)), a.v_pages.add(P::place(start)))
        }
    }

    /// Stores the row's newest key and value where the arguments say so and a split has its page.
    ///
    /// # Safety
    /// All threads of the block call it together, after the kernel before has ended.
    #[inline(always)]
    pub unsafe fn store_newest<P: Pages, const HEAD_DIM: usize>(&self, a: &Attention<P>) {
        // The same for the whole block.
        if self.end == self.count {
            let newest = self.num_keys - 1;
            // SAFETY: the caller's promise.
            unsafe {
                let page = newest / PAGE_SIZE;
                let start =
                    self.sequence.page_offset(page, a.num_key_value_heads, self.key_value_head, HEAD_DIM);
                P::store_newest::<HEAD_DIM>(a, self.row, self.key_value_head, start, newest % PAGE_SIZE);
            }
        }
    }

    /// The query head whose scores this lane is given; for rows of `mma` without one, the last.
    ///
    /// # Safety
    /// As for [`Self::of_block`].
    #[inline(always)]
    pub unsafe fn query<P>(&self, a: &Attention<P>, head_dim: usize) -> *const f32 {
        let head = self.key_value_head * a.heads_per_group + (warp::lane_id() / 4).min(a.heads_per_group - 1);
        // SAFETY: the row's.
        unsafe { a.q.add(offset(self.row, a.num_attention_heads, head) * head_dim) }
    }

    /// Merges what the warps have found of a split, each in its `softmax`: the output of a row that has no other, else for [`Self::finish`]. A lane of
    /// a merging warp has `N` dimensions, so a head's are `HEAD_DIM / 32 / N` pieces of work.
    ///
    /// # Safety
    /// All threads of the block call it together; `outputs` is room for `WARPS * MAX_GROUP * padded(HEAD_DIM)` values, `statistics` for
    /// `WARPS * MAX_GROUP`, which nobody uses any more.
    #[inline(always)]
    pub unsafe fn merge<
        P,
        O: Output<N>,
        const HEAD_DIM: usize,
        const N: usize,
        const HALVES: usize,
        const TILES: usize,
    >(
        &self,
        a: &Attention<P>,
        out: O,
        split: u32,
        softmax: &Softmax<TILES>,
        outputs: Shared<f32>,
        statistics: Shared<[f32; 2]>,
    ) where
        f32: Group<N>,
    {
        let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
        let (r, c) = (lane / 4, lane % 4);
        let pieces = const { (HEAD_DIM / 32 / N) as u32 };
        let stride = padded(HEAD_DIM as u32);
        let place = warp_id * MAX_GROUP + r;
        let sum = softmax.whole_sum();
        // SAFETY: places of this warp's own, then, behind the barrier, of all; splits of the row are in the scratch.
        unsafe {
            if c == 0 {
                statistics.set(place, [softmax.max, sum]);
            }
            repeat(HALVES, |h| {
                repeat(4, |j| {
                    let dimension = (64 * h + 4 * j) as u32 + 16 * c;
                    outputs.add(place * stride + dimension).cast::<[f32; 4]>().set(0, softmax.quad(h, j));
                });
            });
            thread::sync_threads();

            let mut work = warp_id;
            while work < a.heads_per_group * pieces {
                let (head_of_group, piece) = (work / pieces, work % pieces);
                let (max, sum, acc) = warps_together::<N>(head_of_group, piece, stride, outputs, statistics);
                let dimension = (piece * 32 + lane) as usize * N;
                if self.count == 1 {
                    let mut merged = Merged::<N>::EMPTY;
                    merged.add_split(max, sum, acc);
                    out.store(self.place_of_output(a, head_of_group, HEAD_DIM) + dimension, merged.output());
                } else {
                    let place = self.place_of_splits(a, head_of_group) + split as usize;
                    <f32 as Group<N>>::store_group(a.partials.add(place * HEAD_DIM + dimension), acc);
                    if lane == 0 && piece == 0 {
                        <f32 as Group<2>>::store_group(a.statistics.add(2 * place), [max, sum]);
                    }
                }
                work += WARPS;
            }
        }
    }

    /// Where a head's output begins.
    #[inline(always)]
    fn place_of_output<P>(&self, a: &Attention<P>, head_of_group: u32, head_dim: usize) -> usize {
        let head = self.key_value_head * a.heads_per_group + head_of_group;
        offset(self.row, a.num_attention_heads, head) * head_dim
    }

    /// Which the first of a head's splits is in the scratch.
    #[inline(always)]
    fn place_of_splits<P>(&self, a: &Attention<P>, head_of_group: u32) -> usize {
        let head = self.key_value_head * a.heads_per_group + head_of_group;
        offset(thread::block_idx_x(), a.num_attention_heads, head) * a.num_splits as usize
    }

    /// The last block of a row merges all splits and stores the output; `AT_ONCE` are loaded before the first of them is merged, so that their
    /// latencies overlap.
    ///
    /// # Safety
    /// All threads of the block call it together, after [`Self::merge`] of each of its splits.
    #[inline(always)]
    pub unsafe fn finish<P, O: Output<N>, const HEAD_DIM: usize, const N: usize, const AT_ONCE: usize>(
        &self,
        a: &Attention<P>,
        out: O,
        is_last: Shared<u32>,
    ) where
        f32: Group<N>,
    {
        if self.count == 1 {
            return;
        }
        let pieces = const { (HEAD_DIM / 32 / N) as u32 };
        // SAFETY: the caller's promise.
        unsafe {
            let place = thread::block_idx_x() * a.num_key_value_heads + self.key_value_head;
            if !is_last_block(a.counters.add(place as usize), self.num_blocks, is_last) {
                return;
            }
            let mut work = warp::warp_id();
            while work < a.heads_per_group * pieces {
                let (head_of_group, piece) = (work / pieces, work % pieces);
                let first = self.place_of_splits(a, head_of_group);
                let merged = splits_together::<P, N, AT_ONCE>(a, first, self.count, pieces, piece);
                let dimension = (piece * 32 + warp::lane_id()) as usize * N;
                out.store(self.place_of_output(a, head_of_group, HEAD_DIM) + dimension, merged.output());
                work += WARPS;
            }
        }
    }
}

/// What the block's warps have found of a piece of a head: its largest score, the sum of its weights, this lane's dimensions.
///
/// # Safety
/// All warps have written it.
#[device]
#[inline(always)]
unsafe fn warps_together<const N: usize>(
    head: u32,
    piece: u32,
    stride: u32,
    outputs: Shared<f32>,
    statistics: Shared<[f32; 2]>,
) -> (f32, f32, [f32; N]) {
    let mut of_block = [[0.0f32; 2]; WARPS as usize];
    let mut max = f32::NEG_INFINITY;
    let (mut sum, mut acc) = (0.0f32, [0.0f32; N]);
    // SAFETY: the caller's promise.
    unsafe {
        repeat(WARPS as usize, |w| {
            of_block[w] = statistics.get(w as u32 * MAX_GROUP + head);
            max = max.max(of_block[w][0]);
        });
        repeat(WARPS as usize, |w| {
            // The first warp of a split has a page, so there is a maximum; warps without one weigh nothing.
            let weight = (of_block[w][0] - max).exp2();
            sum = of_block[w][1].mul_add(weight, sum);
            repeat(N, |d| {
                let dimension = (piece * 32 + warp::lane_id()) * N as u32 + d as u32;
                let place = (w as u32 * MAX_GROUP + head) * stride + dimension;
                acc[d] = outputs.get(place).mul_add(weight, acc[d]);
            });
        });
    }
    (max, sum, acc)
}

/// Merges the `count` splits of a piece of one head; a warp's lanes each take their dimensions.
///
/// # Safety
/// The splits `first .. first + count`, at most [`MAX_SPLITS`](super::MAX_SPLITS), are written and visible; all lanes of the warp call it
/// together.
#[device]
#[inline(always)]
unsafe fn splits_together<P, const N: usize, const AT_ONCE: usize>(
    a: &Attention<P>,
    first: usize,
    count: u32,
    pieces: u32,
    piece: u32,
) -> Merged<N>
where
    f32: Group<N>,
{
    let lane = warp::lane_id();
    // Of splits `lane` and `lane + 32`. Past L1, which may hold older values.
    let mut statistics = [[f32::NEG_INFINITY, 0.0]; 2];
    repeat(2, |i| {
        let split = lane + 32 * i as u32;
        if split < count {
            let place = a.statistics.cast_const().cast::<[f32; 2]>();
            // SAFETY: inside the splits.
            statistics[i] = unsafe { memory::load_l2(place.add(first + split as usize)) };
        }
    });
    let mut weights = [0.0; 2];
    let (mut max, mut sum, mut acc) = (0.0, 0.0, [0.0f32; N]);
    let mut split = 0;
    while split < count {
        let mut accs = [[0.0f32; N]; AT_ONCE];
        repeat(AT_ONCE, |i| {
            if split + (i as u32) < count {
                let place = a.partials.cast_const().cast::<[f32; N]>();
                let index = (first + split as usize + i) * pieces as usize + piece as usize;
                // SAFETY: inside the splits.
                accs[i] = unsafe { memory::load_l2(place.add(index * 32 + lane as usize)) };
            }
        });
        if split == 0 {
            max = warp::reduce_max(statistics[0][0].max(statistics[1][0]));
            repeat(2, |i| weights[i] = (statistics[i][0] - max).exp2());
            sum = warp::reduce_sum(statistics[0][1] * weights[0] + statistics[1][1] * weights[1]);
        }
        repeat(AT_ONCE, |i| {
            let split = split + i as u32;
            let weight = warp::shuffle_idx(if split < 32 { weights[0] } else { weights[1] }, split % 32);
            repeat(N, |d| acc[d] = weight.mul_add(accs[i][d], acc[d]));
        });
        split += AT_ONCE as u32;
    }
    let mut merged = Merged::EMPTY;
    merged.add_split(max, sum, acc);
    merged
}
