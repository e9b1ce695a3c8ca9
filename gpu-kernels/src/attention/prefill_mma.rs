//! Attention of rows on tensor cores, tile by tile.
//!
//! FlashAttention-2 (Dao 2023): a warp keeps 16 or 32 queries and their outputs in registers and goes over the keys; scores and
//! weights never leave its registers, since the accumulators of `q · kᵀ` lie as `mma` wants its first factor in `weights · v`.
//!
//! # Arithmetic
//! For a row that sees `num_keys` keys, and one head:
//!
//! 1. `q` is multiplied with [`query_scale`](super::query_scale) and rounded to the pages' format, the softmax is one of
//!    powers of 2; scores are the tensor cores' sums in f32, 16 dimensions after the other.
//! 2. Keys are taken in steps of 64 (in `mma32p`: of 32), counted from position 0. What scores are relative to is the largest
//!    score of the first step, and becomes that of a later step where this is more than [`REFERENCE_STEP`] larger; then sum and
//!    output are scaled down. So weights are below 2^8, which all formats hold, and are hardly ever rescaled (the idea is
//!    FlashAttention-4's).
//! 3. Weights are summed in f32, each lane of four its own keys, then across them; as factors of the values they are rounded to
//!    the pages' format. 16 keys after the other are added to the output in f32.
//!
//! Nothing of this depends on other rows: a row of `mma`'s result depends on that row of its operands alone, and steps begin at
//! the same keys for all. Keys that a row does not see have the score -∞ and the weight 0; a step of which it sees none
//! changes nothing, neither reference nor sum nor output. So a row has the same bits whatever is in its tile, its batch or its
//! chunk, from `mma16` and from `mma32`; `mma32p` has others, and so have the kernels in `super`, which do not round.
//!
//! # Three variants
//! A matrix of 8 keys that `ldmatrix` loads is multiplied with 16 queries in `mma16` and with 32 in the others, which so read half as
//! much of the shared memory, but with tiles of 128 queries leave multiprocessors idle on short prompts. For heads of 64 `mma32` takes
//! 248 registers, so 2 blocks run on a multiprocessor of an H200; `mma32p`, with half the scores at a time, takes 168, so 3 do, but
//! there the queries must be read from shared memory too. With heads of 128, `mma32` keeps some words that are used once a
//! sequence or tile in local memory.
//!
//! # Keys and values
//! Tiles are copied with `cp.async` some stages ahead. 16-byte words of a row are stored at their column exclusive-or the row
//! modulo 8, so that the eight rows of a matrix that `ldmatrix` loads lie on different banks. Keys behind the last one
//! become zeros, since what weighs 0 must not be NaN.

use cuda_std::prelude::*;

#[device]
use super::{
    Rows,
    mma_softmax::{Queries, Scores},
    mma_stages::{Stages, TILE_PAGES, column_pair},
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

/// Warps of a block.
pub const MMA_WARPS: u32 = 4;

/// Threads of a block.
pub const MMA_BLOCK_SIZE: u32 = 32 * MMA_WARPS;

/// Keys of a tile.
pub const MMA_KEYS: u32 = 64;

/// How much larger than the reference, to the base 2, a score may be.
pub const REFERENCE_STEP: f32 = 8.0;

/// Queries (a row and a head each) of a block whose warps have `blocks` times 16.
pub const fn mma_queries(blocks: u32) -> u32 {
    16 * blocks * MMA_WARPS
}

/// Tiles in shared memory: one that is computed on, the others on their way.
pub const fn mma_stages(head_dim: u32) -> u32 {
    if head_dim == 64 { 3 } else { 2 }
}

/// Whether queries wait in shared memory, where there are not enough registers for them.
const fn queries_in_shared(blocks: u32, columns: u32, head_dim: u32) -> bool {
    blocks == 2 && (head_dim == 128 || columns == 4)
}

/// Bytes of dynamic shared memory, where warps have `blocks` times 16 queries and steps `columns` times 8 keys.
pub const fn mma_shared_bytes(blocks: u32, columns: u32, head_dim: u32) -> u32 {
    let row = 2 * head_dim;
    let queries = if queries_in_shared(blocks, columns, head_dim) { mma_queries(blocks) * row } else { 0 };
    mma_stages(head_dim) * 2 * MMA_KEYS * row + queries
}

/// Repeats a block with `$i` = 0, 1, … below `$count`, 2, 4 or 8 times at most. What is indexed by `$i` must be in registers,
/// and the compiler does not unroll a loop as long as these.
#[device]
macro_rules! each {
    (2: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1) };
    (4: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1 2 3) };
    (8: $i:ident < $count:expr => $body:block) => { each!($i < $count => $body; 0 1 2 3 4 5 6 7) };
    ($i:ident < $count:expr => $body:block; $($value:literal)*) => {{
        const { assert!($count <= [$($value),*].len()) }
        $(if $value < $count {
            let $i: usize = $value;
            $body
        })*
    }};
}

