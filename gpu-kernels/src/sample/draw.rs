//! Drawing a token: the end of the plain chain.

use cuda_std::prelude::*;

use super::{Chain, SAMPLER_THREADS};
#[device]
use super::{MASS_ONE, WARPS, philox, share};
#[device]
use crate::reduce::{self, Max, Sum, block_scan, warp_inclusive_sum};

/// Largest logit of a row; infinite if there is a NaN, which leaves no mass to draw from.
#[device]
pub(super) unsafe fn row_max(logits: *const f32, vocab_size: u32) -> f32 {
    // SAFETY: ids are below `vocab_size`; the block's threads call it together.
    unsafe {
        let mut max = f32::NEG_INFINITY;
        let mut i = thread::thread_idx_x();
        while i < vocab_size {
            let value = *logits.add(i as usize);
            if value.is_nan() {
                max = f32::INFINITY;
            } else if value > max {
                max = value;
            }
            i += SAMPLER_THREADS;
        }
        let of_warps = shared_array![f32; 32];
        thread::sync_threads();
        reduce::block::<Max, f32>(max, of_warps, WARPS)
    }
}

/// `probability = exp((logit - max) / temperature) / sum`, row by row, in place; -inf becomes 0. Where a logit is NaN or infinite no
/// probability is a number.
///
/// f32 accumulation in a fixed order. Greedy rows are left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "softmax_{E}_plain", max_threads = 1024)]
pub unsafe fn softmax(Chain { vocab_size, rows, logits, .. }: Chain) {
    // SAFETY: ids are below `vocab_size`; a block works on its own row, and each thread on its own logits.
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() {
            return;
        }
        let max = row_max(logits, vocab_size);
        let thread = thread::thread_idx_x();
        let mut sum = 0.0;
        let mut i = thread;
        while i < vocab_size {
            let logit = *logits.add(i as usize);
            let weight =
                if logit > f32::NEG_INFINITY { ((logit - max) / row.temperature).exp() } else { 0.0 };
            *logits.add(i as usize) = weight;
            sum += weight;
            i += SAMPLER_THREADS;
        }
        let partial = shared_array![f32; 32];
        let total = reduce::block::<Sum, f32>(sum, partial, WARPS);
        i = thread;
        while i < vocab_size {
            *logits.add(i as usize) /= total;
            i += SAMPLER_THREADS;
        }
    }
}

/// Draws a token per row: the ids in order share `[0, 1)` by their probabilities, and the generator's number, 24 bits of
/// the first word of Philox4x32-10 keyed by the seed and counted by `(position, index, 0, 0)`, falls into one share.
///
/// Each warp sums one contiguous part of the row, then the warp in whose part the number falls finds the token. Greedy rows are
/// left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says; a row's `logits` are probabilities that sum to about 1.
#[kernel(E = [f32], name = "categorical_{E}_plain", max_threads = 1024)]
pub unsafe fn categorical(Chain { vocab_size, rows, logits, out, .. }: Chain) {
    // SAFETY: ids are below `vocab_size`; a block reads its own row and writes its own place of `out`.
    unsafe {
        let probabilities = logits.cast_const();
        let row = *rows.add(thread::block_idx_x() as usize);
        let probabilities = probabilities.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() {
            return;
        }
        let number = philox(row.position, row.index, row.seed_low, row.seed_high) >> 8;
        let weight = |i: u32| (*probabilities.add(i as usize) * MASS_ONE) as u64;
        draw_by_weight(vocab_size, number, weight, out.add(thread::block_idx_x() as usize));
    }
}

/// Writes the id in whose share of the sum of all weights `number` of 2^24 falls, if the sum is not 0: shares follow one another in the
/// order of ids. All threads of the block, at most 1024, must call it.
#[device]
pub(super) unsafe fn draw_by_weight(
    vocab_size: u32,
    number: u32,
    weight: impl Fn(u32) -> u64,
    out: *mut u32,
) {
    // SAFETY: the caller's: all threads of the block are here, and `out` is theirs to write.
    unsafe {
        let (warp_id, lane) = (warp::warp_id(), warp::lane_id());
        let num_warps = thread::block_dim_x() / 32;
        let part = vocab_size.div_ceil(num_warps);
        let start = warp_id * part;
        let end = if start + part < vocab_size { start + part } else { vocab_size };

        let mut own = 0u64;
        let mut i = start + lane;
        while i < end {
            own += weight(i);
            i += 32;
        }
        let sums = shared_array![u64; 32];
        let (before, total) = block_scan(own, sums, num_warps);
        // Whether it falls into this warp's part.
        let through_warp = warp::shuffle_idx(before + own, 31);
        let mut before = warp::shuffle_idx(before, 0);
        let target = share(total, number);
        if target < before || target >= through_warp {
            return;
        }
        let mut base = start;
        while base < end {
            let i = base + lane;
            let through = before + warp_inclusive_sum(if i < end { weight(i) } else { 0 });
            let reached = warp::warp_vote_ballot(warp::FULL_MASK, through > target);
            if reached != 0 {
                if lane == 0 {
                    *out = base + reached.trailing_zeros();
                }
                return;
            }
            before = warp::shuffle_idx(through, 31);
            base += 32;
        }
    }
}
