//! Products of few rows on tensor cores, each weight read once, from memory straight into the registers that the
//! instruction takes.
//!
//! # Weights are the first operand
//! `mma.m16n8k16` multiplies 16 rows of weights with 8 columns of inputs. Of its first operand a lane with `r = lane / 4`
//! and `c = lane % 4` holds elements of rows `r` and `r + 8`. Which 16 columns of the matrix these are is free, as long as
//! both operands agree: so a lane loads 16 bytes, word `4 u + c` of each of its two rows, and has its share of two
//! instructions. A warp takes [`CHUNKS`] such words at a time, [`COLS_PER_WARP`] columns of 16 rows; a block's warps lie side by
//! side along the columns, and their sums are added in the order of the warps. A block computes one tile of rows and ends:
//! nothing but the loads themselves is under way while it waits for its inputs.
//!
//! # Inputs are the second
//! One row of inputs would fill one of eight columns. The others make products as exact as those of f32: a value `v` that
//! was scaled by a power of two so that the largest of the warp's is near the largest f16 is `high + low` of two f16
//! but for 2^-22 of it, and each has a column ([`Normed`]). Where inputs are f16 to begin with, the two columns instead take
//! two halves of the row, with the weights' rows `r + 8` being the second halves of rows `r` ([`matmul_add`](self::matmul_add())).
//!
//! Weights are f16, sums f32. A row's bits depend on the number of columns alone, not on the other rows.

use cuda_std::prelude::*;

#[device]
use super::WORD;
#[device]
use crate::{
    grid::repeat,
    vector::{Group, load_words},
};
#[device]
use cuda_std::{
    memory,
    mma::MmaElement,
    warp::{FULL_MASK, WarpReductionOp, sync_warp, warp_reduce},
};

pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_qkv_rope;

/// Words of each row that a lane has in flight.
#[device]
const CHUNKS: usize = 4;
/// Words of a row that four lanes load together.
#[device]
const WORDS_PER_CHUNK: u32 = 4;
/// Words of a row that a warp has in flight.
#[device]
const WORDS_PER_WARP: u32 = CHUNKS as u32 * WORDS_PER_CHUNK;

/// Columns of weights that a warp takes at a time.
pub const COLS_PER_WARP: u32 = 128;
/// The most warps of a block that norms its inputs.
pub const MAX_NORM_WARPS: u32 = 16;
/// The most warps of a block of [`matmul_add`].
pub const MAX_MATMUL_WARPS: u32 = 20;

/// The fewest warps of a block: a thread for each of four rows of inputs and each of a tile's 16 rows of weights.
const MIN_WARPS: u32 = 2;

/// Warps of a block for rows of `cols` columns: as few rounds as `max` warps need, evenly shared.
pub const fn num_warps(cols: u32, max: u32) -> u32 {
    let parts = cols.div_ceil(COLS_PER_WARP);
    let rounds = parts.div_ceil(max);
    if parts <= MIN_WARPS { MIN_WARPS } else { parts.div_ceil(rounds) }
}

/// Two rows of weights, as far as this lane multiplies them.
#[device]
pub(super) struct Weights {
    rows: [*const f16; 2],
    /// Words of each row.
    words: [u32; 2],
    /// The words that were loaded last.
    chunks: [[[u32; 4]; 2]; CHUNKS],
}

#[device]
impl Weights {
    /// Starts to load this warp's first words.
    ///
    /// # Safety
    /// The rows have that many words and are aligned to 16 bytes.
    #[inline(always)]
    pub(super) unsafe fn new(rows: [*const f16; 2], words: [u32; 2]) -> Self {
        let mut weights = Self { rows, words, chunks: [[[0; 4]; 2]; CHUNKS] };
        // SAFETY: the caller's promise.
        unsafe { weights.load(first_word()) }
        weights
    }

    /// Starts to load the words of the round in which `first` is this lane's first; words beyond the rows are 0.
    ///
    /// # Safety
    /// As [`Weights::new`].
    #[inline(always)]
    unsafe fn load(&mut self, first: u32) {
        repeat(CHUNKS, |u| {
            let word = first + u as u32 * WORDS_PER_CHUNK;
            repeat(2, |i| {
                self.chunks[u][i] = if word < self.words[i] {
                    // SAFETY: inside the row.
                    unsafe {
                        memory::load_nc_no_allocate(
                            self.rows[i].add((word * WORD) as usize).cast::<[u32; 4]>(),
                        )
                    }
                } else {
                    [0; 4]
                };
            });
        });
    }

