//! Products of few rows with matrices in [units](crate::units), on int8 tensor cores.
//!
//! # Inputs are two signed bytes
//! `mma.m16n8k32` multiplies 16 rows of weights with 8 columns of inputs, all signed bytes, with exact sums. The weights' integers go in
//! as the file has them. An input is `scale * (256 high + low)`, 16 bits of the largest value of its row in these columns, and high
//! and low are two of the eight columns: one row of inputs fills two, four rows all, eight take two instructions. So what is lost
//! is less than f16 inputs lose, and of the weights nothing.
//!
//! # A block streams tiles
//! A block has a range of tiles of 16 rows, or of a slice of their columns, and stages the inputs of its columns once. Its warps take equal,
//! contiguous shares of the tiles' units, and no barrier comes between units: a warp has a ring of its own in shared memory, which its first lane
//! fills by bulk copies, and the first units are under way before the kernel waits for its inputs. A tile that lies in one share is finished
//! by its warp; those at the borders of shares are added up in the end, in the order of the warps. Shares depend on the shape of
//! the weights alone, so a row has the same bits alone and among others.
//!
//! After the project's measurements of 2026-11-28: bulk copies into a ring for each warp read large matrices at 81 to 94 % of what the memory
//! gives; loads to registers at 77 %, f16 operands made from the same bytes at 61 %, the file's own layout at 50 %.

use cuda_std::prelude::*;

#[device]
use crate::{
    grid::{divide, repeat},
    units::Unit,
};
#[device]
use cuda_std::{
    mbarrier::{self, Mbarrier},
    warp::{FULL_MASK, sync_warp},
};

mod inputs;
pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;
mod ring;

#[device]
pub use inputs::Inputs;
#[device]
use inputs::{Normed, Plain, Source, stage};
#[device]
use ring::{Ring, Tiles};

/// The most rows of inputs.
pub const MAX_ROWS: u32 = 8;
/// The most warps of a block.
pub const MAX_WARPS: u32 = 16;
/// The most units that a warp has under way.
pub const MAX_DEPTH: u32 = 8;
/// Bytes of the digits of a staged row: three for each of eight blocks, and room.
const DIGIT_BYTES: u32 = 32;

/// Bytes of dynamic shared memory for `depth` units of `unit_bytes` of a block of `warps` warps.
pub const fn ring_bytes(warps: u32, depth: u32, unit_bytes: u32) -> u32 {
    warps * depth * unit_bytes
}

/// Bytes of dynamic shared memory besides the ring: its barriers, `rows` staged rows of `units` units of `cols` columns, the sums of tiles at the borders of
/// shares, and sums of squares.
pub const fn shared_bytes(warps: u32, depth: u32, units: u32, cols: u32, rows: u32) -> u32 {
    stage_bytes(units, cols, rows) + warps * (depth * 8 + 2 * rows * 16 * 4)
}

/// Bytes of the staged inputs: columns, then for each chunk and row the digits, scale and sum of squares.
const fn stage_bytes(units: u32, cols: u32, rows: u32) -> u32 {
    rows * (2 * column_bytes(units * cols) + (units * cols).div_ceil(CHUNK) * (DIGIT_BYTES + 16))
}

/// Columns of inputs that share a scale.
const CHUNK: u32 = 256;
/// Columns of a chunk that a lane stages.
#[device]
const WIDTH: usize = CHUNK as usize / 32;
/// The most rows of chunks that a warp loads before it uses the first of them.
#[device]
const AHEAD: usize = 4;

/// Bytes from one staged column of inputs to the next: 64 more, so that neighbours lie in different banks.
const fn column_bytes(cols: u32) -> u32 {
    cols + 64
}

/// The products of the block's tiles with up to `N` rows of inputs, in `G` groups of four.
#[device]
struct Product<W, const N: usize, const G: usize> {
    ring: Ring<W>,
    /// The staged inputs: columns, then digits, then scales, each of the last two `[chunk][row]`.
    stage: Shared<u8>,
    /// `[warp][first or last tile][row of inputs][row of a tile]`, of tiles at the borders of shares.
    pieces: Shared<f32>,
}

#[device]
impl<W: Unit, const N: usize, const G: usize> Product<W, N, G> {
    const ROWS: u32 = N as u32;
    /// Units of a chunk.
    const UNITS: u32 = CHUNK / W::COLS;
    /// Rows of chunks that a warp loads before it uses the first: one row has few, and few registers leave room for the next kernel.
    const AHEAD: usize = if N == 1 { 2 } else { AHEAD };