#[device]
struct Shape {
    num_tokens: u32,
    heads_per_group: u32,
    num_key_value_heads: u32,
    min_rows: u32,
}

/// # Safety
/// As for the kernels. `K` is `HEAD_DIM / 16`, `N` is `HEAD_DIM / 8`.
#[device]
#[inline(always)]
unsafe fn attention<
    E: MmaElement + Group<2, Word = u32>,
    const HEAD_DIM: usize,
    const K: usize,
    const N: usize,
    const BLOCKS: usize,
    const COLUMNS: usize,
>(
    shape: &Shape,
    rows: &Rows,
    q: *const f32,
    k_pages: *const E,
    v_pages: *const E,
    out: *mut E,
) {
    const { assert!(K * 16 == HEAD_DIM && N * 8 == HEAD_DIM) }
    let queries = const { mma_queries(BLOCKS as u32) };
    let heads_per_group = shape.heads_per_group;
    // The last tiles have the most keys, so they start first.
    let begin = (thread::grid_dim_y() - 1 - thread::block_idx_y()) * queries;
    let end = (begin + queries).min(shape.num_tokens * heads_per_group);
    let mut first = begin;
    // Queries of several sequences in one tile: one sequence after the other. All threads of the block agree on every
    // bound here, so they reach the barriers together.
    while first < end {
        // SAFETY: `first` belongs to a row of the batch; the segment's queries too.
        unsafe {
            let sequence = rows.sequence_of(divide(first, heads_per_group).0);
            let stop = end.min(sequence.end * heads_per_group);
            if sequence.num_rows() >= shape.min_rows {
                let segment = Segment::<E, HEAD_DIM> {
                    blocks: sequence.blocks,
                    // Wraps where the sequence has no more keys than rows before it in the batch.
                    keys_before: sequence.kv_len.wrapping_sub(sequence.end).wrapping_add(1),
                    num_key_value_heads: shape.num_key_value_heads,
                    heads_per_group,
                    key_value_head: thread::block_idx_x(),
                    stop,
                    q,
                    k_pages,
                    v_pages,
                    out,
                };
                segment.attend::<K, N, BLOCKS, COLUMNS>(first);
            }
            first = stop;
        }
    }
}

/// Queries of one sequence and key-value head, and the arrays that they are in.
#[device]
struct Segment<E, const HEAD_DIM: usize> {
    /// The sequence's pages.
    blocks: *const u32,
    /// Keys that a row sees, less its number in the batch, modulo 2^32.
    keys_before: u32,
    num_key_value_heads: u32,
    heads_per_group: u32,
    key_value_head: u32,
    /// The query after the last.
    stop: u32,
    q: *const f32,
    k_pages: *const E,
    v_pages: *const E,
    out: *mut E,
}

