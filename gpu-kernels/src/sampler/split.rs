//! Draws by several blocks a row, in one launch: each finds in its slice of the row all that may matter, and the last one to
//! finish draws from that.
//!
//! - [`DRAW_CANDIDATES`]: what may matter are the slice's `top_k` largest logits. They and their ids are one 64-bit key each,
//!   all different, so that radix selection needs no rule for ties and ends as soon as a digit separates exactly `top_k`
//!   keys from the others, mostly after three of eight.
//! - [`DRAW_ANY`]: the slice's largest logit and its mass relative to that. The last block draws a slice, then a token of it.

use cuda_std::prelude::*;

use super::SamplerRow;
#[device]
use super::{
    DRAW_ANY, DRAW_CANDIDATES, MASS_ONE, from_order_key, mass, order_key, philox, share, warp_exclusive_sum,
    warp_inclusive_sum,
};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{is_last_block, repeat},
};
#[device]
use cuda_std::{
    atomic::{AtomicAdd, Ordering, Scope},
    memory,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 512;
/// Logits, or candidates, of a thread.
#[device]
const PER_THREAD: usize = 8;
/// Logits of a block, and the most candidates of all blocks of a row.
pub const SLICE: u32 = 8 * BLOCK_SIZE;
/// The largest `top_k` of [`DRAW_CANDIDATES`].
pub const MAX_TOP_K: u32 = 128;

/// Blocks of a row.
pub const fn num_slices(vocab_size: u32) -> u32 {
    vocab_size.div_ceil(SLICE)
}

/// Whether rows with this `top_k`, above 0, may be [`DRAW_CANDIDATES`].
pub const fn takes_candidates(vocab_size: u32, top_k: u32) -> bool {
    top_k <= MAX_TOP_K && top_k * num_slices(vocab_size) <= SLICE
}

/// Whether rows may be [`DRAW_ANY`]: the last block has a thread for each slice.
pub const fn takes_any(vocab_size: u32) -> bool {
    num_slices(vocab_size) <= BLOCK_SIZE
}

/// Numbers of `partials` that a row needs.
pub const PARTIALS_PER_ROW: u32 = SLICE;

/// Draws a token for each row that asks this kernel to, as `top_k`, `top_p`, `min_p`, `softmax` and `categorical` of the plain chain
/// would.
///
/// - `rows`: `[num_rows]`; `logits`: f32 `[num_rows, vocab_size]`
/// - `partials`: u64 `[num_rows, PARTIALS_PER_ROW]`, scratch
/// - `counters`: u32 `[num_rows]`, 0 before the first launch, and again after each
/// - `out`: `[num_rows]`; other rows, and those without any mass, are left alone
///
/// Grid `[num_slices(vocab_size), num_rows, 1]`, block `[BLOCK_SIZE, 1, 1]`. Probabilities are summed in fixed point of 2^-36
/// relative to the largest.
///
/// # Safety
/// Grid, block and arrays are as above and do not overlap; rows that are [`DRAW_CANDIDATES`] have a `top_k` that
/// [`takes_candidates`], rows are [`DRAW_ANY`] only where [`takes_any`].
#[kernel(max_threads = 512)]
pub unsafe fn draw_f32_split(
    vocab_size: u32,
    rows: *const SamplerRow,
    logits: *const f32,
    partials: *mut u64,
    counters: *mut u32,
    out: *mut u32,
) {
    launch_dependents();
    let is_last = shared_array![u32; 1];
    let (slice, row_id) = (thread::block_idx_x(), thread::block_idx_y() as usize);
    // SAFETY: the caller's promise; each block writes its own partials, and only the last one reads them.
    unsafe {
        wait_for_dependencies();
        let row = *rows.add(row_id);
        let draws = row.temperature > 0.0 && (row.draw == DRAW_CANDIDATES || row.draw == DRAW_ANY);
        if !draws {
            return;
        }
        let logits = logits.add(row_id * vocab_size as usize);
        let partials = partials.add(row_id * PARTIALS_PER_ROW as usize);
        let (counter, out) = (counters.add(row_id), out.add(row_id));
        let number = philox(row.position, row.index, row.seed_low, row.seed_high) >> 8;
        if row.draw == DRAW_CANDIDATES {
            find_candidates(slice, row.top_k, vocab_size, logits, partials);
            if is_last_block(counter, thread::grid_dim_x(), is_last) {
                draw_candidate(&row, number, vocab_size, partials, out);
            }
        } else {
            weigh_slice(slice, row.temperature, vocab_size, logits, partials);
            if is_last_block(counter, thread::grid_dim_x(), is_last) {
                draw_any(row.temperature, number, vocab_size, logits, partials, out);
            }
        }
    }
}

/// Writes the keys of the slice's `top_k` largest logits to its part of `partials`, in any order, and 0 where it has fewer.
#[device]
unsafe fn find_candidates(slice: u32, top_k: u32, vocab_size: u32, logits: *const f32, partials: *mut u64) {
    unsafe {
        let written = shared_array![u32; 1];
        let thread = thread::thread_idx_x();
        let mut keys = [0; PER_THREAD];
        repeat(PER_THREAD, |j| {
            let id = slice * SLICE + j as u32 * BLOCK_SIZE + thread;
            if id < vocab_size {
                keys[j] = key(*logits.add(id as usize), id);
            }
        });
        let count = top_k.min(vocab_size - slice * SLICE);
        let bound = bound_of_largest(&keys, count);
        if thread == 0 {
            written.set(0, 0);
        }
        thread::sync_threads();
        let partials = partials.add((slice * top_k) as usize);
        repeat(PER_THREAD, |j| {
            if keys[j] >= bound {
                let place = u32::fetch_add(written.as_mut_ptr(), 1, Ordering::Relaxed, Scope::Block);
                memory::store(partials.add(place as usize), keys[j]);
            }
        });
        let mut place = count + thread;
        while place < top_k {
            memory::store(partials.add(place as usize), 0);
            place += BLOCK_SIZE;
        }
    }
}

/// Draws from the `top_k` largest of all candidates.
#[device]
unsafe fn draw_candidate(
    row: &SamplerRow,
    number: u32,
    vocab_size: u32,
    partials: *const u64,
    out: *mut u32,
) {
    unsafe {
        let kept_keys = shared_array![u64; 128];
        let masses = shared_array![u64; 128];
        let weights = shared_array![u64; 128];
        let written = shared_array![u32; 1];
        let thread = thread::thread_idx_x();
        let candidates = thread::grid_dim_x() * row.top_k;
        let mut keys = [0; PER_THREAD];
        repeat(PER_THREAD, |j| {
            let place = j as u32 * BLOCK_SIZE + thread;
            if place < candidates {
                // Past L1, which may hold older values.
                keys[j] = memory::load_l2(partials.add(place as usize));
            }
        });
        let count = row.top_k.min(vocab_size);
        let bound = bound_of_largest(&keys, count);
        if thread == 0 {
            written.set(0, 0);
        }
        thread::sync_threads();
        repeat(PER_THREAD, |j| {
            if keys[j] >= bound {
                let place = u32::fetch_add(written.as_mut_ptr(), 1, Ordering::Relaxed, Scope::Block);
                kept_keys.set(place, keys[j]);
            }
        });
        thread::sync_threads();

        // From here on a thread has a candidate, in any order: what comes before it is looked for among all.
        let is_mine = thread < count;
        let mine = kept_keys.get(if is_mine { thread } else { 0 });
        let logit = from_order_key((mine >> 32) as u32);
        let mut largest = 0;
        let mut j = 0;
        while j < count {
            largest = kept_keys.get(j).max(largest);
            j += 1;
        }
        let max = from_order_key((largest >> 32) as u32);
        if is_mine {
            masses.set(thread, mass(logit, max));
        }
        thread::sync_threads();
        let (mut larger, mut total) = (0, 0);
        j = 0;
        while j < count {
            let mass = masses.get(j);
            total += mass;
            if kept_keys.get(j) > mine {
                larger += mass;
            }
            j += 1;
        }
        // top_p has 24 significant bits, which a product in f64 keeps exactly enough; the first token stays.
        let target = (f64::from(row.top_p) * total as f64) as u64;
        let in_top_p = row.top_p >= 1.0 || larger < target.max(1);
        let in_min_p =
            row.min_p_ln == f32::NEG_INFINITY || (mine >> 32) as u32 >= order_key(max + row.min_p_ln);
        let stays = is_mine && in_top_p && in_min_p && logit > f32::NEG_INFINITY;
        let weight = if stays { (((logit - max) / row.temperature).exp() * MASS_ONE) as u64 } else { 0 };
        if is_mine {
            weights.set(thread, weight);
        }
        thread::sync_threads();

        // In the order of ids; the low half of a key is larger for smaller ones.
        let (mut before, mut total) = (0, 0);
        j = 0;
        while j < count {
            let weight = weights.get(j);
            total += weight;
            if kept_keys.get(j) as u32 > mine as u32 {
                before += weight;
            }
            j += 1;
        }
        let target = share(total, number);
        if before <= target && target < before + weight {
            *out = !(mine as u32);
        }
    }
}

/// Writes the slice's largest logit and its mass relative to that.
#[device]
unsafe fn weigh_slice(slice: u32, temperature: f32, vocab_size: u32, logits: *const f32, partials: *mut u64) {
    unsafe {
        let logits = load_slice(slice, vocab_size, logits);
        let mut max = f32::NEG_INFINITY;
        repeat(PER_THREAD, |j| max = max.max(logits[j]));
        let max = block_max(max);
        let (_, total) = block_sums(sum(&weights(&logits, max, temperature)));
        if thread::thread_idx_x() == 0 {
            memory::store(partials.add(2 * slice as usize), u64::from(max.to_bits()));
            memory::store(partials.add(2 * slice as usize + 1), total);
        }
    }
}

/// Draws a slice by its mass, then a token of it.
#[device]
unsafe fn draw_any(
    temperature: f32,
    number: u32,
    vocab_size: u32,
    logits: *const f32,
    partials: *const u64,
    out: *mut u32,
) {
    unsafe {
        let drawn = shared_array![u64; 3];
        let thread = thread::thread_idx_x();
        let (mut own_max, mut own_mass) = (f32::NEG_INFINITY, 0);
        if thread < thread::grid_dim_x() {
            // Past L1, which may hold older values.
            own_max = f32::from_bits(memory::load_l2(partials.add(2 * thread as usize)) as u32);
            own_mass = memory::load_l2(partials.add(2 * thread as usize + 1));
        }
        let max = block_max(own_max);
        let scaled = if own_mass > 0 {
            (own_mass as f64 * f64::from(((own_max - max) / temperature).exp())) as u64
        } else {
            0
        };
        let (before, total) = block_sums(scaled);
        if total == 0 {
            return;
        }
        let target = share(total, number);
        if before <= target && target < before + scaled {
            let within = ((target - before) as f64 / scaled as f64 * own_mass as f64) as u64;
            drawn.set(0, u64::from(thread));
            drawn.set(1, within.min(own_mass - 1));
            drawn.set(2, u64::from(own_max.to_bits()));
        }
        thread::sync_threads();
        let (slice, target) = (drawn.get(0) as u32, drawn.get(1));
        let logits = load_slice(slice, vocab_size, logits);
        let weights = weights(&logits, f32::from_bits(drawn.get(2) as u32), temperature);
        let (mut before, _) = block_sums(sum(&weights));
        repeat(PER_THREAD, |j| {
            if before <= target && target < before + weights[j] {
                *out = slice * SLICE + thread * PER_THREAD as u32 + j as u32;
            }
            before += weights[j];
        });
    }
}

/// Of a logit and its id: larger for larger logits, then for smaller ids; never 0.
#[device]
#[inline(always)]
fn key(logit: f32, id: u32) -> u64 {
    u64::from(order_key(logit)) << 32 | u64::from(!id)
}

/// A number between the block's `count` largest keys, which are not below it, and the others. All keys differ but those that are
/// 0, of which there are none among those `count`, which is at least 1. All threads of the block must call it.
#[device]
#[inline(always)]
unsafe fn bound_of_largest(keys: &[u64; PER_THREAD], count: u32) -> u64 {
    unsafe {
        // Of this digit and of the next one.
        let histograms = shared_array![u32; 512];
        let found = shared_array![u32; 2];
        let thread = thread::thread_idx_x();
        thread::sync_threads();
        histograms.set(thread, 0);
        let (mut prefix, mut missing) = (0u64, count);
        let mut shift = 64;
        loop {
            shift -= 8;
            thread::sync_threads();
            let histogram = histograms.add(shift % 16 * 32);
            let settled = if shift == 56 { 0 } else { u64::MAX << (shift + 8) };
            repeat(PER_THREAD, |j| {
                if keys[j] != 0 && keys[j] & settled == prefix {
                    let bin = histogram.add((keys[j] >> shift) as u32 & 255).as_mut_ptr();
                    u32::add(bin, 1, Ordering::Relaxed, Scope::Block);
                }
            });
            thread::sync_threads();
            if thread < 32 {
                // Lane 0 owns the eight highest bins, lane 1 the next eight, and so on.
                let mut own = 0;
                let mut bin = 255 - thread * 8;
                repeat(8, |b| own += histogram.get(bin - b as u32));
                let mut above = warp_exclusive_sum(u64::from(own)) as u32;
                if above < missing && missing <= above + own {
                    while above + histogram.get(bin) < missing {
                        above += histogram.get(bin);
                        bin -= 1;
                    }
                    // Whether all of the bin belong to the largest.
                    let is_end = above + histogram.get(bin) == missing;
                    found.set(0, bin | u32::from(is_end) << 8);
                    found.set(1, missing - above);
                }
            } else if thread >= 256 {
                histograms.set((shift % 16 * 32 ^ 256) + thread - 256, 0);
            }
            thread::sync_threads();
            let bin = found.get(0);
            prefix |= u64::from(bin & 255) << shift;
            missing = found.get(1);
            if bin >> 8 != 0 || shift == 0 {
                // The keys that are 0 are none of them, even where all others are the largest.
                return prefix.max(1);
            }
        }
    }
}

/// This thread's logits of a slice, one after the other; -inf for NaN and beyond the vocabulary.
#[device]
#[inline(always)]
unsafe fn load_slice(slice: u32, vocab_size: u32, logits: *const f32) -> [f32; PER_THREAD] {
    let mut values = [f32::NEG_INFINITY; PER_THREAD];
    let first = slice * SLICE + thread::thread_idx_x() * PER_THREAD as u32;
    repeat(PER_THREAD, |j| {
        if first + (j as u32) < vocab_size {
            // SAFETY: inside the row.
            let value = unsafe { *logits.add((first + j as u32) as usize) };
            values[j] = if value.is_nan() { f32::NEG_INFINITY } else { value };
        }
    });
    values
}

/// Fixed-point weights of logits at a temperature, relative to `max`.
#[device]
#[inline(always)]
fn weights(logits: &[f32; PER_THREAD], max: f32, temperature: f32) -> [u64; PER_THREAD] {
    let mut weights = [0; PER_THREAD];
    repeat(PER_THREAD, |j| {
        if logits[j] > f32::NEG_INFINITY {
            weights[j] = (((logits[j] - max) / temperature).exp() * MASS_ONE) as u64;
        }
    });
    weights
}

#[device]
#[inline(always)]
fn sum(values: &[u64; PER_THREAD]) -> u64 {
    let mut sum = 0;
    repeat(PER_THREAD, |j| sum += values[j]);
    sum
}

/// The largest value over the block, in every thread; all must call it.
#[device]
#[inline(always)]
unsafe fn block_max(value: f32) -> f32 {
    unsafe {
        let of_warps = shared_array![f32; 16];
        let value = warp::reduce_max(value);
        thread::sync_threads();
        if warp::lane_id() == 0 {
            of_warps.set(warp::warp_id(), value);
        }
        thread::sync_threads();
        warp::reduce_max(of_warps.get(warp::lane_id() % (BLOCK_SIZE / 32)))
    }
}

/// The sum over the threads before this one, and over the block; all must call it.
#[device]
#[inline(always)]
unsafe fn block_sums(value: u64) -> (u64, u64) {
    unsafe {
        let of_warps = shared_array![u64; 16];
        let through = warp_inclusive_sum(value);
        thread::sync_threads();
        if warp::lane_id() == 31 {
            of_warps.set(warp::warp_id(), through);
        }
        thread::sync_threads();
        let (mut before, mut total) = (through - value, 0);
        repeat(BLOCK_SIZE as usize / 32, |w| {
            let sum = of_warps.get(w as u32);
            total += sum;
            if (w as u32) < warp::warp_id() {
                before += sum;
            }
        });
        (before, total)
    }
}
