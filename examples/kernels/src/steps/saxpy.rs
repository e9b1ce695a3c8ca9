//! A thread for each value.

use cuda_std::prelude::*;

/// `y[i] = a * x[i] + y[i]` for `i < n`. A 1-d grid of at least `n` threads.
///
/// # Safety
/// `x` and `y` hold `n` values and do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn saxpy_threads(n: u32, a: f32, x: *const f32, y: *mut f32) {
    let i = thread::index_1d() as usize;
    if i < n as usize {
        // SAFETY: below `n`, and no two threads have the same `i`.
        unsafe { *y.add(i) = a * *x.add(i) + *y.add(i) };
    }
}

/// [`saxpy_threads`] that forgets that the last block has threads behind the end.
///
/// # Safety
/// As for [`saxpy_threads`], with exactly `n` threads.
#[kernel(max_threads = 256)]
pub unsafe fn saxpy_without_bound(a: f32, x: *const f32, y: *mut f32) {
    let i = thread::index_1d() as usize;
    // SAFETY: none, where the grid has more threads than there are values.
    unsafe { *y.add(i) = a * *x.add(i) + *y.add(i) };
}
