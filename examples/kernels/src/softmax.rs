//! Softmax of rows: two reductions and a pass that writes.

use cuda_std::prelude::*;

#[device]
use crate::sum::{WARPS, of_block};

/// Threads of a block.
pub const SOFTMAX_BLOCK: u32 = 256;

/// `out[row][i] = exp(x[row][i] - max) / sum`, f32 `[rows, cols]`, row-major. Grid `[rows, 1, 1]`, blocks of [`SOFTMAX_BLOCK`]
/// threads: a block a row, read three times, of which the caches answer two. No `exp` is of more than 0, so none overflows.
///
/// # Safety
/// Grid and block are as above; `x` and `out` hold `rows * cols` values and do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn softmax(cols: u32, x: *const f32, out: *mut f32) {
    let (of_warps, of_warps_again) = (shared_array![f32; WARPS], shared_array![f32; WARPS]);
    let start = thread::block_idx_x() as usize * cols as usize;
    let (first, step) = (thread::thread_idx_x(), thread::block_dim_x());
    // SAFETY: the caller's promise: a block a row, columns stay below `cols`; every thread comes to both reductions.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let mut max = f32::NEG_INFINITY;
        let mut i = first;
        while i < cols {
            max = max.max(*x.add(i as usize));
            i += step;
        }
        let max = of_block(max, f32::NEG_INFINITY, |value| warp::reduce_max(value), of_warps, true);
        let mut sum = 0.0;
        let mut i = first;
        while i < cols {
            sum += (*x.add(i as usize) - max).exp();
            i += step;
        }
        let sum = of_block(sum, 0.0, |value| warp::reduce_sum(value), of_warps_again, true);
        let mut i = first;
        while i < cols {
            *out.add(i as usize) = (*x.add(i as usize) - max).exp() / sum;
            i += step;
        }
    }
}

/// What [`softmax`] must write for inputs from -4 to 4: the argument of `exp`, of at most 8, has a rounding, which counts 8 times,
/// and `exp` is off by two units in the last place, which are four, above and below the line; then there are the sum's, of a
/// thread's columns and ten more, and the division's.
#[cfg(not(target_arch = "nvptx64"))]
pub fn softmax_reference(x: &[f32], cols: usize) -> std::vec::Vec<crate::Expected> {
    let roundings = 2 * (8 + 4) + cols.div_ceil(SOFTMAX_BLOCK as usize) + 10 + 1;
    let row = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |x: &f32| (f64::from(*x) - f64::from(max)).exp();
        let sum: f64 = row.iter().map(exp).sum();
        row.iter().map(|x| crate::Expected::rounded(exp(x) / sum, roundings)).collect::<std::vec::Vec<_>>()
    };
    x.chunks(cols).flat_map(row).collect()
}
