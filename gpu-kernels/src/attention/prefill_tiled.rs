//! Attention of rows, tile by tile: K and V are read once for many queries.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{Merged, PADDING, Partial, Score, Sequence, four, row_words, stage_query};
#[device]
use crate::{
    grid::{divide, repeat},
    vector::{Group, load_words},
};

/// Warps of a block.
pub const TILED_WARPS: u32 = 4;

/// Queries (a row and a head each) of a warp.
pub const TILED_WARP_QUERIES: u32 = 8;

/// Queries of a block.
pub const TILED_QUERIES: u32 = TILED_WARPS * TILED_WARP_QUERIES;

/// Threads of a block.
pub const TILED_BLOCK_SIZE: u32 = 32 * TILED_WARPS;

/// [`TILED_WARP_QUERIES`] as the length of arrays.
#[device]
const QUERIES: usize = TILED_WARP_QUERIES as usize;

/// Repeats a block with `$i` = 0, 1, …, 7: one copy for each query of a warp. What is indexed by `$i` must be
/// in registers, and the compiler does not unroll a loop as long as these.
#[device]
macro_rules! each_query {
    ($i:ident => $body:block) => {
        each_query!($i => $body; 0 1 2 3 4 5 6 7)
    };
    ($i:ident => $body:block; $($value:literal)*) => {{
        const { assert!(QUERIES == [$($value),*].len()) }
        $({
            let $i: usize = $value;
            $body
        })*
    }};
}

/// Keys whose values are read before the first is used.
#[device]
const KEYS_AHEAD: usize = 2;

/// A block's shared memory.
#[device]
#[derive(Clone, Copy)]
struct Tile {
    /// A page of K, rows padded.
    k: Shared<[u32; 4]>,
    /// A page of V.
    v: Shared<[u32; 4]>,
    /// `[TILED_QUERIES, HEAD_DIM]`
    queries: Shared<f32>,
    /// `[TILED_WARPS, PAGE_SIZE, TILED_WARP_QUERIES]`: the weight of each key for each query.
    weights: Shared<f32>,
    /// `[TILED_QUERIES]`: keys that each query sees. Here since in registers they, and what follows from them,
    /// would crowd out accumulators.
    num_keys: Shared<u32>,
}

/// As [`plain`](super::prefill::plain), with the same bits, a tile of queries a block: each page of K and V is
/// read from global memory once for 32 queries, and from shared memory once for 8.
///
/// Query `t * heads_per_group + h` is head `h` of the group in row `t`; a tile is [`TILED_QUERIES`] of them in a row, whatever
/// sequences they belong to. Below 2^32 in all.
///
/// Grid `[ceil(num_tokens * heads_per_group / TILED_QUERIES), num_key_value_heads, 1]`, exact; block
/// `[TILED_BLOCK_SIZE, 1, 1]`. A warp takes [`TILED_WARP_QUERIES`] queries, a page at a time: for the
/// scores lane `i` takes key `i` against all of them, for the values `N = HEAD_DIM / 32` dimensions.
///
/// # Safety
/// As for [`plain`](super::prefill::plain), with this grid and block.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, N, BLOCKS) = [(64, 2, 4), (128, 4, 3)],
    name = "attention_prefill_{E}_tiled_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = BLOCKS,
)]
pub unsafe fn tiled<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
    a: Attention<E>,
    #[shared(32 * (HEAD_DIM * size_of::<E>() + PADDING) / 16)] k: Shared<[u32; 4]>,
    #[shared(32 * HEAD_DIM * size_of::<E>() / 16)] v: Shared<[u32; 4]>,
    #[shared(TILED_QUERIES as usize * HEAD_DIM)] queries: Shared<f32>,
    #[shared(32 * TILED_QUERIES as usize)] weights: Shared<f32>,
    #[shared(TILED_QUERIES as usize)] num_keys: Shared<u32>,
) {
    let tile = Tile { k, v, queries, weights, num_keys };
    let heads_per_group = a.heads_per_group;
    // The last tiles have the most keys, so they start first.
    let begin = (thread::grid_dim_x() - 1 - thread::block_idx_x()) * TILED_QUERIES;
    let end = (begin + TILED_QUERIES).min(a.num_tokens * heads_per_group);
    let mut first = begin;
    // Queries of several sequences in one tile: one sequence after the other. All threads of the block agree on every
    // bound here, so they reach the barriers together.
    while first < end {
        // SAFETY: `first` belongs to a row of the batch.
        unsafe {
            let sequence = a.sequence_of(divide(first, heads_per_group).0);
            let stop = end.min(sequence.end * heads_per_group);
            if sequence.num_rows() >= a.min_rows {
                segment::<E, HEAD_DIM, N>(&a, &sequence, first, stop, tile);
            }
            first = stop;
        }
    }
}

