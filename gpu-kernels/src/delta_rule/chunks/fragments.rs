//! What lanes give `mma_m16n8k8_tf32` of matrices in shared memory.

use cuda_std::prelude::*;

#[device]
use crate::grid::repeat;

/// `a` of 16 rows from `first` on and columns `8 k ..` of a matrix in shared memory.
#[device]
#[inline(always)]
pub(super) unsafe fn rows_of(matrix: Shared<f32>, row: u32, first: u32, k: usize) -> [f32; 4] {
    let (r, c) = (warp::lane_id() / 4, warp::lane_id() % 4);
    let at = matrix.add((first + r) * row + 8 * k as u32 + c);
    // SAFETY: the caller's promise that the matrix has these rows.
    unsafe { [at.get(0), at.get(8 * row), at.get(4), at.get(8 * row + 4)] }
}

/// `b` of rows `8 k ..` and columns `8 n ..` of a matrix in shared memory.
#[device]
#[inline(always)]
pub(super) unsafe fn columns_of(matrix: Shared<f32>, row: u32, k: usize, n: usize) -> [f32; 2] {
    let (r, c) = (warp::lane_id() / 4, warp::lane_id() % 4);
    let at = matrix.add((8 * k as u32 + c) * row + 8 * n as u32 + r);
    // SAFETY: the caller's promise that the matrix has these rows.
    unsafe { [at.get(0), at.get(4 * row)] }
}

/// Half of the last place is added, so that what [`mma_m16n8k8_tf32`] cuts off rounds. What is not finite may become anything: there the factors of
/// the row are NaN, which [`prepare`] made of its norm.
#[device]
#[inline(always)]
pub(super) fn nearest(values: [f32; 4]) -> [f32; 4] {
    let mut rounded = values;
    repeat(4, |i| rounded[i] = f32::from_bits(values[i].to_bits().wrapping_add(0x1000)));
    rounded
}
