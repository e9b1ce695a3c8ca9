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
    grid::{divide, offset, repeat},
    units::Unit,
};
#[device]
use cuda_std::{
    async_copy::bulk_copy,
    mbarrier::{self, Mbarrier},
    memory,
    warp::{FULL_MASK, WarpReductionOp, sync_warp, warp_reduce},
};

pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;

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

/// Staged inputs of one unit, as a lane reads them.
#[device]
#[derive(Clone, Copy)]
pub struct Inputs {
    /// This lane's 16 bytes of the first two blocks of its column; the next two are 64 bytes on.
    columns: Shared<[u32; 4]>,
    /// From one group of eight columns to the next, in 16 bytes.
    group: u32,
    /// Of this lane's row of the first group: the scale, the sum of squares.
    scales: Shared<[f32; 4]>,
    /// Likewise.
    digits: Shared<[u32; 4]>,
}

#[device]
impl Inputs {
    /// Second operands of group `g`: for each of the blocks `2 pair` and `2 pair + 1` the registers of its two halves.
    ///
    /// # Safety
    /// The inputs are complete and have such columns.
    #[inline(always)]
    pub unsafe fn columns(&self, g: u32, pair: u32) -> [u32; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.columns.get(g * self.group + 4 * pair) }
    }

    /// What the integers of input row `4 g + lane % 4` are multiplied with.
    ///
    /// # Safety
    /// The inputs are complete.
    #[inline(always)]
    pub unsafe fn scale(&self, g: u32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.scales.add(4 * g).cast::<f32>().get(0) }
    }

    /// The sums of that row's integers over each block of 32 columns, as three digits to the base of 256, the lowest first: a signed byte each
    /// for the four even blocks, then for the odd ones.
    ///
    /// # Safety
    /// The inputs are complete, and of a format that [asks](Unit::DIGITS) for them.
    #[inline(always)]
    pub unsafe fn digits(&self, g: u32) -> [[u32; 2]; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let digits = self.digits.add(8 * g);
            let [a, b, c, d] = digits.get(0);
            [[a, b], [c, d], digits.add(1).cast::<[u32; 2]>().get(0)]
        }
    }
}

/// Where inputs come from.
#[device]
pub(super) trait Source {
    /// Whether they are normed: then their squares are summed up.
    const NORMED: bool;

    /// Eight columns of row `i` from `column` on.
    ///
    /// # Safety
    /// There are such a row and columns, and the kernel before this one has ended.
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH];

    /// What they are multiplied with before they are staged.
    ///
    /// # Safety
    /// There are such columns.
    unsafe fn weight(&self, column: u32) -> [f32; WIDTH];
}

/// f32 rows that are normed.
#[device]
pub(super) struct Normed {
    pub x: *const f32,
    pub norm: *const f32,
    pub cols: u32,
}

#[device]
impl Source for Normed {
    const NORMED: bool = true;

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { load_f32(self.x.add(offset(i, self.cols, column))) }
    }

    #[inline(always)]
    unsafe fn weight(&self, column: u32) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { load_f32(self.norm.add(column as usize)) }
    }
}

/// Eight values, from L2.
///
/// # Safety
/// `from` leads to them, aligned to 16 bytes.
#[device]
#[inline(always)]
unsafe fn load_f32(from: *const f32) -> [f32; WIDTH] {
    let mut values = [0.0; WIDTH];
    repeat(WIDTH / 4, |q| {
        // SAFETY: the caller's promise.
        let v = unsafe { memory::load_l2(from.add(4 * q).cast::<[f32; 4]>()) };
        repeat(4, |j| values[4 * q + j] = v[j]);
    });
    values
}

/// f16 rows as they are.
#[device]
pub(super) struct Plain {
    pub x: *const f16,
    pub cols: u32,
}

#[device]
impl Source for Plain {
    const NORMED: bool = false;

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32) -> [f32; WIDTH] {
        let mut values = [0.0; WIDTH];
        // SAFETY: the caller's promise.
        let words = unsafe { memory::load_l2(self.x.add(offset(i, self.cols, column)).cast::<[u32; 4]>()) };
        repeat(4, |q| (values[2 * q], values[2 * q + 1]) = f16::unpack2(words[q]));
        values
    }

    #[inline(always)]
    unsafe fn weight(&self, _: u32) -> [f32; WIDTH] {
        [1.0; WIDTH]
    }
}