    /// Adds chunk `u` times the words of the second operand that belong to it. Two sums, so that one instruction need not wait
    /// for the other.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn multiply(&self, u: usize, inputs: [u32; 4], sums: &mut [[f32; 4]; 2]) {
        let [low, high] = self.chunks[u];
        repeat(2, |i| {
            let a = [low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]];
            // SAFETY: the caller's promise.
            sums[i] = unsafe { f16::mma_m16n8k16(a, [inputs[2 * i], inputs[2 * i + 1]], sums[i]) };
        });
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

/// Bytes of dynamic shared memory for a block of `warps` warps that norms `rows` rows: the staged inputs, the
/// sums of each warp, and its sums of squares.
pub const fn norm_shared_bytes(warps: u32, rows: u32) -> u32 {
    warps * rows * (2 * COLUMN_BYTES + (16 + 1) * 4)
}

/// Up to `N` rows of inputs that are to be normed, as the second operand.
#[device]
pub(super) struct Normed<const N: usize> {
    n: u32,
    cols: u32,
    x: *const f32,
    norm: *const f32,
    /// This lane's four values of the norm's weight in the coming round.
    weight: [f32; 4],
}

#[device]
impl<const N: usize> Normed<N> {
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

    /// Multiplies rows `weights` with the normed inputs and calls `finish(i, r, low, high)`, by one thread each, with the products of
    /// input row `i` and the block's rows of weights `r` and `r + 8`, for `i` below `n` and `r` below 8.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together, once in a launch; the block has 2 to
    /// [`MAX_NORM_WARPS`] warps and [`norm_shared_bytes`] of dynamic shared memory. `finish` is called by thread `16 i + r`.
    #[inline(always)]
    pub(super) unsafe fn multiply(
        mut self,
        mut weights: Weights,
        eps: f32,
        mut finish: impl FnMut(u32, u32, f32, f32),
    ) {
        let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
        let num_warps = thread::block_dim_x() / 32;
        let rows = N as u32;
        let staged = dynamic_shared::<u8>().add(warp_id * rows * 2 * COLUMN_BYTES);
        let sums_of_warps = dynamic_shared::<u8>().add(num_warps * rows * 2 * COLUMN_BYTES).cast::<f32>();
        let squares_of_warps = sums_of_warps.add(num_warps * rows * 16);
        let (row, column_of_lane) = (row_of_lane(), lane_of_row());

        let mut squares = [0.0f32; N];
        // Of input row `column_of_lane`: with weights of rows `row` and `row + 8`.
        let mut totals = [0.0f32; 2];
        let (mut word, mut column) = (first_word(), Self::first_column());
        // SAFETY: the caller's promise; each warp writes its own stage and sums, which barriers order against the readers.
        unsafe {
            let mut x = self.load(column);
            loop {
                let mut unscale = 1.0;
                repeat(N, |i| {
                    repeat(4, |j| squares[i] = x[i][j].mul_add(x[i][j], squares[i]));
                    let inverse =
                        stage_parts(staged.add(2 * i as u32 * COLUMN_BYTES), product(x[i], self.weight));
                    if column_of_lane == i as u32 {
                        unscale = inverse;
                    }
                });
                sync_warp(FULL_MASK);
                let mut sums = [[0.0; 4]; 2];
                repeat(CHUNKS, |u| {
                    let mut inputs = [0; 4];
                    if row < 2 * rows {
                        let place = staged.add(row * COLUMN_BYTES).cast::<[u32; 4]>();
                        inputs = place.get(u as u32 * WORDS_PER_CHUNK + column_of_lane);
                    }
                    weights.multiply(u, inputs, &mut sums);
                });
                // The products with the high and the low parts.
                totals[0] += ((sums[0][0] + sums[1][0]) + (sums[0][1] + sums[1][1])) * unscale;
                totals[1] += ((sums[0][2] + sums[1][2]) + (sums[0][3] + sums[1][3])) * unscale;
                word += words_per_round();
                column += num_warps * COLS_PER_WARP;
                // The same for all lanes of the warp.
                if word - column_of_lane >= weights.words[0] {
                    break;
                }
                weights.load(word);
                self.load_weight(column);
                x = self.load(column);
                // Everybody has read the stage.
                sync_warp(FULL_MASK);
            }

            if column_of_lane < rows {
                let place = (warp_id * rows + column_of_lane) * 16 + row;
                sums_of_warps.set(place, totals[0]);
                sums_of_warps.set(place + 8, totals[1]);
            }
            repeat(N, |i| {
                let sum = warp::reduce_sum(squares[i]);
                if lane == 0 {
                    squares_of_warps.set(warp_id * rows + i as u32, sum);
                }
            });
            thread::sync_threads();

            // Whole warps, since lanes exchange what they find.
            let t = thread::thread_idx_x();
            if t < (16 * rows).next_multiple_of(32) {
                let i = (t / 16).min(rows - 1);
                let (mut sum, mut squares) = (0.0, 0.0);
                let mut first = 0;
                while first < num_warps {
                    repeat(8, |w| {
                        let w = first + w as u32;
                        if w < num_warps {
                            sum += sums_of_warps.get((w * rows + i) * 16 + t % 16);
                            squares += squares_of_warps.get(w * rows + i);
                        }
                    });
                    first += 8;
                }
                sum *= crate::rms_norm::scale(squares, self.cols, eps);
                let high = warp::shuffle_down(sum, 8);
                if t % 16 < 8 && t / 16 < self.n {
                    finish(i, t % 16, sum, high);
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

/// This lane's words of up to `N` rows of f16 inputs, cut in two halves of which each is a column.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Halves<const N: usize> {
    /// The half of the row that is this lane's column; null where the column has none.
    row: *const f16,
    words: u32,
}

#[device]
impl<const N: usize> Halves<N> {
    /// # Safety
    /// `x` leads to `n` rows of `words` words, aligned to 16 bytes.
    #[inline(always)]
    pub(super) unsafe fn new(n: u32, words: u32, x: *const f16) -> Self {
        let (row, half) = (row_of_lane() / 2, row_of_lane() % 2);
        let [first, second] = halves(words);
        let words_of_half = if half == 0 { first } else { second };
        let start = (row.min(n - 1) * words + half * first) * WORD;
        // SAFETY: inside the rows.
        Self { row: unsafe { x.add(start as usize) }, words: if row < n { words_of_half } else { 0 } }
    }

    /// # Safety
    /// As [`Halves::new`]; the kernel before this one has ended.
    #[inline(always)]
    unsafe fn load(&self, word: u32) -> [u32; 4] {
        if word < self.words {
            // SAFETY: inside the half.
            unsafe { load_words(self.row.add((word * WORD) as usize)) }
        } else {
            [0; 4]
        }
    }

    /// Multiplies `weights`, the two halves of each row, with the inputs. Returns the product of this lane's row with input
    /// row `lane % 4`, as far as this warp has computed it.
    ///
    /// # Safety
    /// The kernel before this one has ended; all lanes of the warp call it together.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self, mut weights: Weights) -> f32 {
        let mut total = 0.0;
        let mut word = first_word();
        // SAFETY: the caller's promise.
        unsafe {
            loop {
                let mut inputs = [[0; 4]; CHUNKS];
                repeat(CHUNKS, |u| inputs[u] = self.load(word + u as u32 * WORDS_PER_CHUNK));
                let mut sums = [[0.0; 4]; 2];
                repeat(CHUNKS, |u| weights.multiply(u, inputs[u], &mut sums));
                // First halves with first halves, second with second; the other two mean nothing.
                total += (sums[0][0] + sums[1][0]) + (sums[0][3] + sums[1][3]);
                word += words_per_round();
                if word - lane_of_row() >= weights.words[0] {
                    return total;
                }
                weights.load(word);
            }
        }
    }
}

/// Words of the two halves of a row of `words` words.
#[device]
#[inline(always)]
pub(super) fn halves(words: u32) -> [u32; 2] {
    let first = words.div_ceil(2);
    [first, words - first]
}
