//! The queries of one sequence that a block has, of the kernels of [`prefill_mma`](super::prefill_mma).

use core::marker::PhantomData;

use cuda_std::prelude::*;

#[device]
use super::{
    Attention,
    formats::Output,
    mma_softmax::{Queries, Scores},
    mma_stages::{Source, Stages, TILE_PAGES, column_pair},
    prefill_mma::{MMA_KEYS, queries_in_shared},
    query_scale,
};
#[device]
use crate::{
    grid::{divide, repeat},
    vector::Group,
};
#[device]
use cuda_std::{
    async_copy,
    mma::{self, MmaElement},
};

/// Repeats a block with `$i` = 0, 1, … below `$count`, 2, 4 or 16 times at most. What is indexed by `$i` must be in registers,
/// and the compiler does not unroll a loop as long as these.
#[device]
macro_rules! each {
    (2: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1) };
    (4: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1 2 3) };
    (16: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    ($i:ident < $count:expr => $body:block; $($value:literal)*) => {{
        const { assert!($count <= [$($value),*].len()) }
        $(if $value < $count {
            let $i: usize = $value;
            $body
        })*
    }};
}

/// Queries of one sequence and key-value head, and the arrays that they are in: pages of `S`, which become tiles of `E`.
#[device]
pub(super) struct Segment<E, S, O, const HEAD_DIM: usize> {
    /// The sequence's pages.
    pub(super) blocks: *const u32,
    /// Keys that a row sees, less its number in the batch, modulo 2^32.
    pub(super) keys_before: u32,
    pub(super) num_key_value_heads: u32,
    pub(super) heads_per_group: u32,
    pub(super) key_value_head: u32,
    /// The query after the last.
    pub(super) stop: u32,
    pub(super) q: *const f32,
    pub(super) k_pages: *const S,
    pub(super) v_pages: *const S,
    pub(super) out: O,
    pub(super) element: PhantomData<E>,
}

/// Calls `each` with the queries that the block has and the first of them, sequence by sequence, but for sequences that are skipped. A block has `queries` of them, the first
/// of the grid the last ones, which have the most keys.
///
/// # Safety
/// As for the kernels. All threads of the block agree on all that `each` is given.
#[device]
#[inline(always)]
pub(super) unsafe fn segments<E, S: Copy, O: Copy, const HEAD_DIM: usize>(
    a: &Attention<S>,
    out: O,
    queries: u32,
    mut each: impl FnMut(Segment<E, S, O, HEAD_DIM>, u32),
) {
    let heads_per_group = a.heads_per_group;
    let begin = (thread::grid_dim_y() - 1 - thread::block_idx_y()) * queries;
    let end = (begin + queries).min(a.num_tokens * heads_per_group);
    let mut first = begin;
    while first < end {
        // SAFETY: `first` belongs to a row of the batch.
        let sequence = unsafe { a.sequence_of(divide(first, heads_per_group).0) };
        let stop = end.min(sequence.end * heads_per_group);
        if sequence.num_rows() >= a.min_rows {
            let segment = Segment {
                blocks: sequence.blocks,
                // Wraps where the sequence has no more keys than rows before it in the batch.
                keys_before: sequence.kv_len.wrapping_sub(sequence.end).wrapping_add(1),
                num_key_value_heads: a.num_key_value_heads,
                heads_per_group,
                key_value_head: thread::block_idx_x(),
                stop,
                q: a.q,
                k_pages: a.k_pages,
                v_pages: a.v_pages,
                out,
                element: PhantomData,
            };
            each(segment, first);
        }
        first = stop;
    }
}

/// Dimensions `16 i ..` of 16 queries, of which a lane is given its first dimensions of two, as `a` of `mma`.
///
/// # Safety
/// The queries are readable, aligned to 8 bytes.
#[device]
#[inline(always)]
pub(super) unsafe fn query_words<E: PackedElement, const HEAD_DIM: usize>(
    rows: [*const f32; 2],
    i: usize,
) -> [u32; 4] {
    let scale = query_scale::<HEAD_DIM>();
    let mut words = [0; 4];
    repeat(2, |half| {
        repeat(2, |right| {
            // SAFETY: the caller's promise.
            let [a, b] = unsafe { <f32 as Group<2>>::load_group(rows[half].add(16 * i + 8 * right)) };
            words[half + 2 * right] = E::pack2(a * scale, b * scale);
        });
    });
    words
}