/// The queries `first .. stop` of one sequence, `TILED_QUERIES` at most.
///
/// # Safety
/// As for [`tiled`]; all threads of the block call it together with the same values.
#[device]
#[inline(always)]
unsafe fn segment<E: Group<N>, const HEAD_DIM: usize, const N: usize>(
    a: &Attention<E>,
    sequence: &Sequence,
    first: u32,
    stop: u32,
    tile: Tile,
) {
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let heads_per_group = a.heads_per_group;
    let key_value_head = thread::block_idx_y();
    let warp_first = first + warp_id * TILED_WARP_QUERIES;
    let queries = tile.queries.add(warp_id * TILED_WARP_QUERIES * HEAD_DIM as u32);
    let weights = tile.weights.add(warp_id * crate::PAGE_SIZE * TILED_WARP_QUERIES);
    let num_keys = tile.num_keys.add(warp_id * TILED_WARP_QUERIES);
    // Where query `i` of the warp is in `q` and `out`.
    let place = |i: u32| {
        let query = warp_first + i;
        let (row, head_of_group) = divide(query, heads_per_group);
        let head = key_value_head * heads_per_group + head_of_group;
        (row as usize * a.num_attention_heads as usize + head as usize) * HEAD_DIM
    };

    // SAFETY: queries below `stop` are rows of the batch; pages of the sequence hold the keys that its rows see; each
    // warp writes its own queries and weights, and barriers stand between writing the page and reading it.
    unsafe {
        // Nobody reads the last segment's queries any more: each warp has only its own.
        warp::sync_warp(warp::FULL_MASK);
        let mut i = 0;
        while i < TILED_WARP_QUERIES {
            let query = warp_first + i;
            let mut seen = 0;
            if query < stop {
                seen = sequence.num_keys(divide(query, heads_per_group).0);
                stage_query::<HEAD_DIM>(a.q.add(place(i)), queries.add(i * HEAD_DIM as u32));
            } else {
                // Scores are computed for it with the others', and weigh 0.
                let mut d = lane;
                while d < HEAD_DIM as u32 {
                    queries.set(i * HEAD_DIM as u32 + d, 0.0);
                    d += 32;
                }
            }
            if lane == 0 {
                num_keys.set(i, seen);
            }
            i += 1;
        }
        // What the warp's last query sees is the most.
        let warp_keys = if warp_first < stop {
            let last = (warp_first + TILED_WARP_QUERIES).min(stop) - 1;
            sequence.num_keys(divide(last, heads_per_group).0)
        } else {
            0
        };
        let mut partials = [Partial::<N>::EMPTY; QUERIES];
        let mut merged = [Merged::<N>::EMPTY; QUERIES];

        // The last row sees the most keys.
        let all_keys = sequence.num_keys(divide(stop - 1, heads_per_group).0);
        let mut first_key = 0;
        while first_key < all_keys {
            let page = first_key / crate::PAGE_SIZE;
            let start = sequence.page_offset(page, a.num_key_value_heads, key_value_head, HEAD_DIM);
            thread::sync_threads();
            tile.load_page::<E, HEAD_DIM>(a.k_pages.add(start), a.v_pages.add(start), all_keys - first_key);
            thread::sync_threads();

            first_key += crate::PAGE_SIZE;
            // The same in all lanes of the warp; it still comes to the barriers above for every page.
            if page * crate::PAGE_SIZE >= warp_keys {
                continue;
            }

            // Lane `i` takes key `i`, for all queries of the warp.
            let scores = tile.scores::<E, HEAD_DIM>(queries);
            let mut key_weights = [0.0; QUERIES];
            each_query!(i => {
                let seen = page * crate::PAGE_SIZE + lane < num_keys.get(i as u32);
                let score = if seen { scores[i].value() } else { f32::NEG_INFINITY };
                key_weights[i] = partials[i].add_scores(score);
            });
            let lane_weights = weights.add(lane * TILED_WARP_QUERIES).cast::<[f32; 4]>();
            repeat(QUERIES / 4, |i| lane_weights.set(i as u32, four(&key_weights, i)));
            warp::sync_warp(warp::FULL_MASK);

            // Each lane takes N dimensions, for all queries of the warp. Keys that a query does not see weigh 0.
            let values = tile.v.cast::<E::Word>().add(lane);
            repeat(crate::PAGE_SIZE as usize / KEYS_AHEAD, |batch| {
                repeat(KEYS_AHEAD, |key| {
                    let key = (batch * KEYS_AHEAD + key) as u32;
                    let value = E::split(values.get(32 * key));
                    let key_weights = weights.add(key * TILED_WARP_QUERIES).cast::<[f32; 4]>();
                    repeat(QUERIES / 4, |i| {
                        let four = key_weights.get(i as u32);
                        repeat(4, |j| partials[4 * i + j].add_value(four[j], value));
                    });
                });
            });

            each_query!(i => {
                if (page + 1) & (super::split_pages(num_keys.get(i as u32)) - 1) == 0 {
                    merged[i].take(&mut partials[i]);
                }
            });
        }
        each_query!(i => {
            merged[i].take(&mut partials[i]);
            if warp_first + (i as u32) < stop {
                E::store_group(a.out.add(place(i as u32) + lane as usize * N), merged[i].output());
            }
        });
    }
}

