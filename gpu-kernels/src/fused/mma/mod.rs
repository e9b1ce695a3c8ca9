//! Products of few rows on tensor cores, each weight read once.
//!
//! # Weights are the first operand
//! `mma.m16n8k16` multiplies 16 rows of weights with 8 columns of inputs. Of its first operand a lane with `r = lane / 4`
//! and `c = lane % 4` holds elements of rows `r` and `r + 8`. Which 16 columns of the matrix these are is free, as long as
//! both operands agree: so a lane takes 16 bytes, word `4 u + c` of each of its two rows, and has its share of two
//! instructions. A warp takes [`CHUNKS`] such words in a round, [`COLS_PER_WARP`] columns of 16 rows; a block's warps lie side by
//! side along the columns, and their sums are added in the order of the warps.
//!
//! # A block streams tiles
//! A tile is 16 rows, a part of it what the block takes in one round. Its words go to shared memory with `cp.async`, up to
//! [`MAX_DEPTH`] parts ahead ([`Stream`]), but never many at once: what another kernel waits for would queue behind them. Each lane copies what it will read itself, so no barrier comes between,
//! and the first parts are under way before the kernel waits for its inputs: while a chain of small kernels waits for one another, the memory
//! is kept busy by the weights of those to come.
//!
//! # Inputs are the second operand
//! One row of inputs would fill one of eight columns. The others make products as exact as those of f32: a value `v` that
//! was scaled by a power of two so that the largest of the warp's is near the largest f16 is `high + low` of two f16
//! but for 2^-22 of it, and each has a column ([`Normed`]). Where inputs are f16 to begin with, the two columns instead take
//! two halves of the row, with the weights' rows `r + 8` being the second halves of rows `r` ([`Halves`]).
//!
//! Four rows of inputs fill an instruction; eight take two for each piece of weights.
//!
//! Weights are f16, sums f32. A row's bits depend on the number of columns alone, not on the other rows.

use cuda_std::prelude::*;

#[device]
use super::WORD;
#[device]
use crate::{
    grid::{divide, repeat},
    vector::{Group, load_words},
};
#[device]
use cuda_std::{
    async_copy, memory,
    mma::MmaElement,
    warp::{FULL_MASK, WarpReductionOp, sync_warp, warp_reduce},
};

pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;

/// Words of each row that a lane takes in a round.
#[device]
const CHUNKS: usize = 4;
/// Words of a row that four lanes take together.
#[device]
const WORDS_PER_CHUNK: u32 = 4;
/// Words of a row that a warp takes in a round.
#[device]
const WORDS_PER_WARP: u32 = CHUNKS as u32 * WORDS_PER_CHUNK;

/// Columns of weights that a warp takes in a round.
pub const COLS_PER_WARP: u32 = 128;
/// Bytes of a warp's share of a part.
const PART_BYTES: u32 = 16 * COLS_PER_WARP * 2;
/// The most parts that a block has under way.
pub const MAX_DEPTH: u32 = 8;
/// The most tiles whose sums are kept until the warps' are added.
pub const MAX_BATCH: u32 = 8;
/// Bytes that a block has on their way while it fills its shared memory: about what hides the memory's latency where each
/// multiprocessor has such a block. Whatever else a multiprocessor reads waits behind them: on an H200 a decode step of
/// Qwen2.5-0.5B takes 411 µs with 30 to 40 KiB, 434 with 80, 453 with no limit, 455 with 20.
const IN_FLIGHT_BYTES: u32 = 32 << 10;
/// The most warps of a block that norms its inputs.
pub const MAX_NORM_WARPS: u32 = 16;
/// The most warps of a block of [`matmul_add`].
pub const MAX_MATMUL_WARPS: u32 = 20;
/// The fewest warps of a block: a thread for each of four rows of inputs and each of a tile's 16 rows of weights.
const MIN_WARPS: u32 = 2;
/// The most rows of inputs: those of two instructions, four each.
pub const MAX_ROWS: u32 = 8;
/// The fewest warps of a block that norms [`MAX_ROWS`] rows.
pub const MIN_WARPS_OF_EIGHT: u32 = 2 * MIN_WARPS;

