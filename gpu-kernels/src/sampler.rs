//! The sampler: one block per row of logits, one kernel per step of the chain.
//!
//! `mask -> penalties -> top_k -> top_p -> min_p -> softmax -> categorical`, or `mask -> penalties -> argmax` for a greedy row. A filter
//! keeps a logit as it is or replaces it by -inf; a row whose parameter switches a filter off is left alone, so rows of
//! different requests share a launch. The reference is `engine/cpu/sampler.rs`.
//!
//! Nothing is sorted: top-k and top-p find the smallest logit that is kept by radix selection over an order-preserving
//! integer image of the logits, eight bits a pass (Alabi et al., "Fast k-selection algorithms for graphics processing
//! units", 2012, `radixSelect`). Probability mass is summed in 64-bit fixed point, where addition is associative: the
//! result depends neither on the schedule nor on the batch.

#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};
use cuda_std::prelude::*;

/// Threads of a block of every kernel in this file.
pub const SAMPLER_THREADS: u32 = 1024;

/// What one row asks of the sampler; the engine writes one per row of logits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplerRow {
    /// Divides the logits; 0 or less: the row is greedy.
    pub temperature: f32,
    /// Logits to keep; 0 keeps all.
    pub top_k: u32,
    /// Probability to keep; 1 or more keeps all.
    pub top_p: f32,
    /// Natural logarithm of min-p: logits below the largest one plus this are dropped; -inf keeps all.
    pub min_p_ln: f32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// First element of the row in the arrays of penalised tokens.
    pub counts_start: u32,
    /// One past its last element.
    pub counts_end: u32,
    /// Low half of the seed.
    pub seed_low: u32,
    /// High half of the seed.
    pub seed_high: u32,
    /// Position of the token to be drawn.
    pub position: u32,
    /// Which of several answers to one prompt this is.
    pub index: u32,
    /// First word of the row's mask in the array of masks; [`NO_MASK`]: every token may be drawn.
    pub mask_start: u32,
}

/// In place of a row's mask.
pub const NO_MASK: u32 = u32::MAX;

#[device]
const WARPS: u32 = SAMPLER_THREADS / 32;

/// Fixed-point unit of a probability mass: weights up to 1 are counted in 2^-36, and 2^20 of them fit 64 bits with
/// room for the generator's 24.
#[device]
const MASS_ONE: f32 = 68_719_476_736.0;

/// Image of a float whose unsigned order is the float's order; NaN becomes the smallest.
#[device]
pub fn order_key(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        0
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 0x8000_0000
    }
}

/// Weight of a logit relative to the row's largest, in fixed point.
#[device]
fn mass(logit: f32, max: f32) -> u64 {
    if logit > f32::NEG_INFINITY { (((logit - max).exp()) * MASS_ONE) as u64 } else { 0 }
}

