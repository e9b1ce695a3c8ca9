//! The weights of a block's tiles on their way through shared memory.

use cuda_std::prelude::*;

#[device]
use super::{CHUNKS, IN_FLIGHT_BYTES, PART_BYTES, WORDS_PER_CHUNK, first_word, words_per_round};
#[device]
use crate::{
    fused::WORD,
    grid::{divide, repeat},
};
#[device]
use cuda_std::{async_copy, mma::MmaElement};

/// The block's tiles: every `grid_dim`-th.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Tiles of all blocks.
    pub(super) count: u32,
    /// Rounds of a tile.
    pub(super) rounds: u32,
}

#[device]
impl Tiles {
    /// `count` tiles of rows of `words` words, which [`Halves`](super::Halves) halves.
    #[inline(always)]
    pub(super) fn new(count: u32, words: u32) -> Self {
        Self { count, rounds: words.div_ceil(words_per_round()).max(1) }
    }

    /// The block's `i`-th tile.
    #[inline(always)]
    pub(super) fn tile(self, i: u32) -> u32 {
        thread::block_idx_x() + i * thread::grid_dim_x()
    }

    /// Tiles of this block.
    #[inline(always)]
    fn of_block(self) -> u32 {
        divide(self.count - thread::block_idx_x() + thread::grid_dim_x() - 1, thread::grid_dim_x()).0
    }
}

/// The parts of a block's tiles on their way through shared memory: `R` gives this lane's two rows of a tile and the words
/// that each of them has.
#[device]
pub(super) struct Stream<R> {
    pub(super) tiles: Tiles,
    rows_of: R,
    depth: u32,
    /// This lane's first word of the first part.
    first: Shared<[u32; 4]>,
    /// The part that is copied next: its tile, round and place.
    next: [u32; 3],
    /// The place of the part that is read next.
    place: u32,
    /// Tiles of this block.
    pub(super) num_tiles: u32,
    /// Parts that [`Stream::new`] copied and that are yet to be read.
    first_parts: u32,
}

#[device]
impl<R: Fn(u32) -> ([*const f16; 2], [u32; 2])> Stream<R> {
    /// Copies the first `depth` parts, a little at a time; the last of it is still under way in the end.
    ///
    /// # Safety
    /// `shared` has [`stream_bytes`] of that depth, 1 to [`MAX_DEPTH`]; the rows have that many words and are aligned to 16 bytes.
    #[inline(always)]
    pub(super) unsafe fn new(tiles: Tiles, depth: u32, shared: Shared<u8>, rows_of: R) -> Self {
        let first = shared.cast::<[u32; 4]>().add(warp::warp_id() * (PART_BYTES / 16) + warp::lane_id());
        let num_tiles = tiles.of_block();
        let mut stream =
            Self { tiles, rows_of, depth, first, next: [0; 3], place: 0, num_tiles, first_parts: depth };
        let chunks = IN_FLIGHT_BYTES / (PART_BYTES / CHUNKS as u32) / (thread::block_dim_x() / 32);
        let mut part = 0;
        while part < depth {
            // SAFETY: the caller's promise.
            unsafe {
                stream.copy(|| {
                    async_copy::commit_group();
                    match chunks {
                        0 | 1 => async_copy::wait_group::<0>(),
                        2 => async_copy::wait_group::<1>(),
                        3 | 4 => async_copy::wait_group::<2>(),
                        5 | 6 => async_copy::wait_group::<4>(),
                        7..12 => async_copy::wait_group::<6>(),
                        _ => async_copy::wait_group::<11>(),
                    }
                });
            }
            part += 1;
        }
        stream
    }

    /// Where this lane's words of the part at `place` are.
    #[inline(always)]
    fn at(&self, place: u32) -> Shared<[u32; 4]> {
        self.first.add(place * (thread::block_dim_x() / 32) * (PART_BYTES / 16))
    }

    /// Starts to copy the next part, if there is one; words beyond the rows become 0. Calls `after_chunk` after each chunk.
    ///
    /// # Safety
    /// As [`Stream::new`]; this lane has read what its place held.
    #[inline(always)]
    unsafe fn copy(&mut self, after_chunk: impl Fn()) {
        let [tile, round, place] = self.next;
        if tile < self.num_tiles {
            let (rows, words) = (self.rows_of)(self.tiles.tile(tile));
            let to = self.at(place);
            let first = first_word() + round * words_per_round();
            repeat(CHUNKS, |u| {
                let word = first + u as u32 * WORDS_PER_CHUNK;
                repeat(2, |i| {
                    let bytes = if word < words[i] { 16 } else { 0 };
                    // SAFETY: inside the row, or nothing is read.
                    unsafe {
                        let from = rows[i].add((word.min(words[i]) * WORD) as usize);
                        async_copy::copy_16_or_zero(to.add((2 * u + i) as u32 * 32), from, bytes);
                    }
                });
                after_chunk();
            });
            let is_last = round + 1 == self.tiles.rounds;
            let next_place = if place + 1 == self.depth { 0 } else { place + 1 };
            self.next =
                [if is_last { tile + 1 } else { tile }, if is_last { 0 } else { round + 1 }, next_place];
        }
    }

    /// Waits for the part that comes next: the first time for all that [`Stream::new`] has copied.
    #[inline(always)]
    fn wait(&mut self) {
        if self.first_parts > 0 {
            if self.first_parts == self.depth {
                async_copy::wait_all();
            }
            self.first_parts -= 1;
            return;
        }
        // Each part that was read made place for another one, and a group of copies.
        match self.depth {
            1 => async_copy::wait_group::<0>(),
            2 => async_copy::wait_group::<1>(),
            3 => async_copy::wait_group::<2>(),
            4 => async_copy::wait_group::<3>(),
            5 => async_copy::wait_group::<4>(),
            6 => async_copy::wait_group::<5>(),
            7 => async_copy::wait_group::<6>(),
            _ => async_copy::wait_group::<7>(),
        }
    }

    /// The part that comes next times each of `G` second operands that belong to its words, then starts to copy another one to
    /// its place.
    ///
    /// # Safety
    /// All lanes of the warp call it together, once for each part.
    #[inline(always)]
    pub(super) unsafe fn multiply<const G: usize>(
        &mut self,
        inputs: impl Fn(usize, usize) -> [u32; 4],
    ) -> [[f32; 4]; G] {
        self.wait();
        // Several, so that an instruction need not wait for the one before it.
        let mut sums = [[[0.0f32; 4]; 4]; G];
        let part = self.at(self.place);
        self.place = if self.place + 1 == self.depth { 0 } else { self.place + 1 };
        // SAFETY: the caller's promise; this lane's copies of the part have ended.
        unsafe {
            repeat(CHUNKS, |u| {
                let (low, high) = (part.get(2 * u as u32 * 32), part.get((2 * u as u32 + 1) * 32));
                repeat(G, |g| {
                    let inputs = inputs(u, g);
                    repeat(2, |i| {
                        let a = [low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]];
                        let sum = &mut sums[g][2 * (u % 2) + i];
                        *sum = f16::mma_m16n8k16(a, [inputs[2 * i], inputs[2 * i + 1]], *sum);
                    });
                });
            });
            self.copy(|| ());
            async_copy::commit_group();
        }
        let mut totals = [[0.0; 4]; G];
        repeat(G, |g| {
            let [a, b, c, d] = sums[g];
            repeat(4, |i| totals[g][i] = (a[i] + b[i]) + (c[i] + d[i]));
        });
        totals
    }
}
