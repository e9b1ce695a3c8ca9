//! Products of few rows with matrices in blocks as files have them, which are decoded as they are read.

use super::block_formats;
use cuda_std::prelude::*;

#[device]
use super::{eight::Eights, *};
#[device]
use crate::fused::{launch_dependents, wait_for_dependencies};
#[device]
use crate::{units::HALVES_FACTOR, vector::load8};
#[device]
use cuda_std::{memory, mma::MmaElement};

/// Threads of a block of [`inline`].
pub const MATMUL_THREADS: u32 = 256;
/// Weight rows that a block of [`inline`] computes: one a warp.
pub const WARPS_PER_BLOCK: u32 = MATMUL_THREADS / 32;
/// Bytes of a line of L2.
#[device]
const LINE: usize = 128;
/// Rows of x that share one read of the weights in [`inline`].
pub const ROWS_PER_WARP: u32 = 4;

/// `out[i, o] = scale · Σ_c x[i, c] · weight[o, c]`, added to what is there if `accumulate` is not 0.
#[kernel_args]
pub struct Matmul<X> {
    pub n: u32,
    pub rows: u32,
    pub cols: u32,
    /// From one row of `out` to the next, in values.
    pub out_stride: u32,
    pub accumulate: u32,
    pub scale: f32,
    /// X `[n, cols]`
    pub x: *const X,
    /// `[rows, cols]` in blocks
    pub weight: *const u8,
    /// f32 `[n, rows]`, in rows of `out_stride` values
    pub out: *mut f32,
}

/// Products and sums in f32, in an order that depends on `cols` alone: each lane adds its columns in ascending order, then the
/// lanes are added by a butterfly. So a row has the same bits alone and in a batch.
///
/// Grid `[ceil(rows / WARPS_PER_BLOCK), ceil(n / ROWS_PER_WARP), 1]`, block `[MATMUL_THREADS, 1, 1]`: a warp for each row of
/// weights and [`ROWS_PER_WARP`] rows of x.
///
/// # Safety
/// Grid and block are as above, `n` is not 0, arrays have the lengths of [`Matmul`], rows of weights are whole blocks, `out`
/// overlaps nothing.
#[kernel(W = [block_formats!], X = [f32, f16, bf16], name = "matmul_blocks_{W}_{X}_inline", max_threads = 256)]
pub unsafe fn inline<W: Blocks, X: Element>(a: Matmul<X>) {
    const TILE: usize = ROWS_PER_WARP as usize;
    let Matmul { n, rows, cols, out_stride, accumulate, scale, x, weight, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let lane = thread::thread_idx_x() % 32;
    let row = thread::block_idx_x() * WARPS_PER_BLOCK + thread::thread_idx_x() / 32;
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    let first = thread::block_idx_y() * ROWS_PER_WARP;
    // SAFETY: `row < rows`, columns stay below `cols`, rows of x below `n`.
    unsafe {
        let weight = weight.add(row as usize * W::row_bytes(cols));
        // Rows beyond the last are computed from the last and not stored: no branch inside the loop.
        let mut x_rows = [x; TILE];
        repeat(TILE, |i| x_rows[i] = x.add(offset((first + i as u32).min(n - 1), cols, 0)));
        let mut sums = [0.0f32; TILE];
        let mut column = lane;
        while column < cols {
            let w = W::in_row(weight, column);
            repeat(TILE, |i| {
                sums[i] = x_rows[i].add(column as usize).read().to_f32().fma(w, sums[i]);
            });
            column += 32;
        }
        repeat(TILE, |i| {
            let sum = warp::reduce_sum(sums[i]) * scale;
            let index = first + i as u32;
            if lane == 0 && index < n {
                let out = out.add(offset(index, out_stride, row));
                *out = if accumulate != 0 { *out + sum } else { sum };
            }
        });
    }
}

/// [`inline`] with eight neighbouring columns a lane, of which the compiler decodes once what they share; each warp asks for all of its rows of weights before
/// it begins. Sums as there: of a lane, then of the lanes. Of x in f16 there is [`mma`].
///
/// Grid `[ceil(rows / (R * WARPS_PER_BLOCK)), ceil(n / N), 1]`, block `[MATMUL_THREADS, 1, 1]`: a warp for `R` rows of weights and up to `N` rows of x.
///
/// # Safety
/// As [`inline`]; `x` is aligned to 16 bytes.
#[kernel(
    W = [block_formats!],
    X = [f32, bf16],
    (N, R) = [one: (1, 1), eight: (8, 2)],
    name = "matmul_blocks_{W}_{X}_eights_{N}",
    max_threads = 256,
)]
pub unsafe fn eights<W: Blocks, X: Element, const N: usize, const R: usize>(a: Matmul<X>) {
    let Matmul { n, rows, cols, out_stride, accumulate, scale, x, weight, out } = a;
    launch_dependents();
    let lane = warp::lane_id();
    let first_row = (thread::block_idx_x() * WARPS_PER_BLOCK + warp::warp_id()) * R as u32;
    if first_row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    let first = thread::block_idx_y() * N as u32;
    let row_bytes = W::row_bytes(cols);
    // SAFETY: rows stay below `rows`, columns below `cols`, rows of x below `n`.
    unsafe {
        // What is beyond the last row is computed from the last and not stored: no branch inside the loop.
        let (mut weights, mut x_rows) = ([weight; R], [x; N]);
        repeat(R, |r| weights[r] = weight.add((first_row + r as u32).min(rows - 1) as usize * row_bytes));
        repeat(N, |i| x_rows[i] = x.add(offset((first + i as u32).min(n - 1), cols, 0)));
        // Rows follow each other; weights do not wait for the kernel before this one.
        prefetch(weights[0], weights[R - 1].add(row_bytes), [lane, 32]);
        wait_for_dependencies();
        let mut sums = [[0.0f32; R]; N];
        let mut eighth = lane;
        while eighth < cols / 8 {
            let mut values = [[0.0f32; 8]; R];
            repeat(R, |r| values[r] = W::eight_in_row(weights[r], eighth));
            repeat(N, |i| {
                let x = load8(x_rows[i].add(8 * eighth as usize));
                repeat(R, |r| repeat(8, |k| sums[i][r] = x[k].mul_add(values[r][k], sums[i][r])));
            });
            eighth += 32;
        }
        repeat(N, |i| {
            repeat(R, |r| {
                let sum = warp::reduce_sum(sums[i][r]) * scale;
                let (index, row) = (first + i as u32, first_row + r as u32);
                if lane == 0 && index < n && row < rows {
                    let out = out.add(offset(index, out_stride, row));
                    *out = if accumulate != 0 { *out + sum } else { sum };
                }
            });
        });
    }
}

