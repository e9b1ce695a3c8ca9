//! Drawing a token: the end of the plain chain.

use cuda_std::prelude::*;

#[device]
use super::{MASS_ONE, WARPS, order_key, philox, warp_inclusive_sum, warp_max};
use super::{SAMPLER_THREADS, SamplerRow};

/// Largest value over the block; every thread gets it. All threads of the block must call it.
#[device]
unsafe fn block_max(value: f32) -> f32 {
    unsafe {
        let partial = shared_array![f32; 32];
        let value = warp::reduce_max(value);
        thread::sync_threads();
        if warp::lane_id() == 0 {
            partial.set(thread::thread_idx_x() / 32, value);
        }
        thread::sync_threads();
        let lane = warp::lane_id();
        warp::reduce_max(if lane < WARPS { partial.get(lane) } else { f32::NEG_INFINITY })
    }
}

/// Largest logit of a row; NaN is skipped.
#[device]
pub(super) unsafe fn row_max(logits: *const f32, vocab_size: u32) -> f32 {
    unsafe {
        let mut max = f32::NEG_INFINITY;
        let mut i = thread::thread_idx_x();
        while i < vocab_size {
            let value = *logits.add(i as usize);
            if value > max {
                max = value;
            }
            i += SAMPLER_THREADS;
        }
        block_max(max)
    }
}

/// `probability = exp((logit - max) / temperature) / sum`, row by row, in place; -inf and NaN become 0.
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`; f32 accumulation in a fixed order.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]. Greedy rows are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn softmax_f32_plain(vocab_size: u32, rows: *const SamplerRow, logits: *mut f32) {
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
        let sum = warp::reduce_sum(sum);
        if warp::lane_id() == 0 {
            partial.set(thread / 32, sum);
        }
        thread::sync_threads();
        let lane = warp::lane_id();
        let total = warp::reduce_sum(if lane < WARPS { partial.get(lane) } else { 0.0 });
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
/// - `rows`: `[num_rows]`; `probabilities`: f32 `[num_rows, vocab_size]`, summing to about 1; `out`: `[num_rows]`.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]; each warp sums one contiguous part of the row, then the warp in
///   whose part the number falls finds the token. Greedy rows are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn categorical_f32_plain(
    vocab_size: u32,
    rows: *const SamplerRow,
    probabilities: *const f32,
    out: *mut u32,
) {
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let probabilities = probabilities.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() {
            return;
        }
        let warp = thread::thread_idx_x() / 32;
        let lane = warp::lane_id();
        let part = vocab_size.div_ceil(WARPS);
        let start = warp * part;
        let end = if start + part < vocab_size { start + part } else { vocab_size };

        let mut own = 0u64;
        let mut i = start + lane;
        while i < end {
            own += (*probabilities.add(i as usize) * MASS_ONE) as u64;
            i += 32;
        }
        let sums = shared_array![u64; 32];
        let sum = warp_inclusive_sum(own);
        if lane == 31 {
            sums.set(warp, sum);
        }
        thread::sync_threads();

        let mut before = 0;
        let mut total = 0;
        let mut w = 0;
        while w < WARPS {
            if w == warp {
                before = total;
            }
            total += sums.get(w);
            w += 1;
        }
        let number = philox(row.position, row.index, row.seed_low, row.seed_high) >> 8;
        let target = (u64::from(number) * total) >> 24;
        if target < before || target >= before + sums.get(warp) {
            return;
        }
        let mut base = start;
        while base < end {
            let i = base + lane;
            let weight = if i < end { (*probabilities.add(i as usize) * MASS_ONE) as u64 } else { 0 };
            let through = before + warp_inclusive_sum(weight);
            let reached = warp::warp_vote_ballot(warp::FULL_MASK, through > target);
            if reached != 0 {
                if lane == 0 {
                    *out.add(thread::block_idx_x() as usize) = base + reached.trailing_zeros();
                }
                return;
            }
            before = warp::shuffle_idx(through, 31);
            base += 32;
        }
    }
}

/// The id of the largest logit of each greedy row, the smallest id among equals; NaN counts as the smallest value.
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`; `out`: `[num_rows]`.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]. Rows that are not greedy are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn argmax_f32_plain(vocab_size: u32, rows: *const SamplerRow, logits: *const f32, out: *mut u32) {
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if row.temperature > 0.0 {
            return;
        }
        let thread = thread::thread_idx_x();
        // The larger logit wins, then the smaller id: one comparison of 64-bit integers.
        let mut best = 0u64;
        let mut i = thread;
        while i < vocab_size {
            let candidate = u64::from(order_key(*logits.add(i as usize))) << 32 | u64::from(!i);
            if candidate > best {
                best = candidate;
            }
            i += SAMPLER_THREADS;
        }
        let bests = shared_array![u64; 32];
        best = warp_max(best);
        if warp::lane_id() == 0 {
            bests.set(thread / 32, best);
        }
        thread::sync_threads();
        let lane = warp::lane_id();
        best = warp_max(if lane < WARPS { bests.get(lane) } else { 0 });
        if thread == 0 {
            *out.add(thread::block_idx_x() as usize) = !(best as u32);
        }
    }
}