/// Warps of a block for rows of `cols` columns: as few rounds as `max` warps need, evenly shared.
pub const fn num_warps(cols: u32, max: u32) -> u32 {
    let parts = cols.div_ceil(COLS_PER_WARP);
    if parts <= MIN_WARPS { MIN_WARPS } else { parts.div_ceil(parts.div_ceil(max)) }
}

/// Rounds in which `warps` warps take rows of `cols` columns.
pub const fn num_rounds(cols: u32, warps: u32) -> u32 {
    let rounds = cols.div_ceil(COLS_PER_WARP * warps);
    if rounds == 0 { 1 } else { rounds }
}

/// Tiles whose sums a block keeps, of `tiles` that `blocks` blocks share.
pub const fn batch(tiles: u32, blocks: u32) -> u32 {
    let of_block = tiles.div_ceil(blocks);
    if of_block < MAX_BATCH { of_block } else { MAX_BATCH }
}

/// Bytes of dynamic shared memory for `depth` parts of a block of `warps` warps.
pub const fn stream_bytes(warps: u32, depth: u32) -> u32 {
    warps * depth * PART_BYTES
}

/// The block's tiles: every `grid_dim`-th.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Tiles of all blocks.
    pub(super) count: u32,
    /// Rounds of a tile.
    rounds: u32,
}

#[device]
impl Tiles {
    /// `count` tiles of rows of `words` words, which [`Halves`] halves.
    #[inline(always)]
    pub(super) fn new(count: u32, words: u32) -> Self {
        Self { count, rounds: words.div_ceil(words_per_round()).max(1) }
    }