/// Adds to a place that other threads of the block add to as well.
#[device]
unsafe fn add_shared(array: Shared<u64>, i: u32, value: u64) {
    unsafe { AtomicAdd::add(array.add(i).as_mut_ptr(), value, Ordering::Relaxed, Scope::Block) }
}

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
unsafe fn row_max(logits: *const f32, vocab_size: u32) -> f32 {
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

/// Where a descending walk over the logits of a row reaches a target.
#[device]
#[derive(Clone, Copy)]
struct Selection {
    /// Image of the logit at which it is reached.
    key: u32,
    /// Weight of all logits above it.
    above: u64,
    /// Weight of all logits equal to it.
    at: u64,
}

/// Walks the logits of a row in descending order until the sum of their weights reaches `target`, which must be at
/// least 1 and at most the sum over the row. All threads of the block must call it; all get the answer.
#[device]
unsafe fn radix_select(
    logits: *const f32,
    vocab_size: u32,
    target: u64,
    weight: impl Fn(f32) -> u64,
) -> Selection {
    unsafe {
        let histogram = shared_array![u64; 256];
        let found = shared_array![u64; 3];
        let thread = thread::thread_idx_x();
        let mut selection = Selection { key: 0, above: 0, at: 0 };
        let mut shift = 32;
        while shift > 0 {
            shift -= 8;
            let settled = if shift == 24 { 0 } else { u32::MAX << (shift + 8) };
            thread::sync_threads();
            if thread < 256 {
                histogram.set(thread, 0);
            }
            thread::sync_threads();
            let mut i = thread;
            while i < vocab_size {
                let logit = *logits.add(i as usize);
                let key = order_key(logit);
                if key & settled == selection.key {
                    add_shared(histogram, (key >> shift) & 255, weight(logit));
                }
                i += SAMPLER_THREADS;
            }
            thread::sync_threads();
            if thread < 32 {
                // Lane 0 owns the eight highest bins, lane 1 the next eight, and so on.
                let mut own = 0;
                let mut bin = 0;
                while bin < 8 {
                    own += histogram.get(255 - (thread * 8 + bin));
                    bin += 1;
                }
                let mut above = selection.above + warp_exclusive_sum(own);
                if above < target && target <= above + own {
                    bin = 255 - thread * 8;
                    while above + histogram.get(bin) < target {
                        above += histogram.get(bin);
                        bin -= 1;
                    }
                    found.set(0, u64::from(bin));
                    found.set(1, above);
                    found.set(2, histogram.get(bin));
                }
            }
            thread::sync_threads();
            selection.key |= (found.get(0) as u32) << shift;
            selection.above = found.get(1);
            selection.at = found.get(2);
        }
        selection
    }
}

/// Sum over the lower lanes of the warp; all lanes must call it.
#[device]
fn warp_exclusive_sum(value: u64) -> u64 {
    warp_inclusive_sum(value) - value
}

/// Sum over this and the lower lanes of the warp; all lanes must call it.
#[device]
fn warp_inclusive_sum(mut value: u64) -> u64 {
    let lane = warp::lane_id();
    let mut delta = 1;
    while delta < 32 {
        let lower = warp::shuffle_up(value, delta);
        if lane >= delta {
            value += lower;
        }
        delta *= 2;
    }
    value
}

/// Replaces every logit below `key` by -inf, and of those equal to it all but the first `ties`, in the order of ids.
/// All threads of the block must call it.
#[device]
unsafe fn keep_from(logits: *mut f32, vocab_size: u32, key: u32, ties: u64) {
    unsafe {
        let counts = shared_array![u32; 32];
        let thread = thread::thread_idx_x();
        let mut seen = 0u64;
        let mut base = 0;
        // Whole tiles, so that every thread reaches every barrier.
        while base < vocab_size {
            let i = base + thread;
            let own = if i < vocab_size { order_key(*logits.add(i as usize)) } else { 0 };
            let tie = i < vocab_size && own == key;
            let tied_lanes = warp::warp_vote_ballot(warp::FULL_MASK, tie);
            thread::sync_threads();
            if warp::lane_id() == 0 {
                counts.set(thread / 32, tied_lanes.count_ones());
            }
            thread::sync_threads();
            let mut before = seen + u64::from((tied_lanes & ((1 << warp::lane_id()) - 1)).count_ones());
            let mut w = 0;
            while w < WARPS {
                let count = u64::from(counts.get(w));
                if w < thread / 32 {
                    before += count;
                }
                seen += count;
                w += 1;
            }
            if i < vocab_size && (own < key || (tie && before >= ties)) {
                *logits.add(i as usize) = f32::NEG_INFINITY;
            }
            base += SAMPLER_THREADS;
        }
    }
}

/// Replaces every logit below `key` by -inf.
#[device]
unsafe fn drop_below(logits: *mut f32, vocab_size: u32, key: u32) {
    unsafe {
        let mut i = thread::thread_idx_x();
        while i < vocab_size {
            if order_key(*logits.add(i as usize)) < key {
                *logits.add(i as usize) = f32::NEG_INFINITY;
            }
            i += SAMPLER_THREADS;
        }
    }
}

/// Replaces the logits of tokens that a row may not draw by -inf.
///
/// - `rows`: `[num_rows]`; `masks`: `[masked rows, ceil(vocab_size / 32)]`, token `id` being bit `id % 32` of word
///   `id / 32`; `logits`: f32 `[num_rows, vocab_size]`, in place.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]; a thread takes every 1024th token, so a warp reads one word of the
///   mask at a time. Rows with [`NO_MASK`] are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn mask_f32_plain(vocab_size: u32, rows: *const SamplerRow, masks: *const u32, logits: *mut f32) {
    unsafe {
        let row = &*rows.add(thread::block_idx_x() as usize);
        if row.mask_start == NO_MASK {
            return;
        }
        let mask = masks.add(row.mask_start as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        let mut i = thread::thread_idx_x();
        while i < vocab_size {
            if *mask.add((i / 32) as usize) >> (i % 32) & 1 == 0 {
                *logits.add(i as usize) = f32::NEG_INFINITY;
            }
            i += SAMPLER_THREADS;
        }
    }
}

/// Repetition, presence and frequency penalties, in place.
///
/// For every `(token, count)` of the row: `logit = logit / repeat` where positive and `logit * repeat` where not, then
/// minus `count * frequency + presence` (llama.cpp's `llama_sampler_penalties`; the repetition penalty is that of
/// Keskar et al., CTRL, 2019).
///
/// - `rows`: `[num_rows]`; `tokens`, `counts`: `[sum of the rows' lengths]`, distinct tokens within a row, ids below
///   `vocab_size`; `logits`: f32 `[num_rows, vocab_size]`.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]; a thread takes every 1024th token of its row.
#[kernel(max_threads = 1024)]
pub unsafe fn penalties_f32_plain(
    vocab_size: u32,
    rows: *const SamplerRow,
    tokens: *const u32,
    counts: *const u32,
    logits: *mut f32,
) {
    unsafe {
        let row = &*rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        let mut i = row.counts_start + thread::thread_idx_x();
        while i < row.counts_end {
            let logit = logits.add(*tokens.add(i as usize) as usize);
            let value = *logit;
            let scaled = if value > 0.0 { value / row.repeat_penalty } else { value * row.repeat_penalty };
            *logit = scaled - *counts.add(i as usize) as f32 * row.frequency_penalty - row.presence_penalty;
            i += SAMPLER_THREADS;
        }
    }
}

/// Keeps the `top_k` largest logits of each row, ties in the order of ids, and replaces the others by -inf.
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`, in place.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]. Greedy rows and rows with `top_k` 0 or at least `vocab_size` are
///   left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn top_k_f32_plain(vocab_size: u32, rows: *const SamplerRow, logits: *mut f32) {
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if row.temperature <= 0.0 || row.top_k == 0 || row.top_k >= vocab_size {
            return;
        }
        let k = u64::from(row.top_k);
        let selection = radix_select(logits, vocab_size, k, |_| 1);
        thread::sync_threads();
        if selection.above + selection.at == k {
            drop_below(logits, vocab_size, selection.key);
        } else {
            keep_from(logits, vocab_size, selection.key, k - selection.above);
        }
    }
}

/// Keeps, of each row, the fewest largest logits whose probabilities (softmax at temperature 1 over what earlier filters
/// left) add up to `top_p`, ties in the order of ids, and replaces the others by -inf (Holtzman et al., "The curious
/// case of neural text degeneration", 2020).
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`, in place.
/// - Probabilities are summed in fixed point of 2^-36 relative to the largest: tokens less likely than that count as
///   impossible.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]. Greedy rows and rows with `top_p` of 1 or more are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn top_p_f32_plain(vocab_size: u32, rows: *const SamplerRow, logits: *mut f32) {
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if row.temperature <= 0.0 || row.top_p >= 1.0 {
            return;
        }
        let max = row_max(logits, vocab_size);
        let total = shared_array![u64; 1];
        let thread = thread::thread_idx_x();
        if thread == 0 {
            total.set(0, 0);
        }
        thread::sync_threads();
        let mut own = 0;
        let mut i = thread;
        while i < vocab_size {
            own += mass(*logits.add(i as usize), max);
            i += SAMPLER_THREADS;
        }
        add_shared(total, 0, own);
        thread::sync_threads();
        let total = total.get(0);
        if total == 0 {
            return;
        }
        // top_p has 24 significant bits, which a product in f64 keeps exactly enough; at least one token stays.
        let target = (f64::from(row.top_p) * total as f64) as u64;
        let target = if target < 1 {
            1
        } else if target > total {
            total
        } else {
            target
        };
        let selection = radix_select(logits, vocab_size, target, |logit| mass(logit, max));
        thread::sync_threads();
        if selection.above + selection.at == target {
            drop_below(logits, vocab_size, selection.key);
            return;
        }
        // All logits of one key have one mass; the row's largest logit bounds it from above.
        let each = mass(from_order_key(selection.key), max);
        let ties = (target - selection.above).div_ceil(if each > 0 { each } else { 1 });
        if ties * each == selection.at {
            drop_below(logits, vocab_size, selection.key);
        } else {
            keep_from(logits, vocab_size, selection.key, ties);
        }
    }
}

