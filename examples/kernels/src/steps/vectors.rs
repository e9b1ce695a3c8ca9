//! Sixteen bytes at a time.

#[device]
use cuda_std::memory;
use cuda_std::prelude::*;

/// `out[i] = a * x[i]` for `i < n`. A 1-d grid of at least `n / 4` threads, and of four.
///
/// # Safety
/// The grid is as above; `x` and `out` hold `n` values, are aligned to 16 bytes and do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn scale_vectors(n: u32, a: f32, x: *const f32, out: *mut f32) {
    let i = thread::index_1d();
    // SAFETY: vectors end at `n` or before; single values are below `n`.
    unsafe {
        if i < n / 4 {
            let at = 4 * i as usize;
            let four = memory::load::<[f32; 4]>(x.add(at).cast());
            memory::store(out.add(at).cast(), four.map(|value| a * value));
        }
        if i < n % 4 {
            let at = (n - n % 4 + i) as usize;
            *out.add(at) = a * *x.add(at);
        }
    }
}

/// [`scale_vectors`] that counts vectors as one counts blocks.
///
/// # Safety
/// As for [`scale_vectors`], where `n` is a multiple of 4.
#[kernel(max_threads = 256)]
pub unsafe fn scale_vectors_rounded_up(n: u32, a: f32, x: *const f32, out: *mut f32) {
    let i = thread::index_1d();
    if i < n.div_ceil(4) {
        // SAFETY: none: the last vector may end behind `n`.
        unsafe {
            let at = 4 * i as usize;
            let four = memory::load::<[f32; 4]>(x.add(at).cast());
            memory::store(out.add(at).cast(), four.map(|value| a * value));
        }
    }
}
