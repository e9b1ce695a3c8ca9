//! Inputs that are normed, in two parts each.

use cuda_std::prelude::*;

use super::COLS_PER_WARP;
#[device]
use super::{MAX_BATCH, Stream, WORDS_PER_CHUNK, lane_of_row, row_of_lane};
#[device]
use crate::{grid::repeat, vector::Group};
#[device]
use cuda_std::{
    memory,
    warp::{FULL_MASK, WarpReductionOp, sync_warp, warp_reduce},
};

/// Bytes from one staged column of inputs to the next: those of a warp's columns, and 64 so that the two halves of a value
/// lie in different banks.
const COLUMN_BYTES: u32 = COLS_PER_WARP * 2 + 64;

/// Bytes of dynamic shared memory behind the stream for a block of `warps` warps that norms `rows` rows in `rounds` rounds: the
/// staged inputs, what they were divided by, the sums of each warp for a [`batch`](super::batch) of tiles, and its sums of squares.
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
                    sum *= crate::norm::scale(squares, self.cols, eps);
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
