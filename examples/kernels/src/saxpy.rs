//! `y = a x + y`: where everybody begins.

use cuda_std::prelude::*;

/// Threads of a block.
pub const SAXPY_BLOCK: u32 = 256;

/// `y[i] = a * x[i] + y[i]` for `i < n`. Any 1-d grid: a thread goes on a grid further until there is nothing left.
///
/// # Safety
/// `x` and `y` hold `n` values and do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn saxpy(n: u32, a: f32, x: *const f32, y: *mut f32) {
    let mut i = thread::index_1d();
    while i < n {
        // SAFETY: below `n`, and no two threads have the same `i`.
        unsafe {
            let y = y.add(i as usize);
            *y = a.mul_add(*x.add(i as usize), *y);
        }
        i += thread::grid_dim_x() * thread::block_dim_x();
    }
}

/// What [`saxpy`] must leave in `y`, rounded once.
#[cfg(not(target_arch = "nvptx64"))]
pub fn saxpy_reference(a: f32, x: &[f32], y: &[f32]) -> std::vec::Vec<crate::Expected> {
    let value = |(x, y): (&f32, &f32)| crate::Expected::sum([f64::from(a) * f64::from(*x), f64::from(*y)], 1);
    core::iter::zip(x, y).map(value).collect()
}