#[device]
impl<E: MmaElement, S: Source<HEAD_DIM>, O: Output<2>, const HEAD_DIM: usize> Segment<E, S, O, HEAD_DIM> {
    /// Keys that the query sees.
    #[inline(always)]
    pub(super) fn num_keys(&self, query: u32) -> u32 {
        divide(query, self.heads_per_group).0.wrapping_add(self.keys_before)
    }

    /// Where the query is in `q` and `out`.
    #[inline(always)]
    fn place(&self, query: u32) -> usize {
        let (row, head_of_group) = divide(query, self.heads_per_group);
        let group = row as usize * self.num_key_value_heads as usize + self.key_value_head as usize;
        (group * self.heads_per_group as usize + head_of_group as usize) * HEAD_DIM
    }

    /// The pages of the tile from `first_key` on; for pages without a key, the last that has some.
    ///
    /// # Safety
    /// The sequence has `all_keys` keys, at least one.
    #[inline(always)]
    pub(super) unsafe fn pages(&self, first_key: u32, all_keys: u32) -> [u32; TILE_PAGES] {
        let mut pages = [0; TILE_PAGES];
        repeat(TILE_PAGES, |i| {
            let page = (first_key / crate::PAGE_SIZE + i as u32).min((all_keys - 1) / crate::PAGE_SIZE);
            // SAFETY: one of its pages.
            pages[i] = unsafe { *self.blocks.add(page as usize) };
        });
        pages
    }

    /// Starts copying a tile, of which the sequence has the first `keys` keys.
    ///
    /// # Safety
    /// The pages are the tile's; nobody uses the stage.
    #[inline(always)]
    unsafe fn copy(
        &self,
        stages: Stages<HEAD_DIM>,
        stage: u32,
        pages: [u32; TILE_PAGES],
        keys: u32,
    ) -> S::Held {
        let [k, v] = self.page_starts(pages);
        // SAFETY: the caller's promise.
        unsafe { S::copy(stages, stage, k, v, keys) }
    }

    /// Where the head's keys and its values of these pages begin.
    #[inline(always)]
    pub(super) fn page_starts(&self, pages: [u32; TILE_PAGES]) -> [[*const S; TILE_PAGES]; 2] {
        let (mut k, mut v) = ([self.k_pages; TILE_PAGES], [self.v_pages; TILE_PAGES]);
        repeat(TILE_PAGES, |i| {
            let index = pages[i] as usize * self.num_key_value_heads as usize + self.key_value_head as usize;
            let start = S::place(index * (crate::PAGE_SIZE as usize * HEAD_DIM));
            (k[i], v[i]) = (k[i].wrapping_add(start), v[i].wrapping_add(start));
        });
        [k, v]
    }

    /// This lane's first dimensions of its two rows of 16 queries from `first` on. For queries behind the last, that one.
    #[inline(always)]
    pub(super) fn query_rows(&self, first: u32) -> [*const f32; 2] {
        let (row, pair) = (warp::lane_id() / 4, 2 * (warp::lane_id() % 4));
        let mut rows = [self.q; 2];
        repeat(2, |half| {
            let query = (first + row + 8 * half as u32).min(self.stop - 1);
            rows[half] = rows[half].wrapping_add(self.place(query) + pair as usize);
        });
        rows
    }

    /// Sets scores to -∞ of keys that a query does not see, for 16 queries from `first` on and the step from `first_key` on.
    #[inline(always)]
    pub(super) fn mask<const COLUMNS: usize>(
        &self,
        scores: &mut Scores<COLUMNS>,
        first_key: u32,
        first: u32,
    ) {
        let (row, pair) = (warp::lane_id() / 4, 2 * (warp::lane_id() % 4));
        repeat(2, |half| {
            let query = (first + row + 8 * half as u32).min(self.stop - 1);
            // Keys of the step, from this lane's first on, that the query sees.
            let seen = self.num_keys(query).saturating_sub(first_key + pair);
            repeat(COLUMNS, |n| {
                repeat(2, |i| {
                    if (8 * n + i) as u32 >= seen {
                        scores[n][2 * half + i] = f32::NEG_INFINITY;
                    }
                });
            });
        });
    }

