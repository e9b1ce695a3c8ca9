//! Products of few rows with matrices in [units](crate::units), on int8 tensor cores.
//!
//! # Inputs are two signed bytes
//! `mma.m16n8k32` multiplies 16 rows of weights with 8 columns of inputs, all signed bytes, with exact sums. The weights' integers go in
//! as the file has them. An input is `scale * (256 high + low)`, 16 bits of the largest value of its row in these columns, and high
//! and low are two of the eight columns: one row of inputs fills two, four rows all, eight take two instructions. So what is lost
//! is less than f16 inputs lose, and of the weights nothing.
//!
//! # A block streams tiles
//! A block has every `grid_dim`-th tile of 16 rows. Its warps lie side by side along the columns, a unit each, and take the rest in
//! rounds; each stages the inputs of its own columns, round by round, so no barrier comes before a product. A warp has a ring of
//! units of its own in shared memory, which its first lane fills by bulk copies, and the first of them are under way before the kernel
//! waits for its inputs. The sums of the warps are added in their order: a row's bits depend on the number of columns alone.
//!
//! After the project's measurements of 2026-11-28: bulk copies into a ring for each warp read large matrices at 81 to 94 % of what the memory
//! gives; loads to registers at 77 %, f16 operands made from the same bytes at 61 %, the file's own layout at 50 %.

use cuda_std::prelude::*;

#[device]
use crate::{grid::repeat, units::Unit};
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
/// The most tiles whose sums are kept until the warps' are added.
pub const MAX_BATCH: u32 = 8;
/// Bytes of the digits of a staged row: three for each of eight blocks, and room.
const DIGIT_BYTES: u32 = 32;

/// Warps of a block for rows of `units` units: as few rounds as [`MAX_WARPS`] need, evenly shared.
pub const fn num_warps(units: u32) -> u32 {
    if units == 0 { 1 } else { units.div_ceil(units.div_ceil(MAX_WARPS)) }
}

/// Rounds in which `warps` warps take rows of `units` units.
pub const fn num_rounds(units: u32, warps: u32) -> u32 {
    units.div_ceil(warps)
}

/// Tiles whose sums a block keeps, of `tiles` that `blocks` blocks share.
pub const fn batch(tiles: u32, blocks: u32) -> u32 {
    let of_block = tiles.div_ceil(blocks);
    if of_block < MAX_BATCH { of_block } else { MAX_BATCH }
}

/// Bytes of dynamic shared memory for `depth` units of `unit_bytes` of a block of `warps` warps.
pub const fn ring_bytes(warps: u32, depth: u32, unit_bytes: u32) -> u32 {
    warps * depth * unit_bytes
}

/// Bytes of dynamic shared memory besides the ring: its barriers, staged inputs of units of `cols` columns, the sums of each warp for `rows` rows
/// of a [`batch`] of tiles, and its sums of squares.
pub const fn shared_bytes(warps: u32, depth: u32, cols: u32, rows: u32, batch: u32) -> u32 {
    warps * (depth * 8 + stage_bytes(cols, rows) + (batch * 16 + 1) * rows * 4)
}

/// Bytes of a warp's staged inputs.
const fn stage_bytes(cols: u32, rows: u32) -> u32 {
    rows * (2 * column_bytes(cols) + DIGIT_BYTES + 16)
}

/// Bytes from one staged column of inputs to the next: 64 more, so that neighbours lie in different banks.
const fn column_bytes(cols: u32) -> u32 {
    cols + 64
}

/// Inputs that a warp has staged, as one of its lanes reads them.
#[device]
#[derive(Clone, Copy)]
pub struct Inputs {
    /// This lane's 16 bytes of the first two blocks of its column; the next two are 64 bytes on.
    columns: Shared<[u32; 4]>,
    /// From one group of eight columns to the next, in 16 bytes.
    group: u32,
    /// Of this lane's row of the first group.
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

    /// Starts to load what does not depend on the kernel before this one, of the `count` columns from `column` on: 4 or 8.
    ///
    /// # Safety
    /// The rows have these columns.
    unsafe fn prepare(&mut self, column: u32, count: usize);

