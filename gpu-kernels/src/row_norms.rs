//! Norms of the rows of a matrix: what a product with it can come to.
//!
//! An input `x / rms(x) * scale` of `cols` values has `Σ (x / rms(x))² <= cols`, so that by Cauchy and Schwarz no product with row `r` is
//! beyond `sqrt(cols) * out[r]`, whatever `x` is.

use cuda_std::prelude::*;

/// `out[r] = sqrt(Σ_c (weight[r, c] · scale[c])²)`
#[kernel_args]
pub struct RowNorms<E> {
    pub rows: u32,
    pub cols: u32,
    /// E `[rows, cols]`, or in blocks
    pub weight: *const E,
    /// f32 `[cols]`
    pub scale: *const f32,
    /// f32 `[rows]`; infinite where a sum of squares is beyond f32
    pub out: *mut f32,
}

/// Threads of a block.
pub const BLOCK_THREADS: u32 = 256;
/// Rows that a block computes: one a warp.
pub const WARPS_PER_BLOCK: u32 = BLOCK_THREADS / 32;

/// The row of this thread's warp.
#[device]
#[inline(always)]
pub(crate) fn row_of_warp() -> u32 {
    thread::block_idx_x() * WARPS_PER_BLOCK + thread::thread_idx_x() / 32
}

/// Any number of columns: neighbouring lanes read neighbouring values, one at a time. Sums in f32, each lane's in ascending order, then a
/// butterfly.
///
/// # Safety
/// Grid `[ceil(rows / WARPS_PER_BLOCK), 1, 1]`, block `[BLOCK_THREADS, 1, 1]`; arrays have the sizes of [`RowNorms`], `out` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "row_norms_{E}_plain", max_threads = 256)]
pub unsafe fn plain<E: Element>(a: RowNorms<E>) {
    let RowNorms { rows, cols, weight, scale, out } = a;
    let (row, lane) = (row_of_warp(), thread::thread_idx_x() % 32);
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    // SAFETY: `row < rows`, columns stay below `cols`.
    unsafe {
        let weight = weight.add(crate::grid::offset(row, cols, 0));
        let (mut sum, mut column) = (0.0f32, lane);
        while column < cols {
            let value = (*weight.add(column as usize)).to_f32() * *scale.add(column as usize);
            sum = value.fma(value, sum);
            column += 32;
        }
        let sum = warp::reduce_sum(sum);
        if lane == 0 {
            *out.add(row as usize) = sum.sqrt();
        }
    }
}

/// As [`plain`], 16 bytes of weights at a time: all of a model is read once while it is loaded. `cols` is a multiple of the values in them.
///
/// # Safety
/// As for [`plain`]; `weight` and `scale` are aligned to 16 bytes.
#[kernel(E = [f32, f16, bf16], name = "row_norms_{E}_words", max_threads = 256)]
pub unsafe fn words<E: Element>(a: RowNorms<E>) {
    let RowNorms { rows, cols, weight, scale, out } = a;
    let (row, lane) = (row_of_warp(), thread::thread_idx_x() % 32);
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    // SAFETY: `row < rows`; words are whole and aligned.
    unsafe {
        let weight = weight.add(crate::grid::offset(row, cols, 0));
        let (mut sum, mut column) = (0.0f32, lane as usize * E::LANES);
        while column < cols as usize {
            let values = E::load(weight.add(column));
            crate::grid::repeat(E::LANES / 4, |part| {
                let scales = <f32 as Element>::load(scale.add(column + 4 * part));
                crate::grid::repeat(4, |i| {
                    let value = values.as_ref()[4 * part + i] * scales[i];
                    sum = value.fma(value, sum);
                });
            });
            column += 32 * E::LANES;
        }
        let sum = warp::reduce_sum(sum);
        if lane == 0 {
            *out.add(row as usize) = sum.sqrt();
        }
    }
}