/// What a lane adds up of the product of a row of weights with a row of x: every 32nd column, in ascending order.
///
/// # Safety
/// Both have `cols` columns.
#[device]
#[inline(always)]
pub(crate) unsafe fn dot<W: Blocks, X: Element>(weight: *const u8, x: *const X, cols: u32) -> f32 {
    let (mut sum, mut column) = (0.0f32, warp::lane_id());
    while column < cols {
        // SAFETY: the caller's promise.
        unsafe { sum = x.add(column as usize).read().to_f32().fma(W::in_row(weight, column), sum) };
        column += 32;
    }
    sum
}

/// The same with eight neighbouring columns at a time.
///
/// # Safety
/// Both have `cols` columns, a multiple of 8; `x` is aligned to 16 bytes.
#[device]
#[inline(always)]
pub(crate) unsafe fn dot_eights<W: Blocks, X: Element>(weight: *const u8, x: *const X, cols: u32) -> f32 {
    let (mut sum, mut eighth) = (0.0f32, warp::lane_id());
    while eighth < cols / 8 {
        // SAFETY: the caller's promise.
        let (values, x) = unsafe { (W::eight_in_row(weight, eighth), load8(x.add(8 * eighth as usize))) };
        repeat(8, |k| sum = x[k].fma(values[k], sum));
        eighth += 32;
    }
    sum
}

/// Asks for what lies from `from` to `to`: one of several threads, as the pair says.
///
/// # Safety
/// It is memory of one allocation.
#[device]
#[inline(always)]
unsafe fn prefetch(from: *const u8, to: *const u8, [thread, threads]: [u32; 2]) {
    let mut line = from.wrapping_add(LINE * thread as usize);
    while line < to {
        // SAFETY: the caller's promise.
        unsafe { memory::prefetch_l2(line) };
        line = line.wrapping_add(LINE * threads as usize);
    }
}

/// Rows of weights and of x of a block of [`mma`].
pub const MMA_ROWS: [u32; 2] = [16, 8];
/// Columns of two first operands of it, of which a lane has eight of two rows.
#[device]
const STEP: u32 = 32;