#[device]
impl Tile {
    /// Copies the first `keys` rows of a page; the threads of the block share the work. The rest becomes zero,
    /// since what weighs 0 must not be NaN.
    ///
    /// # Safety
    /// `k` and `v` lead to a page, aligned to 16 bytes; barriers keep readers away.
    #[inline(always)]
    unsafe fn load_page<E: Element, const HEAD_DIM: usize>(self, k: *const E, v: *const E, keys: u32) {
        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let mut word = thread::thread_idx_x();
        while word < crate::PAGE_SIZE * v_words {
            let (key, column) = (word / v_words, word % v_words);
            let (mut k_word, mut v_word) = ([0; 4], [0; 4]);
            // SAFETY: inside the page; each word has one thread.
            unsafe {
                if key < keys {
                    k_word = load_words(k.add(word as usize * E::LANES));
                    v_word = load_words(v.add(word as usize * E::LANES));
                }
                self.k.set(key * k_words + column, k_word);
                self.v.set(word, v_word);
            }
            word += TILED_BLOCK_SIZE;
        }
    }

    /// This lane's key against the warp's queries.
    ///
    /// # Safety
    /// Page and queries are complete.
    #[inline(always)]
    unsafe fn scores<E: Element, const HEAD_DIM: usize>(self, queries: Shared<f32>) -> [Score; QUERIES] {
        let (k_words, v_words) = const { row_words::<E, HEAD_DIM>() };
        let key_row = self.k.add(warp::lane_id() * k_words);
        let mut scores = [Score::ZERO; QUERIES];
        repeat(v_words as usize, |word| {
            // SAFETY: inside the page.
            let lanes = E::unpack(unsafe { key_row.get(word as u32) });
            each_query!(i => {
                let query = queries.add((i * HEAD_DIM) as u32).cast::<[f32; 4]>();
                repeat(E::LANES / 4, |j| {
                    let quad = (word * (E::LANES / 4) + j) as u32;
                    // SAFETY: inside the query.
                    scores[i].add(unsafe { query.get(quad) }, four(lanes.as_ref(), j));
                });
            });
        });
        scores
    }
}
