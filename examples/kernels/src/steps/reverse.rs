//! Shared memory and the barrier.

use cuda_std::prelude::*;

/// Threads of a block, and the values that it turns round.
pub const REVERSE_BLOCK: u32 = 256;

/// Turns round each 256 values: `out[first + t] = x[first + 255 - t]`. Any 1-d grid of blocks of 256.
///
/// # Safety
/// Blocks are as above; `x` and `out` hold a value for each thread and do not overlap.
#[kernel(max_threads = 256)]
pub unsafe fn reverse(x: *const f32, out: *mut f32) {
    let tile = shared_array![f32; REVERSE_BLOCK as usize];
    let (i, t) = (thread::index_1d() as usize, thread::thread_idx_x());
    // SAFETY: a place for each thread; the tile is written when the barrier is over.
    unsafe {
        tile.set(t, *x.add(i));
        thread::sync_threads();
        *out.add(i) = tile.get(255 - t);
    }
}

/// [`reverse`] in a hurry.
///
/// # Safety
/// As for [`reverse`].
#[kernel(max_threads = 256)]
pub unsafe fn reverse_without_barrier(x: *const f32, out: *mut f32) {
    let tile = shared_array![f32; REVERSE_BLOCK as usize];
    let (i, t) = (thread::index_1d() as usize, thread::thread_idx_x());
    // SAFETY: none: the value may not be there yet.
    unsafe {
        tile.set(t, *x.add(i));
        *out.add(i) = tile.get(255 - t);
    }
}

/// [`reverse`] of `n` values in blocks of 256, whose last one fills a part of its tile and reads all of it.
///
/// # Safety
/// As for [`reverse`], but `x` holds `n` values.
#[kernel(max_threads = 256)]
pub unsafe fn reverse_unwritten(n: u32, x: *const f32, out: *mut f32) {
    let tile = shared_array![f32; REVERSE_BLOCK as usize];
    let (i, t) = (thread::index_1d() as usize, thread::thread_idx_x());
    // SAFETY: none: behind `n` the tile holds whatever the block before left there.
    unsafe {
        if i < n as usize {
            tile.set(t, *x.add(i));
        }
        thread::sync_threads();
        *out.add(i) = tile.get(255 - t);
    }
}

/// [`reverse`] that counts from 1.
///
/// # Safety
/// As for [`reverse`].
#[kernel(max_threads = 256)]
pub unsafe fn reverse_off_by_one(x: *const f32, out: *mut f32) {
    let tile = shared_array![f32; REVERSE_BLOCK as usize];
    let (i, t) = (thread::index_1d() as usize, thread::thread_idx_x());
    // SAFETY: none: thread 0 reads one value behind the tile.
    unsafe {
        tile.set(t, *x.add(i));
        thread::sync_threads();
        *out.add(i) = tile.get(256 - t);
    }
}