/// Up to eight rows of x on tensor cores, as often as there are: a block has 16 rows of weights, of which its warps take columns in turns. Scales are rounded to f16, then
/// weights, which are sixteen times what they stand for, as in [`units`](crate::units::HALVES_FACTOR). A row has the same bits alone and in a batch.
///
/// Of 32 columns a lane decodes eight of two rows, which are its part of two first operands: as which columns of these they count does not matter, as
/// long as x has the same order. So 16 bytes of x as they lie are its part of the second operands.
///
/// Grid `[ceil(rows / 16), ceil(n / 8), 1]`, block `[MATMUL_THREADS, 1, 1]`.
///
/// # Safety
/// As [`inline`]; `x` is aligned to 16 bytes, `weight` to eight.
#[kernel(W = [block_formats!], name = "matmul_blocks_{W}_f16_mma", max_threads = 256)]
pub unsafe fn mma<W: Eights>(a: Matmul<f16>) {
    let Matmul { n, rows, cols, out_stride, accumulate, scale, x, weight, out } = a;
    // What each warp has of each product: `[warp][row of weights][row of x]`.
    let parts = shared_array![f32; 1024];
    launch_dependents();
    let [block_rows, block_n] = MMA_ROWS;
    let (warp, lane, thread) = (warp::warp_id(), warp::lane_id(), thread::thread_idx_x());
    let (row, quarter) = (lane / 4, lane % 4);
    let (first_row, first) = (thread::block_idx_x() * block_rows, thread::block_idx_y() * block_n);
    let row_bytes = W::row_bytes(cols);
    // SAFETY: rows stay below `rows`, columns below `cols`, rows of x below `n`.
    unsafe {
        let rows_here = block_rows.min(rows - first_row);
        let begin = weight.add(first_row as usize * row_bytes);
        // Weights do not wait for the kernel before this one.
        prefetch(begin, begin.add(rows_here as usize * row_bytes), [thread, MATMUL_THREADS]);
        // What is beyond the last row is computed from the last and not stored: no branch inside the loop.
        let weights = [row, row + 8].map(|r| begin.add(r.min(rows_here - 1) as usize * row_bytes));
        let x = x.add(offset((first + row).min(n - 1), cols, 0));
        wait_for_dependencies();
        let mut sums = [0.0f32; 4];
        // What a lane has of 32 columns: of the weights, and of x.
        let operands = |column: u32| {
            let eighth = column / 8 + quarter;
            let weights = weights.map(|row| W::at(row, eighth).halves(HALVES_FACTOR));
            (weights, memory::load(x.add(8 * eighth as usize).cast::<[u32; 4]>()))
        };
        let multiply = |([low, high], b): ([[u32; 4]; 2], [u32; 4]), sums: &mut [f32; 4]| {
            repeat(2, |k| {
                let a = [low[2 * k], high[2 * k], low[2 * k + 1], high[2 * k + 1]];
                *sums = f16::mma_m16n8k16(a, [b[2 * k], b[2 * k + 1]], *sums);
            });
        };
        // Two at once, so that loads do not wait for each other; then one, where a row has it.
        let warps = MATMUL_THREADS / 32;
        let pairs = cols / (2 * STEP);
        let mut pair = warp;
        while pair < pairs {
            let [first, second] = [0, STEP].map(|next| operands(2 * STEP * pair + next));
            multiply(first, &mut sums);
            multiply(second, &mut sums);
            pair += warps;
        }
        if warp == pairs % warps && 2 * STEP * pairs < cols {
            multiply(operands(2 * STEP * pairs), &mut sums);
        }
        repeat(4, |k| {
            let (r, i) = (row + 8 * (k as u32 / 2), 2 * quarter + k as u32 % 2);
            parts.set((warp * block_rows + r) * block_n + i, sums[k]);
        });
        thread::sync_threads();
        let (r, i) = (thread / block_n, thread % block_n);
        if r < rows_here && first + i < n {
            let mut sum = 0.0;
            repeat(MATMUL_THREADS as usize / 32, |warp| {
                sum += parts.get((warp as u32 * block_rows + r) * block_n + i);
            });
            let (sum, out) =
                (sum * (scale / HALVES_FACTOR), out.add(offset(first + i, out_stride, first_row + r)));
            *out = if accumulate != 0 { *out + sum } else { sum };
        }
    }
}