    /// Those columns of row `i`.
    ///
    /// # Safety
    /// There is such a row, and the kernel before this one has ended.
    unsafe fn load(&self, i: u32, column: u32, count: usize) -> [f32; 8];

    /// What they are multiplied with before they are staged.
    fn weight(&self) -> [f32; 8];
}

/// f32 rows that are normed.
#[device]
pub(super) struct Normed {
    pub x: *const f32,
    pub norm: *const f32,
    pub cols: u32,
    weight: [f32; 8],
}

#[device]
impl Normed {
    #[inline(always)]
    pub(super) fn new(x: *const f32, norm: *const f32, cols: u32) -> Self {
        Self { x, norm, cols, weight: [0.0; 8] }
    }
}

#[device]
impl Source for Normed {
    const NORMED: bool = true;

    #[inline(always)]
    unsafe fn prepare(&mut self, column: u32, count: usize) {
        // SAFETY: the caller's promise.
        self.weight = unsafe { load_f32(self.norm.add(column as usize), count) };
    }

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32, count: usize) -> [f32; 8] {
        // SAFETY: the caller's promise.
        unsafe { load_f32(self.x.add(crate::grid::offset(i, self.cols, column)), count) }
    }

    #[inline(always)]
    fn weight(&self) -> [f32; 8] {
        self.weight
    }
}