    /// Starts to copy the first units.
    ///
    /// # Safety
    /// All threads of the block call it together, once in a launch. The block has [`ring_bytes`] and [`shared_bytes`] of dynamic shared memory, of a `depth`
    /// from 1 to [`MAX_DEPTH`].
    #[inline(always)]
    unsafe fn begin(tiles: Tiles, depth: u32) -> Self {
        let (lane, warp_id, num_warps) = (warp::lane_id(), warp::warp_id(), thread::block_dim_x() / 32);
        let shared = dynamic_shared::<u8>();
        let ring = shared.add(warp_id * depth * W::BYTES);
        let stage = shared.add(num_warps * depth * W::BYTES);
        let shared = stage.add(stage_bytes(tiles.chunks, W::COLS, Self::ROWS));
        let barriers = shared.cast::<u64>().add(warp_id * depth);
        let pieces = shared.add(num_warps * depth * 8).cast::<f32>();
        let (from, to) = Self::share(tiles, warp_id);
        let (tile, chunk) = divide(from, tiles.chunks);
        let mut ring = Ring {
            tiles,
            depth,
            ring,
            barriers,
            tile,
            chunk,
            left: to - from,
            next_place: 0,
            place: 0,
            parity: 0,
            format: core::marker::PhantomData,
        };
        // SAFETY: the caller's promise.
        unsafe {
            if lane == 0 {
                let mut place = 0;
                while place < depth {
                    Mbarrier::new(barriers.add(place)).init(1);
                    place += 1;
                }
                mbarrier::fence_init();
            }
            sync_warp(FULL_MASK);
            let mut place = 0;
            while place < depth {
                ring.copy();
                place += 1;
            }
        }
        Self { ring, stage, pieces }
    }

    /// The units of a warp, of those of all tiles of the block, tile by tile.
    #[inline(always)]
    fn share(tiles: Tiles, warp: u32) -> (u32, u32) {
        let (total, num_warps) = (tiles.tiles * tiles.chunks, thread::block_dim_x() / 32);
        (divide(warp * total, num_warps).0, divide((warp + 1) * total, num_warps).0)
    }

    /// Chunks of the block's columns, of which the last may be half of one.
    #[inline(always)]
    fn chunks(&self) -> u32 {
        self.ring.tiles.chunks.div_ceil(Self::UNITS)
    }

    /// The tile in which this warp's share ends: if it finishes one, most often this.
    #[inline(always)]
    fn last_tile(&self) -> u32 {
        let tiles = self.ring.tiles;
        let (from, to) = Self::share(tiles, warp::warp_id());
        let last = divide(to - u32::from(to > from), tiles.chunks).0;
        tiles.first_tile + last.min(tiles.tiles - 1)
    }

    /// Where the digits and the scale of a row of a chunk are.
    #[inline(always)]
    fn places(&self, chunk: u32, row: u32) -> (Shared<u8>, Shared<[f32; 4]>) {
        let digits = self.stage.add(2 * Self::ROWS * column_bytes(self.ring.tiles.chunks * W::COLS));
        let scales = digits.add(self.chunks() * Self::ROWS * DIGIT_BYTES).cast::<[f32; 4]>();
        let place = chunk * Self::ROWS + row;
        (digits.add(place * DIGIT_BYTES), scales.add(place))
    }

    /// Stages all inputs of the block; ends with a barrier.
    ///
    /// # Safety
    /// As [`Product::multiply`].
    #[inline(always)]
    unsafe fn stage<S: Source>(&self, source: &S, n: u32) {
        let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
        let Tiles { first_unit, chunks: units, .. } = self.ring.tiles;
        let (cols, items) = (units * W::COLS, self.chunks() * Self::ROWS);
        let column_of_lane = warp::lane_id() * WIDTH as u32;
        let column_bytes = column_bytes(cols);
        // SAFETY: the caller's promise; each row of a chunk has one warp until the barrier.
        unsafe {
            let mut first = warp_id;
            while first < items {
                let (mut values, mut weights) = ([[0.0f32; WIDTH]; AHEAD], [[0.0f32; WIDTH]; AHEAD]);
                repeat(Self::AHEAD, |k| {
                    let item = first + k as u32 * num_warps;
                    let (column, i) = (item / Self::ROWS * CHUNK + column_of_lane, item % Self::ROWS);
                    if item < items && i < n && column < cols {
                        let column = first_unit * W::COLS + column;
                        values[k] = source.load(i, column);
                        if S::NORMED {
                            weights[k] = source.weight(column);
                        }
                    }
                });
                repeat(Self::AHEAD, |k| {
                    let item = first + k as u32 * num_warps;
                    // The same for the whole warp.
                    if item < items {
                        let (chunk, i) = (item / Self::ROWS, item % Self::ROWS);
                        let mut squares = 0.0f32;
                        if S::NORMED {
                            repeat(WIDTH, |j| {
                                squares = values[k][j].mul_add(values[k][j], squares);
                                values[k][j] *= weights[k][j];
                            });
                        }
                        let (digits, scale) = self.places(chunk, i);
                        let columns = self.stage.add(2 * i * column_bytes + chunk * CHUNK);
                        let some = chunk * CHUNK + column_of_lane < cols;
                        stage::<W>(values[k], some, columns, column_bytes, scale.cast(), digits);
                        if S::NORMED {
                            let squares = warp::reduce_sum(squares);
                            if warp::lane_id() == 0 {
                                scale.cast::<f32>().set(1, squares);
                            }
                        }
                    }
                });
                first += Self::AHEAD as u32 * num_warps;
            }
            thread::sync_threads();
        }
    }