/// Stages a row of a chunk: this lane's values of it, if it has `some`. `low` is from the high bytes' column to that of the low ones.
///
/// # Safety
/// All lanes of the warp call it together; the places belong to the warp, and nobody reads them.
#[device]
#[inline(always)]
unsafe fn stage<W: Unit>(
    values: [f32; WIDTH],
    some: bool,
    columns: Shared<u8>,
    low: u32,
    scale: Shared<f32>,
    digits: Shared<u8>,
) {
    // 127 * 256 and half a digit: what two signed bytes hold, to either side.
    const LARGEST: f32 = 32512.0;
    // Added and taken away it leaves a rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let lane = warp::lane_id();
    let mut largest = 0.0f32;
    repeat(WIDTH, |j| largest = largest.max(values[j].abs()));
    // The bits of floats that are not negative are ordered as the floats are.
    // SAFETY: the caller's promise; below, places are this lane's own.
    unsafe {
        let largest = f32::from_bits(warp_reduce(FULL_MASK, largest.to_bits(), WarpReductionOp::Max));
        let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
        let mut sum = 0;
        repeat(WIDTH / 4, |q| {
            let (mut high_bytes, mut low_bytes) = (0u32, 0u32);
            repeat(4, |j| {
                let v = values[4 * q + j].mul_add(inverse, ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                high_bytes |= ((v + 128) >> 8 & 255) as u32 * (1 << (8 * j));
                low_bytes |= (v & 255) as u32 * (1 << (8 * j));
                sum += v;
            });
            // Of a pair of blocks columns `4 c ..` of both and of both halves side by side.
            let column = lane * WIDTH as u32 + 4 * q as u32;
            let place = column / 64 * 64 + column / 4 % 4 * 16 + column / 32 % 2 * 8 + column / 16 % 2 * 4;
            if some {
                columns.add(place).cast::<u32>().set(0, high_bytes);
                columns.add(place + low).cast::<u32>().set(0, low_bytes);
            }
        });
        if lane == 0 {
            scale.set(0, largest / (LARGEST * W::FACTOR));
        }
        if W::DIGITS {
            // Four lanes have a block.
            let sum = sum + warp::shuffle_xor(sum, 1);
            let mut sum = sum + warp::shuffle_xor(sum, 2);
            if lane.is_multiple_of(4) {
                let block = lane / 4;
                repeat(3, |k| {
                    let digit = sum as i8;
                    sum = (sum - i32::from(digit)) >> 8;
                    digits.set((2 * k as u32 + block % 2) * 4 + block / 2, digit as u8);
                });
            }
        }
    }
}

/// A matrix in units, and the part of it that a block multiplies.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    weights: *const u8,
    /// Units of a tile in the matrix.
    units: u32,
    /// The block's tiles.
    first_tile: u32,
    tiles: u32,
    /// The units of these tiles that it takes.
    first_unit: u32,
    chunks: u32,
}

#[device]
impl Tiles {
    /// The share of block `block` of `blocks` of `tiles` tiles of `units` units.
    #[inline(always)]
    pub(super) fn share(weights: *const u8, tiles: u32, units: u32, block: u32, blocks: u32) -> Self {
        Self::slice(weights, tiles, units, [block, blocks], [0, 1])
    }

    /// As [`Tiles::share`], of slice `slice` of `slices` of the columns.
    #[inline(always)]
    pub(super) fn slice(
        weights: *const u8,
        tiles: u32,
        units: u32,
        [block, blocks]: [u32; 2],
        [slice, slices]: [u32; 2],
    ) -> Self {
        let begin = |i: u32, count: u32, of: u32| divide(i * count, of).0;
        let (first_tile, first_unit) = (begin(block, tiles, blocks), begin(slice, units, slices));
        let (end_tile, end_unit) = (begin(block + 1, tiles, blocks), begin(slice + 1, units, slices));
        Self {
            weights,
            units,
            first_tile,
            tiles: end_tile - first_tile,
            first_unit,
            chunks: end_unit - first_unit,
        }
    }

    /// The first of the block's tiles.
    #[inline(always)]
    pub(super) fn first(self) -> u32 {
        self.first_tile
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        self.tiles
    }
}

/// A warp's share of the block's units, on its way through a ring.
#[device]
struct Ring<W> {
    tiles: Tiles,
    depth: u32,
    ring: Shared<u8>,
    barriers: Shared<u64>,
    /// The unit that is copied next: its tile of the block, its chunk; and how many are left.
    tile: u32,
    chunk: u32,
    left: u32,
    /// The place that it goes to.
    next_place: u32,
    /// The place that is read next, and the parity of its phase.
    place: u32,
    parity: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Ring<W> {
    /// Starts to copy the next unit to the next place, if there is one.
    ///
    /// # Safety
    /// All lanes call it together, and have read what the place held.
    #[inline(always)]
    unsafe fn copy(&mut self) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        if warp::lane_id() == 0 {
            let Tiles { weights, units, first_tile, first_unit, .. } = self.tiles;
            let unit =
                (first_tile + self.tile) as usize * units as usize + (first_unit + self.chunk) as usize;
            let barrier = Mbarrier::new(self.barriers.add(self.next_place));
            // SAFETY: inside the matrix; the caller's promise.
            unsafe {
                barrier.arrive_expect_tx(W::BYTES);
                let to = self.ring.add(self.next_place * W::BYTES);
                bulk_copy(to, weights.add(unit * W::BYTES as usize), W::BYTES, barrier);
            }
        }
        self.chunk += 1;
        if self.chunk == self.tiles.chunks {
            (self.chunk, self.tile) = (0, self.tile + 1);
        }
        self.next_place = if self.next_place + 1 == self.depth { 0 } else { self.next_place + 1 };
    }

    /// Multiplies the unit that comes next, then starts to copy another one to its place.
    ///
    /// # Safety
    /// All lanes of the warp call it together, once for each unit; the inputs are staged.
    #[inline(always)]
    unsafe fn multiply<const G: usize>(&mut self, inputs: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            Mbarrier::new(self.barriers.add(self.place)).wait(self.parity);
            W::multiply(self.ring.add(self.place * W::BYTES), inputs, sums);
            sync_warp(FULL_MASK);
            self.copy();
        }
        self.place += 1;
        if self.place == self.depth {
            (self.place, self.parity) = (0, self.parity ^ 1);
        }
    }
}

/// The products of the block's tiles with up to `N` rows of inputs, in `G` groups of four.
#[device]
pub(super) struct Product<W, const N: usize, const G: usize> {
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
    pub(super) unsafe fn begin(tiles: Tiles, depth: u32) -> Self {
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
    pub(super) fn last_tile(&self) -> u32 {
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
    pub(super) unsafe fn multiply<S: Source>(
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