/// `count` values, 4 or 8, from L2.
///
/// # Safety
/// `from` leads to them, aligned to 16 bytes.
#[device]
#[inline(always)]
unsafe fn load_f32(from: *const f32, count: usize) -> [f32; 8] {
    let mut values = [0.0; 8];
    repeat(count / 4, |q| {
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
    unsafe fn prepare(&mut self, _: u32, _: usize) {}

    #[inline(always)]
    unsafe fn load(&self, i: u32, column: u32, count: usize) -> [f32; 8] {
        let mut values = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe {
            let from = self.x.add(crate::grid::offset(i, self.cols, column));
            repeat(count / 4, |q| {
                let [a, b] = memory::load_l2(from.add(4 * q).cast::<[u32; 2]>());
                let ((v0, v1), (v2, v3)) = (f16::unpack2(a), f16::unpack2(b));
                let v = [v0, v1, v2, v3];
                repeat(4, |j| values[4 * q + j] = v[j]);
            });
        }
        values
    }

    #[inline(always)]
    fn weight(&self) -> [f32; 8] {
        [1.0; 8]
    }
}

/// Stages a row of inputs in a warp's columns: this lane's `cols / 32` values of it.
///
/// # Safety
/// All lanes of the warp call it together; the places belong to the warp, and nobody reads them.
#[device]
#[inline(always)]
unsafe fn stage<W: Unit>(values: [f32; 8], columns: Shared<u8>, scale: Shared<f32>, digits: Shared<u8>) {
    // 127 * 256 and half a digit: what two signed bytes hold, to either side.
    const LARGEST: f32 = 32512.0;
    // Added and taken away it leaves a rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let lane = warp::lane_id();
    let width = W::COLS as usize / 32;
    let mut largest = 0.0f32;
    repeat(width, |j| largest = largest.max(values[j].abs()));
    // The bits of floats that are not negative are ordered as the floats are.
    // SAFETY: the caller's promise; below, places are this lane's own.
    unsafe {
        let largest = f32::from_bits(warp_reduce(FULL_MASK, largest.to_bits(), WarpReductionOp::Max));
        let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
        let mut sum = 0;
        repeat(width / 4, |q| {
            let (mut high, mut low) = (0u32, 0u32);
            repeat(4, |j| {
                let v = values[4 * q + j].mul_add(inverse, ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                high |= ((v + 128) >> 8 & 255) as u32 * (1 << (8 * j));
                low |= (v & 255) as u32 * (1 << (8 * j));
                sum += v;
            });
            // Of a pair of blocks columns `4 c ..` of both and of both halves side by side.
            let column = lane * width as u32 + 4 * q as u32;
            let place = column / 64 * 64 + column / 4 % 4 * 16 + column / 32 % 2 * 8 + column / 16 % 2 * 4;
            columns.add(place).cast::<u32>().set(0, high);
            columns.add(place + column_bytes(W::COLS)).cast::<u32>().set(0, low);
        });
        if lane == 0 {
            scale.set(0, largest / (LARGEST * W::FACTOR));
        }
        if W::DIGITS {
            // Four lanes have a block.
            let sum = sum + warp::shuffle_xor(sum, 1);
            let mut sum = sum + warp::shuffle_xor(sum, 2);
            if lane % 4 == 0 {
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

/// A matrix in units, and the block's share of its tiles.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub weights: *const u8,
    /// Tiles of all blocks.
    pub count: u32,
    /// Units of a tile.
    pub units: u32,
    /// The block's first tile, and from one to the next.
    pub first: u32,
    pub step: u32,
}

#[device]
impl Tiles {
    /// Every `grid_dim`-th tile.
    #[inline(always)]
    pub(super) fn strided(weights: *const u8, count: u32, units: u32) -> Self {
        Self { weights, count, units, first: thread::block_idx_x(), step: thread::grid_dim_x() }
    }

    /// The block's `i`-th tile.
    #[inline(always)]
    fn tile(self, i: u32) -> u32 {
        self.first + i * self.step
    }

    /// Tiles of this block.
    #[inline(always)]
    fn of_block(self) -> u32 {
        crate::grid::divide(self.count - self.first + self.step - 1, self.step).0
    }
}

/// A warp's units on their way through its ring: batch by batch of tiles, in each round by round, in each tile by tile.
#[device]
struct Ring<W> {
    tiles: Tiles,
    num_tiles: u32,
    rounds: u32,
    depth: u32,
    ring: Shared<u8>,
    barriers: Shared<u64>,
    /// What is copied next: the first tile of its batch, its round, its tile.
    next: [u32; 3],
    /// Its place.
    next_place: u32,
    /// The place that is read next, and the parity of its phase.
    place: u32,
    parity: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Ring<W> {
    /// The unit of this warp in a round.
    #[inline(always)]
    fn unit(round: u32) -> u32 {
        warp::warp_id() + round * (thread::block_dim_x() / 32)
    }

    /// Starts to copy the next unit to the next place, if there is one.
    ///
    /// # Safety
    /// All lanes call it together, and have read what the place held.
    #[inline(always)]
    unsafe fn copy(&mut self) {
        let [first, mut round, mut tile] = self.next;
        if first >= self.num_tiles {
            return;
        }
        if warp::lane_id() == 0 {
            let unit =
                self.tiles.tile(tile) as usize * self.tiles.units as usize + Self::unit(round) as usize;
            let barrier = Mbarrier::new(self.barriers.add(self.next_place));
            // SAFETY: inside the matrix; the caller's promise.
            unsafe {
                barrier.arrive_expect_tx(W::BYTES);
                let to = self.ring.add(self.next_place * W::BYTES);
                bulk_copy(to, self.tiles.weights.add(unit * W::BYTES as usize), W::BYTES, barrier);
            }
        }
        let end = self.num_tiles.min(first + MAX_BATCH);
        tile += 1;
        let mut next_first = first;
        if tile == end {
            (round, tile) = (round + 1, first);
            if round == self.rounds || Self::unit(round) >= self.tiles.units {
                (next_first, round, tile) = (end, 0, end);
            }
        }
        self.next = [next_first, round, tile];
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
    /// This warp's staged inputs: columns, digits, scales.
    stage: Shared<u8>,
    inputs: Inputs,
    /// `[tile of a batch][warp][row of inputs][row of a tile]`
    sums_of_warps: Shared<f32>,
    /// `[warp][row of inputs]`
    squares_of_warps: Shared<f32>,
}

#[device]
impl<W: Unit, const N: usize, const G: usize> Product<W, N, G> {
    const ROWS: u32 = N as u32;
    /// Columns of a lane.
    const WIDTH: usize = W::COLS as usize / 32;
    /// Where a stage's digits and scales begin.
    const DIGITS: u32 = 2 * Self::ROWS * column_bytes(W::COLS);
    const SCALES: u32 = Self::DIGITS + Self::ROWS * DIGIT_BYTES;

    /// Starts to copy the first units.
    ///
    /// # Safety
    /// All threads of the block call it together, once in a launch. The block has at most [`MAX_WARPS`] warps and no more than a row has
    /// units, and [`ring_bytes`] and [`shared_bytes`] of dynamic shared memory, of a `depth` from 1 to [`MAX_DEPTH`]; there are as many tiles as blocks, or
    /// more.
    #[inline(always)]
    pub(super) unsafe fn begin(tiles: Tiles, depth: u32) -> Self {
        let (lane, warp_id, num_warps) = (warp::lane_id(), warp::warp_id(), thread::block_dim_x() / 32);
        let shared = dynamic_shared::<u8>();
        let ring = shared.add(warp_id * depth * W::BYTES);
        let shared = shared.add(num_warps * depth * W::BYTES);
        let stage = shared.add(warp_id * stage_bytes(W::COLS, Self::ROWS));
        let shared = shared.add(num_warps * stage_bytes(W::COLS, Self::ROWS));
        let barriers = shared.cast::<u64>().add(warp_id * depth);
        let sums_of_warps = shared.add(num_warps * depth * 8).cast::<f32>();
        let num_tiles = tiles.of_block();
        let squares_of_warps = sums_of_warps.add(num_warps * batch(num_tiles, 1) * Self::ROWS * 16);
        // High and low of one row are two columns; of four rows, eight.
        let (column, row) = if N == 1 { (lane / 4 % 2, 0) } else { (lane / 4, lane % 4) };
        let inputs = Inputs {
            columns: stage.add(column * column_bytes(W::COLS) + 16 * (lane % 4)).cast(),
            group: 8 * column_bytes(W::COLS) / 16,
            scales: stage.add(Self::SCALES).cast::<[f32; 4]>().add(row),
            digits: stage.add(Self::DIGITS + DIGIT_BYTES * row).cast(),
        };
        let rounds = crate::grid::divide(tiles.units + num_warps - 1, num_warps).0;
        let mut ring = Ring {
            tiles,
            num_tiles,
            rounds,
            depth,
            ring,
            barriers,
            next: [0; 3],
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
        Self { ring, stage, inputs, sums_of_warps, squares_of_warps }
    }

    /// This lane's first column of a round.
    #[inline(always)]
    fn column(round: u32) -> u32 {
        Ring::<W>::unit(round) * W::COLS + warp::lane_id() * Self::WIDTH as u32
    }

    /// Starts to load what is known of the inputs before the kernel before this one has ended.
    ///
    /// # Safety
    /// As [`Source::prepare`].
    #[inline(always)]
    pub(super) unsafe fn prepare(&self, source: &mut impl Source) {
        // SAFETY: the caller's promise; the warp has a unit in the first round.
        unsafe { source.prepare(Self::column(0), Self::WIDTH) }
    }

    /// Stages the inputs of a round; their squares are added to `squares`.
    ///
    /// # Safety
    /// As [`Product::multiply`].
    #[inline(always)]
    unsafe fn stage<S: Source>(&self, source: &S, n: u32, round: u32, squares: &mut [f32; N]) {
        let weight = source.weight();
        let mut values = [[0.0f32; 8]; N];
        // SAFETY: the caller's promise.
        unsafe {
            repeat(N, |i| {
                if (i as u32) < n {
                    values[i] = source.load(i as u32, Self::column(round), Self::WIDTH);
                }
            });
            repeat(N, |i| {
                let mut products = values[i];
                if S::NORMED {
                    repeat(Self::WIDTH, |j| {
                        squares[i] = values[i][j].mul_add(values[i][j], squares[i]);
                        products[j] = values[i][j] * weight[j];
                    });
                }
                let i = i as u32;
                let columns = self.stage.add(2 * i * column_bytes(W::COLS));
                let scale = self.stage.add(Self::SCALES).cast::<[f32; 4]>().add(i);
                stage::<W>(products, columns, scale.cast(), self.stage.add(Self::DIGITS + i * DIGIT_BYTES));
            });
            sync_warp(FULL_MASK);
        }
    }

    /// Multiplies the tiles and calls `finish(tile, i, r, low, high)`, by one thread each, with the products of input row `i` and the tile's rows of
    /// weights `r` and `r + 8`, for `i` below `n` and `r` below 8; where inputs are normed, times `scale` of the row's sum of squares.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together. `finish` is called by thread `16 i + r`, for a block with one
    /// tile and as many threads.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Source>(
        mut self,
        n: u32,
        mut source: S,
        scale: impl Fn(f32) -> f32,
        mut finish: impl FnMut(u32, u32, u32, f32, f32),
    ) {
        let (lane, warp_id, num_warps) = (warp::lane_id(), warp::warp_id(), thread::block_dim_x() / 32);
        let (tiles, rounds, num_tiles) = (self.ring.tiles, self.ring.rounds, self.ring.num_tiles);
        let row_of_lane = if N == 1 { 0 } else { lane % 4 };
        let (sums_of_warps, squares_of_warps) = (self.sums_of_warps, self.squares_of_warps);
        let mut squares = [0.0f32; N];
        let mut done = 0;
        // SAFETY: the caller's promise; each warp writes its own places, which barriers order against the readers.
        unsafe {
            while done < num_tiles {
                let batch = (num_tiles - done).min(MAX_BATCH);
                let mut round = 0;
                while round < rounds && Ring::<W>::unit(round) < tiles.units {
                    // With one round the inputs stay.
                    if done == 0 || rounds > 1 {
                        if round > 0 || done > 0 {
                            source.prepare(Self::column(round), Self::WIDTH);
                        }
                        self.stage(&source, n, round, &mut squares);
                    }
                    let mut tile = 0;
                    while tile < batch {
                        // Of input row `4 g + row_of_lane`: with weights of rows `lane / 4` and 8 more.
                        let mut sums = [[0.0f32; 2]; G];
                        self.ring.multiply::<G>(&self.inputs, &mut sums);
                        repeat(G, |g| {
                            let i = 4 * g as u32 + row_of_lane;
                            if i < Self::ROWS && (N > 1 || lane % 4 == 0) {
                                let place = ((tile * num_warps + warp_id) * Self::ROWS + i) * 16 + lane / 4;
                                let [mut low, mut high] = sums[g];
                                if round > 0 {
                                    low += sums_of_warps.get(place);
                                    high += sums_of_warps.get(place + 8);
                                }
                                sums_of_warps.set(place, low);
                                sums_of_warps.set(place + 8, high);
                            }
                        });
                        tile += 1;
                    }
                    round += 1;
                }
                if S::NORMED && done == 0 {
                    repeat(N, |i| {
                        let sum = warp::reduce_sum(squares[i]);
                        if lane == 0 {
                            squares_of_warps.set(warp_id * Self::ROWS + i as u32, sum);
                        }
                    });
                }
                thread::sync_threads();

                // Whole warps, since lanes exchange what they find.
                let per_tile = 16 * Self::ROWS;
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
                                sum += sums_of_warps.get(((place + w) * Self::ROWS + i) * 16 + t % 16);
                                if S::NORMED {
                                    squares += squares_of_warps.get(w * Self::ROWS + i);
                                }
                            }
                        });
                        first += 8;
                    }
                    if S::NORMED {
                        sum *= scale(squares);
                    }
                    let high = warp::shuffle_down(sum, 8);
                    if t % 16 < 8 && i < n && tile < batch {
                        finish(tiles.tile(done + tile), i, t % 16, sum, high);
                    }
                    t += thread::block_dim_x();
                }
                done += batch;
                if done < num_tiles {
                    // Everybody has read the sums.
                    thread::sync_threads();
                }
            }
        }
    }
}
