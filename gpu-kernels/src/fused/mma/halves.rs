//! Inputs that are f16, cut in two halves.

use cuda_std::prelude::*;

#[device]
use super::{
    CHUNKS, MAX_BATCH, Stream, WORDS_PER_CHUNK, first_word, lane_of_row, row_of_lane, words_per_round,
};
#[device]
use crate::{fused::WORD, grid::repeat, vector::load_words};

/// This lane's words of up to `N` rows of f16 inputs, cut in two halves of which each is a column of one of `G` second operands.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Halves<const N: usize, const G: usize> {
    /// The halves of the rows that are this lane's columns.
    rows: [*const f16; G],
    /// 0 where a column has none.
    words: [u32; G],
}

#[device]
impl<const N: usize, const G: usize> Halves<N, G> {
    /// # Safety
    /// `x` leads to `n` rows of `words` words, aligned to 16 bytes.
    #[inline(always)]
    pub(super) unsafe fn new(n: u32, words: u32, x: *const f16) -> Self {
        let half = row_of_lane() % 2;
        let [first, second] = halves(words);
        let words_of_half = if half == 0 { first } else { second };
        let mut inputs = Self { rows: [x; G], words: [0; G] };
        repeat(G, |g| {
            let row = 4 * g as u32 + row_of_lane() / 2;
            if row < n {
                let start = (row * words + half * first) * WORD;
                // SAFETY: inside the rows.
                inputs.rows[g] = unsafe { x.add(start as usize) };
                inputs.words[g] = words_of_half;
            }
        });
        inputs
    }

    /// The words of a round.
    ///
    /// # Safety
    /// As [`Halves::new`]; the kernel before this one has ended.
    #[inline(always)]
    unsafe fn load(&self, round: u32) -> [[[u32; 4]; CHUNKS]; G] {
        let mut words = [[[0; 4]; CHUNKS]; G];
        repeat(G, |g| {
            repeat(CHUNKS, |u| {
                let word = first_word() + round * words_per_round() + u as u32 * WORDS_PER_CHUNK;
                if word < self.words[g] {
                    // SAFETY: inside the half.
                    words[g][u] = unsafe { load_words(self.rows[g].add((word * WORD) as usize)) };
                }
            });
        });
        words
    }

    /// Multiplies the tiles of `weights`, in which each row is two halves, with the inputs and calls `finish(tile, i, r, product)`, by one
    /// thread each, for input row `i` below `n` and row `r` of the tile, below 8.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together, once in a launch; the block has 2 to
    /// [`MAX_MATMUL_WARPS`] warps, and `sums_of_warps` leads to [`matmul_shared_bytes`]. `finish` is called by thread `8 i + r`, for a
    /// block with one tile.
    #[inline(always)]
    pub(super) unsafe fn multiply<R: Fn(u32) -> ([*const f16; 2], [u32; 2])>(
        &self,
        mut weights: Stream<R>,
        n: u32,
        sums_of_warps: Shared<f32>,
        mut finish: impl FnMut(u32, u32, u32, f32),
    ) {
        let (rows, rounds) = (N as u32, weights.tiles.rounds);
        let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
        // SAFETY: the caller's promise; each warp writes its own sums, which barriers order against the readers.
        unsafe {
            let mut inputs = self.load(0);
            let mut done = 0;
            while done < weights.num_tiles {
                let batch = (weights.num_tiles - done).min(MAX_BATCH);
                let mut tile = 0;
                while tile < batch {
                    let mut totals = [0.0; G];
                    let mut round = 0;
                    while round < rounds {
                        let sums = weights.multiply::<G>(|u, g| inputs[g][u]);
                        // First halves with first halves, second with second; the other two mean nothing.
                        repeat(G, |g| totals[g] += sums[g][0] + sums[g][3]);
                        round += 1;
                        if rounds > 1 {
                            inputs = self.load(if round == rounds { 0 } else { round });
                        }
                    }
                    repeat(G, |g| {
                        let i = 4 * g as u32 + lane_of_row();
                        if i < rows {
                            let place = ((tile * num_warps + warp_id) * rows + i) * 8 + row_of_lane();
                            sums_of_warps.set(place, totals[g]);
                        }
                    });
                    tile += 1;
                }
                thread::sync_threads();
                let per_tile = 8 * rows;
                let mut t = thread::thread_idx_x();
                while t < per_tile * batch {
                    let (tile, i) = (t / per_tile, t % per_tile / 8);
                    let mut sum = 0.0;
                    let mut first = 0;
                    while first < num_warps {
                        repeat(10, |w| {
                            let w = first + w as u32;
                            if w < num_warps {
                                sum += sums_of_warps.get((tile * num_warps + w) * per_tile + t % per_tile);
                            }
                        });
                        first += 10;
                    }
                    if i < n {
                        finish(weights.tiles.tile(done + tile), i, t % 8, sum);
                    }
                    t += thread::block_dim_x();
                }
                done += batch;
                if done < weights.num_tiles {
                    // Everybody has read the sums.
                    thread::sync_threads();
                }
            }
        }
    }
}

/// Bytes of dynamic shared memory behind the stream for a block of `warps` warps that multiplies `rows` rows: their sums for a [`batch`](super::batch) of tiles.
pub const fn matmul_shared_bytes(warps: u32, rows: u32, batch: u32) -> u32 {
    warps * rows * batch * 8 * 4
}

/// Words of the two halves of a row of `words` words.
#[device]
#[inline(always)]
pub(super) fn halves(words: u32) -> [u32; 2] {
    let first = words.div_ceil(2);
    [first, words - first]
}