    /// The block's `i`-th tile.
    #[inline(always)]
    fn tile(self, i: u32) -> u32 {
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
    tiles: Tiles,
    rows_of: R,
    depth: u32,
    /// This lane's first word of the first part.
    first: Shared<[u32; 4]>,
    /// The part that is copied next: its tile, round and place.
    next: [u32; 3],
    /// The place of the part that is read next.
    place: u32,
    /// Tiles of this block.
    num_tiles: u32,
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
    unsafe fn multiply<const G: usize>(
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

/// Of the four lanes that share a row of a fragment, this lane.
#[device]
#[inline(always)]
fn lane_of_row() -> u32 {
    warp::lane_id() % 4
}

/// The row of a fragment that this lane belongs to: of weights, of rows of the result, of columns of inputs.
#[device]
#[inline(always)]
pub(super) fn row_of_lane() -> u32 {
    warp::lane_id() / 4
}

/// This lane's first word of its rows.
#[device]
#[inline(always)]
fn first_word() -> u32 {
    warp::warp_id() * WORDS_PER_WARP + lane_of_row()
}

/// Words of all warps of the block in one round.
#[device]
#[inline(always)]
fn words_per_round() -> u32 {
    thread::block_dim_x() / 32 * WORDS_PER_WARP
}

/// Bytes from one staged column of inputs to the next: those of a warp's columns, and 64 so that the two halves of a value
/// lie in different banks.
const COLUMN_BYTES: u32 = COLS_PER_WARP * 2 + 64;

/// Bytes of dynamic shared memory behind the stream for a block of `warps` warps that norms `rows` rows in `rounds` rounds: the
/// staged inputs, what they were divided by, the sums of each warp for a [`batch`] of tiles, and its sums of squares.
pub const fn norm_shared_bytes(warps: u32, rounds: u32, rows: u32, batch: u32) -> u32 {
    warps * rows * (rounds * (2 * COLUMN_BYTES + 4) + (batch * 16 + 1) * 4)
}

/// Up to `N` rows of inputs that are to be normed, as `G` second operands of four rows each.
#[device]
pub(super) struct Normed<const N: usize, const G: usize> {
    n: u32,
    cols: u32,
    x: *const f32,
    norm: *const f32,
    /// This lane's four values of the norm's weight in the first round.
    weight: [f32; 4],
}

#[device]
impl<const N: usize, const G: usize> Normed<N, G> {
    /// Starts to load the norm's weight.
    ///
    /// # Safety
    /// `x` leads to `n` rows of `cols` values, from 1 to `N` of them, `norm` to one; both are aligned to 16 bytes.
    #[inline(always)]
    pub(super) unsafe fn new(n: u32, cols: u32, x: *const f32, norm: *const f32) -> Self {
        let mut normed = Self { n, cols, x, norm, weight: [0.0; 4] };
        // SAFETY: the caller's promise.
        unsafe { normed.load_weight(Self::first_column()) }
        normed
    }

    /// The first of this lane's four columns.
    #[inline(always)]
    fn first_column() -> u32 {
        warp::warp_id() * COLS_PER_WARP + 4 * warp::lane_id()
    }

    /// # Safety
    /// As [`Normed::new`].
    #[inline(always)]
    unsafe fn load_weight(&mut self, column: u32) {
        if column < self.cols {
            // SAFETY: inside the row.
            self.weight = unsafe { f32::load_group(self.norm.add(column as usize)) };
        }
    }

    /// This lane's four columns of every row; 0 where there is none.
    ///
    /// # Safety
    /// As [`Normed::new`]; the kernel before this one has ended.
    #[inline(always)]
    unsafe fn load(&self, column: u32) -> [[f32; 4]; N] {
        let mut values = [[0.0; 4]; N];
        repeat(N, |i| {
            if (i as u32) < self.n && column < self.cols {
                let place = (i as u32 * self.cols + column) as usize;
                // SAFETY: inside the rows.
                values[i] = unsafe { memory::load_l2(self.x.add(place).cast::<[f32; 4]>()) };
            }
        });
        values
    }

    /// Multiplies the tiles of `weights` with the normed inputs and calls `finish(tile, i, r, low, high)`, by one thread each, with
    /// the products of input row `i` and the tile's rows of weights `r` and `r + 8`, for `i` below `n` and `r` below 8.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together, once in a launch; the block has 2 to
    /// [`MAX_NORM_WARPS`] warps, for eight rows at least [`MIN_WARPS_OF_EIGHT`], and `shared` leads to [`norm_shared_bytes`]. `finish` is called by thread `16 i + r`, for a block
    /// with one tile.
    #[inline(always)]
    pub(super) unsafe fn multiply<R: Fn(u32) -> ([*const f16; 2], [u32; 2])>(
        mut self,
        mut weights: Stream<R>,
        eps: f32,
        shared: Shared<u8>,
        mut finish: impl FnMut(u32, u32, u32, f32, f32),
    ) {
        let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
        let num_warps = thread::block_dim_x() / 32;
        let (rows, rounds) = (N as u32, weights.tiles.rounds);
        // A warp's stage has a place for each round.
        let stage = shared.add(warp_id * rounds * rows * 2 * COLUMN_BYTES);
        let scales = shared.add(num_warps * rounds * rows * 2 * COLUMN_BYTES).cast::<f32>();
        let scales_of_warp = scales.add(warp_id * rounds * rows);
        let squares_of_warps = scales.add(num_warps * rounds * rows);
        let sums_of_warps = squares_of_warps.add(num_warps * rows);
        let (row, column_of_lane) = (row_of_lane(), lane_of_row());

        // SAFETY: the caller's promise; each warp writes its own stage and sums, which barriers order against the readers.
        unsafe {
            let mut squares = [0.0f32; N];
            let mut round = 0;
            while round < rounds {
                let column = Self::first_column() + round * num_warps * COLS_PER_WARP;
                let x = self.load(column);
                if round > 0 {
                    self.load_weight(column);
                }
                repeat(N, |i| {
                    repeat(4, |j| squares[i] = x[i][j].mul_add(x[i][j], squares[i]));
                    let place = round * rows + i as u32;
                    let inverse =
                        stage_parts(stage.add(place * 2 * COLUMN_BYTES), product(x[i], self.weight));
                    if lane == 0 {
                        scales_of_warp.set(place, inverse);
                    }
                });
                round += 1;
            }
            sync_warp(FULL_MASK);

            let mut done = 0;
            while done < weights.num_tiles {
                let batch = (weights.num_tiles - done).min(MAX_BATCH);
                let mut tile = 0;
                while tile < batch {
                    // Of input row `4 g + column_of_lane`: with weights of rows `row` and `row + 8`.
                    let mut totals = [[0.0f32; 2]; G];
                    let mut round = 0;
                    while round < rounds {
                        let columns = stage.add((round * 2 * rows + row) * COLUMN_BYTES);
                        let sums = weights.multiply::<G>(|u, g| {
                            if 8 * g as u32 + row < 2 * rows {
                                let columns = columns.add(8 * g as u32 * COLUMN_BYTES).cast::<[u32; 4]>();
                                columns.get(u as u32 * WORDS_PER_CHUNK + column_of_lane)
                            } else {
                                [0; 4]
                            }
                        });
                        repeat(G, |g| {
                            let i = (4 * g as u32 + column_of_lane).min(rows - 1);
                            let scale = scales_of_warp.get(round * rows + i);
                            // The products with the high and the low parts.
                            totals[g][0] += (sums[g][0] + sums[g][1]) * scale;
                            totals[g][1] += (sums[g][2] + sums[g][3]) * scale;
                        });
                        round += 1;
                    }
                    repeat(G, |g| {
                        let i = 4 * g as u32 + column_of_lane;
                        if i < rows {
                            let place = ((tile * num_warps + warp_id) * rows + i) * 16 + row;
                            sums_of_warps.set(place, totals[g][0]);
                            sums_of_warps.set(place + 8, totals[g][1]);
                        }
                    });
                    tile += 1;
                }
                if done == 0 {
                    repeat(N, |i| {
                        let sum = warp::reduce_sum(squares[i]);
                        if lane == 0 {
                            squares_of_warps.set(warp_id * rows + i as u32, sum);
                        }
                    });
                }
                thread::sync_threads();

                // Whole warps, since lanes exchange what they find.
                let per_tile = 16 * rows;
                let mut t = thread::thread_idx_x();
                while t < (per_tile * batch).next_multiple_of(32) {
                    let (tile, t_of_tile) = (t / per_tile, t % per_tile);
                    let (i, place) = (t_of_tile / 16, tile.min(batch - 1) * num_warps);
                    let (mut sum, mut squares) = (0.0, 0.0);
                    let mut first = 0;
                    while first < num_warps {
                        repeat(8, |w| {
                            let w = first + w as u32;
                            if w < num_warps {
                                sum += sums_of_warps.get(((place + w) * rows + i) * 16 + t % 16);
                                squares += squares_of_warps.get(w * rows + i);
                            }
                        });
                        first += 8;
                    }
                    sum *= crate::rms_norm::scale(squares, self.cols, eps);
                    let high = warp::shuffle_down(sum, 8);
                    if t % 16 < 8 && i < self.n && tile < batch {
                        finish(weights.tiles.tile(done + tile), i, t % 16, sum, high);
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

#[device]
#[inline(always)]
fn product(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
    [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
}

/// Stages this lane's four values as two f16 each: `column` gets the high parts, the next column the low ones, of the values times
/// a power of two that the warp shares; returns its inverse.
///
/// # Safety
/// All lanes of the warp call it together; both columns belong to the warp and nobody reads them.
#[device]
#[inline(always)]
unsafe fn stage_parts(column: Shared<u8>, values: [f32; 4]) -> f32 {
    const SIGN: u32 = 1 << 31;
    // The largest value's exponent becomes 14, that of the largest f16 is 15; no scale is below the smallest normal f32.
    const EXPONENT: u32 = 14;
    let mut largest = 0;
    repeat(4, |j| largest = largest.max(values[j].to_bits() & !SIGN));
    // SAFETY: the caller's promise. Places are 8 bytes of the warp's columns.
    unsafe {
        let exponent = (warp_reduce(FULL_MASK, largest, WarpReductionOp::Max) >> 23).max(EXPONENT + 1);
        let scale = f32::from_bits((2 * 127 + EXPONENT - exponent) << 23);
        let v = product(values, [scale; 4]);
        let high = [f16::pack2(v[0], v[1]), f16::pack2(v[2], v[3])];
        let ((h0, h1), (h2, h3)) = (f16::unpack2(high[0]), f16::unpack2(high[1]));
        let low = [f16::pack2(v[0] - h0, v[1] - h1), f16::pack2(v[2] - h2, v[3] - h3)];
        let words = |[a, b]: [u32; 2]| u64::from(a) | u64::from(b) << 32;
        column.cast::<u64>().set(warp::lane_id(), words(high));
        column.add(COLUMN_BYTES).cast::<u64>().set(warp::lane_id(), words(low));
        f32::from_bits((exponent - EXPONENT) << 23)
    }
}

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

/// Bytes of dynamic shared memory behind the stream for a block of `warps` warps that multiplies `rows` rows: their sums for a [`batch`] of tiles.
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