/// The float whose image [`order_key`] gives; the image is not that of a NaN.
#[device]
fn from_order_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7FFF_FFFF } else { !key })
}

/// Replaces logits that are more than `-min_p_ln` below the row's largest by -inf: keeps the tokens with at least
/// `min_p` times the largest probability.
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`, in place.
/// - Grid: `num_rows` blocks of [`SAMPLER_THREADS`]. Greedy rows and rows with `min_p_ln` of -inf are left alone.
#[kernel(max_threads = 1024)]
pub unsafe fn min_p_f32_plain(vocab_size: u32, rows: *const SamplerRow, logits: *mut f32) {
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if row.temperature <= 0.0 || row.min_p_ln == f32::NEG_INFINITY {
            return;
        }
        let threshold = row_max(logits, vocab_size) + row.min_p_ln;
        thread::sync_threads();
        drop_below(logits, vocab_size, order_key(threshold));
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
        if row.temperature <= 0.0 {
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
        if row.temperature <= 0.0 {
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

/// First word of Philox4x32-10 for the counter `(position, index, 0, 0)` (Salmon et al., "Parallel random numbers: as easy
/// as 1, 2, 3", 2011).
#[device]
fn philox(position: u32, index: u32, seed_low: u32, seed_high: u32) -> u32 {
    let mut counter = (position, index, 0, 0);
    let mut key = (seed_low, seed_high);
    let mut round = 0;
    while round < 10 {
        let product0 = 0xD251_1F53 * counter.0 as u64;
        let product1 = 0xCD9E_8D57 * counter.2 as u64;
        counter = (
            (product1 >> 32) as u32 ^ counter.1 ^ key.0,
            product1 as u32,
            (product0 >> 32) as u32 ^ counter.3 ^ key.1,
            product0 as u32,
        );
        key = (key.0.wrapping_add(0x9E37_79B9), key.1.wrapping_add(0xBB67_AE85));
        round += 1;
    }
    counter.0
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

/// Largest value over the warp; all lanes must call it and all get it.
#[device]
pub fn warp_max(mut value: u64) -> u64 {
    let mut mask = 16;
    while mask > 0 {
        let other = warp::shuffle_xor(value, mask);
        if other > value {
            value = other;
        }
        mask /= 2;
    }
    value
}