/// Dimensions `16 i ..` of 16 queries, of which a lane is given its first dimensions of two, as `a` of `mma`.
///
/// # Safety
/// The queries are readable, aligned to 8 bytes.
#[device]
#[inline(always)]
unsafe fn query_words<E: PackedElement, const HEAD_DIM: usize>(rows: [*const f32; 2], i: usize) -> [u32; 4] {
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
impl<E: MmaElement + Group<2, Word = u32>, const HEAD_DIM: usize> Segment<E, HEAD_DIM> {
    /// Keys that the query sees.
    #[inline(always)]
    fn num_keys(&self, query: u32) -> u32 {
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
    unsafe fn pages(&self, first_key: u32, all_keys: u32) -> [u32; TILE_PAGES] {
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
    unsafe fn copy(&self, stages: Stages<HEAD_DIM>, stage: u32, pages: [u32; TILE_PAGES], keys: u32) {
        let (mut k, mut v) = ([self.k_pages; TILE_PAGES], [self.v_pages; TILE_PAGES]);
        repeat(TILE_PAGES, |i| {
            let index = pages[i] as usize * self.num_key_value_heads as usize + self.key_value_head as usize;
            let start = index * (crate::PAGE_SIZE as usize * HEAD_DIM);
            (k[i], v[i]) = (k[i].wrapping_add(start), v[i].wrapping_add(start));
        });
        // SAFETY: the caller's promise.
        unsafe { stages.copy(stage, k, v, keys) }
    }

    /// This lane's first dimensions of its two rows of 16 queries from `first` on. For queries behind the last, that one.
    #[inline(always)]
    fn query_rows(&self, first: u32) -> [*const f32; 2] {
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
    fn mask<const COLUMNS: usize>(&self, scores: &mut Scores<COLUMNS>, first_key: u32, first: u32) {
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
    /// As for [`attention`]; all threads of the block call it together with the same values.
    #[inline(always)]
    unsafe fn attend<const K: usize, const N: usize, const BLOCKS: usize, const COLUMNS: usize>(
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
        let shared_queries = stages
            .words
            .add(Stages::<HEAD_DIM>::COUNT * 2 * Stages::<HEAD_DIM>::TILE)
            .add(warp_id * (BLOCKS * K) as u32 * 32 + lane);

        // SAFETY: queries below `stop` are rows of the batch; pages of the sequence hold the keys that its rows see. A stage
        // is written between the barrier after its last use and the barrier before its next.
        unsafe {
            // The last row sees the most keys.
            let all_keys = self.num_keys(self.stop - 1);
            // Nobody uses the stages for the last segment any more.
            thread::sync_threads();
            repeat(Stages::<HEAD_DIM>::COUNT as usize - 1, |tile| {
                let first_key = tile as u32 * MMA_KEYS;
                if first_key < all_keys {
                    let pages = self.pages(first_key, all_keys);
                    self.copy(stages, tile as u32, pages, all_keys - first_key);
                }
                async_copy::commit_group();
            });
            // From the first key of a tile to that of the tile that is copied meanwhile.
            let ahead = const { (Stages::<HEAD_DIM>::COUNT - 1) * MMA_KEYS };
            // Loaded a tile before they are needed, where there are registers for them.
            let crowded = BLOCKS == 2 && HEAD_DIM == 128;
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
                if Stages::<HEAD_DIM>::COUNT == 3 {
                    async_copy::wait_group::<1>();
                } else {
                    async_copy::wait_group::<0>();
                }
                thread::sync_threads();
                if first_key + ahead < all_keys {
                    let free = if stage == 0 { Stages::<HEAD_DIM>::COUNT - 1 } else { stage - 1 };
                    if crowded {
                        pages = self.pages(first_key + ahead, all_keys);
                    }
                    self.copy(stages, free, pages, all_keys - first_key - ahead);
                    if !crowded {
                        pages = self.pages(first_key + ahead + MMA_KEYS, all_keys);
                    }
                }
                async_copy::commit_group();
                let mut keys = stages.keys(stage).add(k_word);
                let mut values = stages.keys(stage).add(Stages::<HEAD_DIM>::TILE + v_word);
                stage = if stage + 1 == Stages::<HEAD_DIM>::COUNT { 0 } else { stage + 1 };
                // The same in all lanes of the warp; it still comes to the barriers above for every tile.
                let mut step_key = first_key;
                first_key += MMA_KEYS;
                while step_key < first_key.min(warp_keys) {
                    // Scores: 16 dimensions at a time, and 16 keys.
                    let mut scores = [[[0.0; 4]; COLUMNS]; BLOCKS];
                    each!(8: i < K => {
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
                        each!(8: n < N / 2 => {
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
    unsafe fn store<const N: usize>(&self, first: u32, state: &Queries<N>) {
        let (row, pair) = (warp::lane_id() / 4, 2 * (warp::lane_id() % 4));
        repeat(2, |half| {
            let sum = state.sum[half];
            let sum = sum.add_rn(warp::shuffle_xor(sum, 1));
            let sum = sum.add_rn(warp::shuffle_xor(sum, 2));
            let scale = 1.0 / sum;
            let query = first + row + 8 * half as u32;
            if query < self.stop {
                // SAFETY: the caller's promise.
                let to = unsafe { self.out.add(self.place(query) + pair as usize) };
                repeat(N, |n| {
                    let acc = &state.acc[n];
                    let values = [acc[2 * half] * scale, acc[2 * half + 1] * scale];
                    // SAFETY: two dimensions of the lane.
                    unsafe { <E as Group<2>>::store_group(to.add(8 * n), values) }
                });
            }
        });
    }
}

macro_rules! attention_prefill_mma {
    ($($element:ident: $($head_dim:literal $blocks:literal $columns:literal $min_blocks:literal $name:ident),*;)*) => { $($(
        #[doc = concat!("`softmax(q · kᵀ / sqrt(", stringify!($head_dim), ")) · v` on tensor cores for the rows of all sequences that have at least")]
        #[doc = concat!("`min_rows` in the batch, ", stringify!($head_dim), " dimensions a head, a warp for ", stringify!($blocks), " times 16 queries.")]
        ///
        /// Arrays: see [`super`]; arithmetic: see the module. `out` is
        #[doc = concat!(stringify!($element), " `[num_tokens, num_attention_heads * head_dim]`; other rows of it are left alone.")]
        ///
        /// `heads_per_group` is `num_attention_heads / num_key_value_heads`. Query `t * heads_per_group + h` is head `h` of the
        /// group in row `t`, below 2^32 in all; a tile is [`mma_queries`] of them in a row, whatever sequences they belong to.
        ///
        /// Grid `[num_key_value_heads, ceil(num_tokens * heads_per_group / mma_queries), 1]`, exact; block
        /// `[MMA_BLOCK_SIZE, 1, 1]`; dynamic shared memory [`mma_shared_bytes`].
        ///
        /// # Safety
        /// Grid, block and shared memory are as above, arrays are as described and aligned to 16 bytes, `out` overlaps nothing.
        #[kernel(max_threads = 128, min_blocks = $min_blocks)]
        pub unsafe fn $name(
            num_tokens: u32,
            heads_per_group: u32,
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
            let shape = Shape { num_tokens, heads_per_group, num_key_value_heads, min_rows };
            let rows = Rows { sequence_of_token, query_start, kv_len, block_table, max_blocks };
            // SAFETY: the kernel's own contract.
            unsafe {
                attention::<$element, $head_dim, { $head_dim / 16 }, { $head_dim / 8 }, $blocks, $columns>(
                    &shape, &rows, q, k_pages, v_pages, out,
                )
            }
        }
    )*)* };
}

attention_prefill_mma! {
    f16: 64 2 8 2 attention_prefill_f16_mma32_h64, 128 2 8 2 attention_prefill_f16_mma32_h128,
        64 2 4 3 attention_prefill_f16_mma32p_h64, 128 2 4 2 attention_prefill_f16_mma32p_h128,
        64 1 8 3 attention_prefill_f16_mma16_h64, 128 1 8 2 attention_prefill_f16_mma16_h128;
    bf16: 64 2 8 2 attention_prefill_bf16_mma32_h64, 128 2 8 2 attention_prefill_bf16_mma32_h128,
        64 2 4 3 attention_prefill_bf16_mma32p_h64, 128 2 4 2 attention_prefill_bf16_mma32p_h128,
        64 1 8 3 attention_prefill_bf16_mma16_h64, 128 1 8 2 attention_prefill_bf16_mma16_h128;
}