    /// What the lane is to multiply products of input row `i` with, of the row's sum of squares.
    ///
    /// # Safety
    /// The inputs are staged.
    #[inline(always)]
    unsafe fn row_scale(&self, i: u32, scale: &impl Fn(f32) -> f32) -> f32 {
        let chunks = self.chunks();
        let squares = self.places(0, i).1.cast::<f32>();
        let mut sum = 0.0;
        let mut first = 0;
        while first < chunks {
            repeat(4, |c| {
                let chunk = first + c as u32;
                if chunk < chunks {
                    // SAFETY: the caller's promise.
                    sum += unsafe { squares.get(4 * chunk * Self::ROWS + 1) };
                }
            });
            first += 4;
        }
        scale(sum)
    }

    /// Multiplies the tiles and calls `finish(tile, g, i, r, low, high)`, by one thread each, with the products of input row `i` and the tile's rows of
    /// weights `r` and `r + 8`, for `i` below `n` and `r` below 8; where inputs are normed, times `scale` of the row's sum of squares. The lane that
    /// is called has `r = lane / 4` and `i = 4 g + lane % 4`.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together.
    #[inline(always)]
    unsafe fn multiply<S: Source>(
        mut self,
        n: u32,
        source: S,
        scale: impl Fn(f32) -> f32,
        mut finish: impl FnMut(u32, usize, u32, u32, f32, f32),
    ) {
        let (lane, warp_id, num_warps) = (warp::lane_id(), warp::warp_id(), thread::block_dim_x() / 32);
        let tiles = self.ring.tiles;
        let (from, to) = Self::share(tiles, warp_id);
        // High and low of one row are two columns; of four rows, eight.
        let (column, row) = if N == 1 { (lane / 4 % 2, 0) } else { (lane / 4, lane % 4) };
        let is_finisher = N > 1 || lane % 4 == 0;
        let r = lane / 4;
        // SAFETY: the caller's promise; each warp writes its own pieces, which a barrier orders against the readers.
        unsafe {
            self.stage(&source, n);
            let mut scales = [1.0f32; G];
            if S::NORMED {
                repeat(G, |g| scales[g] = self.row_scale(4 * g as u32 + row, &scale));
            }
            let column_bytes = column_bytes(tiles.chunks * W::COLS);
            let columns = self.stage.add(column * column_bytes + 16 * (lane % 4));
            let (first, mut chunk) = divide(from, tiles.chunks);
            let (mut tile, mut i, mut begin) = (first, from, from);
            let mut sums = [[0.0f32; 2]; G];
            while i < to {
                let (digits, place) = self.places(chunk / Self::UNITS, row);
                let inputs = Inputs {
                    columns: columns.add(chunk * W::COLS).cast(),
                    group: 8 * column_bytes / 16,
                    scales: place,
                    digits: digits.cast(),
                };
                self.ring.multiply::<G>(&inputs, &mut sums);
                (i, chunk) = (i + 1, chunk + 1);
                if chunk == tiles.chunks || i == to {
                    let is_whole = i - begin == tiles.chunks;
                    repeat(G, |g| {
                        let input = 4 * g as u32 + row;
                        let [low, high] = [sums[g][0] * scales[g], sums[g][1] * scales[g]];
                        if is_whole {
                            if is_finisher && input < n {
                                finish(tiles.first_tile + tile, g, input, r, low, high);
                            }
                        } else if is_finisher {
                            let piece = self.piece(warp_id, tile != first, input);
                            piece.set(r, low);
                            piece.set(r + 8, high);
                        }
                        sums[g] = [0.0; 2];
                    });
                    (begin, chunk, tile) = (i, 0, tile + 1);
                }
            }
            thread::sync_threads();
            // The tile in which this warp's share begins, if an earlier one has its beginning and no other warp adds it up.
            let tile = divide(from, tiles.chunks).0;
            let begins = tile * tiles.chunks;
            if warp_id > 0 && from != to && from != begins && Self::share(tiles, warp_id - 1).0 <= begins {
                repeat(G, |g| {
                    let input = 4 * g as u32 + row;
                    if is_finisher && input < n {
                        let (before, _) = Self::share(tiles, warp_id - 1);
                        let before = self.piece(warp_id - 1, divide(before, tiles.chunks).0 != tile, input);
                        let (mut low, mut high) = (before.get(r), before.get(r + 8));
                        let mut other = warp_id;
                        let end = begins + tiles.chunks;
                        while other < num_warps && Self::share(tiles, other).0 < end {
                            let (from, to) = Self::share(tiles, other);
                            if from < to {
                                let piece = self.piece(other, false, input);
                                low += piece.get(r);
                                high += piece.get(r + 8);
                            }
                            other += 1;
                        }
                        finish(tiles.first_tile + tile, g, input, r, low, high);
                    }
                });
            }
        }
    }

    /// What a warp has of a tile that others have a part of, of an input row: the first or the last tile of its share.
    #[inline(always)]
    fn piece(&self, warp: u32, is_last: bool, input: u32) -> Shared<f32> {
        self.pieces.add(((warp * 2 + u32::from(is_last)) * Self::ROWS + input) * 16)
    }
}