    /// The queries from `first` on, as many as a block has; 8 `COLUMNS` keys a step.
    ///
    /// # Safety
    /// As for the kernels; all threads of the block call it together with the same values.
    #[inline(always)]
    pub(super) unsafe fn attend<const K: usize, const N: usize, const BLOCKS: usize, const COLUMNS: usize>(
        &self,
        first: u32,
    ) {
        let step_keys = const { 8 * COLUMNS as u32 };
        let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
        let stages = Stages::<HEAD_DIM> { words: dynamic_shared() };
        let row_words = Stages::<HEAD_DIM>::ROW;
        let warp_first = first + warp_id * 16 * BLOCKS as u32;
        // Behind the stages, where they are there: each lane's own words of the queries.
        let in_shared = const { queries_in_shared(BLOCKS as u32, COLUMNS as u32, HEAD_DIM as u32) };
        let shared_queries = stages.words.add(S::WORDS).add(warp_id * (BLOCKS * K) as u32 * 32 + lane);

        // SAFETY: queries below `stop` are rows of the batch; pages of the sequence hold the keys that its rows see. A stage
        // is written between the barrier after its last use and the barrier before its next.
        unsafe {
            // The last row sees the most keys.
            let all_keys = self.num_keys(self.stop - 1);
            // Nobody uses the stages for the last segment any more.
            thread::sync_threads();
            let mut held = S::NOTHING;
            repeat(if S::DECODES { 1 } else { S::COUNT as usize - 1 }, |tile| {
                let first_key = tile as u32 * MMA_KEYS;
                if first_key < all_keys {
                    let pages = self.pages(first_key, all_keys);
                    held = self.copy(stages, tile as u32, pages, all_keys - first_key);
                }
                async_copy::commit_group();
            });
            // From the first key of a tile to that of the tile that is copied meanwhile.
            let ahead = if S::DECODES { MMA_KEYS } else { (S::COUNT - 1) * MMA_KEYS };
            // Loaded a tile before they are needed, where there are registers for them.
            let crowded = S::DECODES || HEAD_DIM == 256 || (BLOCKS == 2 && HEAD_DIM == 128);
            let mut pages = self.pages(ahead, all_keys);
            let mut stage = 0;

            let mut queries = [[[0; 4]; K]; BLOCKS];
            repeat(BLOCKS, |m| {
                let rows = self.query_rows(warp_first + 16 * m as u32);
                repeat(K, |i| {
                    let words = query_words::<E, HEAD_DIM>(rows, i);
                    if in_shared {
                        shared_queries.set(32 * (m * K + i) as u32, words);
                    } else {
                        queries[m][i] = words;
                    }
                });
            });
            // Keys that the warp's last query sees. Each query before it sees one key less at most.
            let warp_keys = if warp_first < self.stop {
                self.num_keys((warp_first + 16 * BLOCKS as u32).min(self.stop) - 1)
            } else {
                0
            };
            let mut state = [Queries::<N>::EMPTY; BLOCKS];

            // The words that `ldmatrix` wants of this lane first: two times two matrices of 8 × 8, for K the second one right of
            // the first, for V below.
            let (matrix, matrix_row) = (lane / 8, lane % 8);
            let k_word = (matrix / 2 * 8 + matrix_row) * row_words + ((matrix % 2) ^ matrix_row);
            let v_word = (matrix % 2 * 8 + matrix_row) * row_words + ((matrix / 2) ^ matrix_row);

            let mut first_key = 0;
            while first_key < all_keys {
                // This tile's copies are complete, this thread's and then everybody's; nobody uses the stage before any more.
                if S::COUNT == 3 {
                    async_copy::wait_group::<1>();
                } else {
                    async_copy::wait_group::<0>();
                }
                thread::sync_threads();
                S::decode(stages, held);
                if first_key + ahead < all_keys {
                    let free = if stage == 0 { S::COUNT - 1 } else { stage - 1 };
                    if crowded {
                        pages = self.pages(first_key + ahead, all_keys);
                    }
                    held = self.copy(stages, free, pages, all_keys - first_key - ahead);
                    if !crowded {
                        pages = self.pages(first_key + ahead + MMA_KEYS, all_keys);
                    }
                }
                async_copy::commit_group();
                if S::DECODES {
                    // The tile is complete, for every thread.
                    thread::sync_threads();
                }
                let mut keys = stages.keys(stage).add(k_word);
                let mut values = stages.keys(stage).add(Stages::<HEAD_DIM>::TILE + v_word);
                stage = if stage + 1 == S::COUNT { 0 } else { stage + 1 };
                // The same in all lanes of the warp; it still comes to the barriers above for every tile.
                let mut step_key = first_key;
                first_key += MMA_KEYS;
                while step_key < first_key.min(warp_keys) {
                    // Scores: 16 dimensions at a time, and 16 keys.
                    let mut scores = [[[0.0; 4]; COLUMNS]; BLOCKS];
                    each!(16: i < K => {
                        let mut a = [[0; 4]; BLOCKS];
                        repeat(BLOCKS, |m| {
                            a[m] = if in_shared { shared_queries.get(32 * (m * K + i) as u32) } else { queries[m][i] };
                        });
                        let column = column_pair(keys, i as u32);
                        each!(4: n < COLUMNS / 2 => {
                            let [b0, b1, b2, b3] = mma::ldmatrix_x4(column.add(16 * n as u32 * row_words));
                            repeat(BLOCKS, |m| {
                                scores[m][2 * n] = E::mma_m16n8k16(a[m], [b0, b1], scores[m][2 * n]);
                                scores[m][2 * n + 1] = E::mma_m16n8k16(a[m], [b2, b3], scores[m][2 * n + 1]);
                            });
                        });
                    });

                    if step_key + step_keys + 16 * BLOCKS as u32 > warp_keys {
                        each!(2: m < BLOCKS => {
                            self.mask(&mut scores[m], step_key, warp_first + 16 * m as u32);
                        });
                    }

                    let mut shrink = [[1.0; 2]; BLOCKS];
                    repeat(BLOCKS, |m| shrink[m] = state[m].refer(&scores[m]));
                    let mut changed = false;
                    repeat(BLOCKS, |m| changed |= shrink[m][0] != 1.0 || shrink[m][1] != 1.0);
                    if warp::warp_vote_any(warp::FULL_MASK, changed) {
                        each!(2: m < BLOCKS => { state[m].shrink(shrink[m]) });
                    }

                    // Values: 16 keys at a time, and 16 dimensions.
                    each!(4: i < COLUMNS / 2 => {
                        let mut a = [[0; 4]; BLOCKS];
                        repeat(BLOCKS, |m| a[m] = state[m].weights::<E, COLUMNS>(&scores[m], i));
                        each!(16: n < N / 2 => {
                            let column = column_pair(values, n as u32);
                            let [b0, b1, b2, b3] = mma::ldmatrix_x4_trans(column.add(16 * i as u32 * row_words));
                            repeat(BLOCKS, |m| {
                                let acc = &mut state[m].acc;
                                acc[2 * n] = E::mma_m16n8k16(a[m], [b0, b1], acc[2 * n]);
                                acc[2 * n + 1] = E::mma_m16n8k16(a[m], [b2, b3], acc[2 * n + 1]);
                            });
                        });
                    });

                    step_key += step_keys;
                    keys = keys.add(step_keys * row_words);
                    values = values.add(step_keys * row_words);
                }
            }

            each!(2: m < BLOCKS => {
                self.store(warp_first + 16 * m as u32, &state[m]);
            });
        }
    }

    /// Writes the outputs of 16 queries from `first` on, those below `stop`.
    ///
    /// # Safety
    /// Queries below `stop` are in `out`; all lanes of the warp call it together.
    #[inline(always)]
    pub(super) unsafe fn store<const N: usize>(&self, first: u32, state: &Queries<N>) {
        let (row, pair) = (warp::lane_id() / 4, 2 * (warp::lane_id() % 4));
        repeat(2, |half| {
            let sum = state.sum[half];
            let sum = sum.add_rn(warp::shuffle_xor(sum, 1));
            let sum = sum.add_rn(warp::shuffle_xor(sum, 2));
            let scale = 1.0 / sum;
            let query = first + row + 8 * half as u32;
            if query < self.stop {
                let to = self.place(query) + pair as usize;
                repeat(N, |n| {
                    let acc = &state.acc[n];
                    let values = [acc[2 * half] * scale, acc[2 * half + 1] * scale];
                    // SAFETY: two dimensions of the lane.
                    unsafe { self.out.store(to + 8 * n, values) }
                });
            }
        });
    }
}
