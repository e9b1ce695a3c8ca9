//! Inputs of a block in shared memory, as the formats of units multiply them. See the [module](super).

use cuda_std::prelude::*;

#[device]
use super::inputs::{Inputs, Source, WIDTH, stage_bytes_of_chunk, stage_halves_of_chunk};
#[device]
use crate::{
    grid::{divide, repeat},
    units::Unit,
};

/// Places among the inputs at which blocks begin to stage them.
#[device]
const TURNS: u32 = 16;
/// Columns of inputs that share a scale.
pub(crate) const CHUNK: u32 = 256;
/// Bytes of the digits of a staged row: three for each of eight blocks, and room.
const DIGIT_BYTES: u32 = 32;

/// Bytes of the staged inputs: columns, then for each chunk and row the digits, scale and sum of squares.
pub const fn stage_bytes(units: u32, cols: u32, rows: u32) -> u32 {
    rows * (2 * column_bytes(units * cols) + (units * cols).div_ceil(CHUNK) * (DIGIT_BYTES + 16))
}

/// Bytes from one staged column of signed bytes to the next: 64 more, so that neighbours lie in different banks.
const fn column_bytes(cols: u32) -> u32 {
    cols + 64
}

/// Staged rows of inputs: their columns, then the digits, then the scales, each of the last two `[chunk][row]`.
#[device]
pub(crate) struct Stage<W> {
    at: Shared<u8>,
    rows: u32,
    cols: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Stage<W> {
    /// Units of a chunk.
    pub(crate) const UNITS: u32 = CHUNK / W::COLS;

    /// Room for `rows` rows of `cols` columns, whole units of them, in [`stage_bytes`] from `at` on.
    #[inline(always)]
    pub(crate) fn new(at: Shared<u8>, rows: u32, cols: u32) -> Self {
        Self { at, rows, cols, format: core::marker::PhantomData }
    }

    /// Chunks of the columns, of which the last may be a part of one.
    #[inline(always)]
    pub(crate) fn chunks(&self) -> u32 {
        self.cols.div_ceil(CHUNK)
    }

    /// Bytes from one row to the next, where rows of halves that are used together lie in different banks.
    #[inline(always)]
    fn row_bytes(&self) -> u32 {
        if W::HALVES { 2 * self.cols + 16 } else { 2 * column_bytes(self.cols) }
    }

    /// Where the digits and the scale of a row of a chunk are.
    #[inline(always)]
    pub(crate) fn places(&self, chunk: u32, row: u32) -> (Shared<u8>, Shared<[f32; 4]>) {
        let digits = self.at.add(2 * self.rows * column_bytes(self.cols));
        let scales = digits.add(self.chunks() * self.rows * DIGIT_BYTES).cast::<[f32; 4]>();
        let place = chunk * self.rows + row;
        (digits.add(place * DIGIT_BYTES), scales.add(place))
    }

    /// What this lane multiplies unit `unit` of its tile with: up to `N` rows from `first` on. Of one row all columns of an operand are that row.
    #[inline(always)]
    pub(crate) fn inputs<const N: usize>(&self, first: u32, unit: u32) -> Inputs {
        let lane = warp::lane_id();
        let (row, column_bytes) = (if N == 1 { 0 } else { lane % 4 }, column_bytes(self.cols));
        let column = if W::HALVES {
            // Column `c` of an operand is row `c / 2`, or 4 rows on: so a lane gets the sums of rows `lane % 4` and `4 + lane % 4`.
            let of_operand = if N == 1 {
                0
            } else if N <= 4 {
                lane / 8
            } else {
                lane / 8 + lane / 4 % 2 * 4
            };
            (first + of_operand) * self.row_bytes() + 2 * unit * W::COLS
        } else {
            // High and low of one row are two columns; of four rows, eight.
            let of_operand = if N == 1 { lane / 4 % 2 } else { lane / 4 };
            first * self.row_bytes() + of_operand * column_bytes + unit * W::COLS
        };
        let (digits, scales) = self.places(unit / Self::UNITS, first + row);
        Inputs {
            columns: self.at.add(column + 16 * (lane % 4)).cast(),
            group: if W::HALVES { 8 * self.row_bytes() / 16 } else { 8 * column_bytes / 16 },
            scales,
            // Of sums, those of the unit.
            digits: digits.add(if W::SUMS { unit % Self::UNITS * 16 } else { 0 }).cast(),
        }
    }

    /// Stages `n` rows of `source` from `first_column` on, and zeros behind them; ends with a barrier. A warp loads up to `AHEAD` rows of chunks before it
    /// uses the first.
    ///
    /// # Safety
    /// `source` has these rows and columns, and the kernel before this one has ended. All threads of the block call it together; nobody reads
    /// what was staged before.
    #[inline(always)]
    pub(crate) unsafe fn fill<S: Source, const AHEAD: usize>(&self, source: &S, n: u32, first_column: u32) {
        let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
        let items = self.chunks() * self.rows;
        let column_of_lane = warp::lane_id() * WIDTH as u32;
        // SAFETY: the caller's promise; each row of a chunk has one warp until the barrier.
        unsafe {
            // Of many rows each block begins with others, so that not all of them want the same lines of L2 at once.
            let turn = if self.rows > 1 { thread::block_idx_x() % TURNS * items / TURNS } else { 0 };
            let place = |item: u32| {
                let item = if item + turn < items { item + turn } else { item + turn - items };
                divide(item, self.rows)
            };
            let mut first = warp_id;
            while first < items {
                let (mut values, mut weights) = ([[0.0f32; WIDTH]; AHEAD], [[0.0f32; WIDTH]; AHEAD]);
                repeat(AHEAD, |k| {
                    let item = first + k as u32 * num_warps;
                    let (chunk, i) = place(item);
                    let column = chunk * CHUNK + column_of_lane;
                    if item < items && i < n && column < self.cols {
                        values[k] = source.load(i, first_column + column);
                        if S::NORMED {
                            weights[k] = source.weight(first_column + column);
                        }
                    }
                });
                repeat(AHEAD, |k| {
                    let item = first + k as u32 * num_warps;
                    // The same for the whole warp.
                    if item < items {
                        let (chunk, i) = place(item);
                        let mut squares = 0.0f32;
                        if S::NORMED {
                            repeat(WIDTH, |j| {
                                squares = values[k][j].mul_add(values[k][j], squares);
                                values[k][j] *= weights[k][j];
                            });
                        }
                        self.stage(values[k], chunk, i);
                        if S::NORMED {
                            let squares = warp::reduce_sum(squares);
                            if warp::lane_id() == 0 {
                                self.places(chunk, i).1.cast::<f32>().set(1, squares);
                            }
                        }
                    }
                });
                first += AHEAD as u32 * num_warps;
            }
            thread::sync_threads();
        }
    }

    /// Stages this lane's values of a chunk of row `i`.
    ///
    /// # Safety
    /// All lanes of the warp call it together, nobody else has the row of the chunk.
    #[inline(always)]
    unsafe fn stage(&self, values: [f32; WIDTH], chunk: u32, i: u32) {
        let (digits, scale) = self.places(chunk, i);
        let some = chunk * CHUNK + warp::lane_id() * (WIDTH as u32) < self.cols;
        let row = self.at.add(i * self.row_bytes());
        // SAFETY: the caller's promise.
        unsafe {
            if W::HALVES {
                stage_halves_of_chunk(values, some, row.add(2 * chunk * CHUNK), scale.cast());
            } else {
                let columns = row.add(chunk * CHUNK);
                stage_bytes_of_chunk::<W>(
                    values,
                    some,
                    columns,
                    column_bytes(self.cols),
                    scale.cast(),
                    digits,
                );
            }
        }
    }
}
