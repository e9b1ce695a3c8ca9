//! The largest logits of a row: of each slice first, then of those.
//!
//! A logit and its id are one 64-bit key ([`key`]), all different, so that radix selection needs no rule for ties and ends as soon as a
//! digit separates the wanted keys from the others, mostly after three of eight.

use cuda_std::prelude::*;

#[device]
use super::super::{MASS_ONE, SamplerRow, from_order_key, mass, radix::walk, share};
#[device]
use super::{BLOCK_SIZE, PER_THREAD, SLICE, key, min_p_threshold, top_p_target};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::{
    atomic::{AtomicAdd, Ordering, Scope},
    memory,
};

/// Writes the keys of the slice's `top_k` largest logits to its part of `partials`, in any order, and 0 where it has fewer.
#[device]
#[inline(always)]
pub(super) unsafe fn find(slice: u32, top_k: u32, vocab_size: u32, logits: *const f32, partials: *mut u64) {
    // SAFETY: ids are below `vocab_size`; the block's part of `partials` has `top_k` places, of which each key takes one of its own.
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

/// Draws from the `top_k` largest of all candidates. `all_mass` is the mass of the whole row, where `top_p` and `min_p` look at that: if
/// they may leave more than the candidates, nothing is drawn and the answer is `false`.
#[device]
#[inline(always)]
pub(super) unsafe fn draw(
    row: &SamplerRow,
    number: u32,
    top_k: u32,
    vocab_size: u32,
    all_mass: Option<u64>,
    partials: *const u64,
    out: *mut u32,
) -> bool {
    // SAFETY: `partials` has `top_k` keys of each block, all written by now; places in shared arrays are below `top_k`, at most 128.
    unsafe {
        let kept_keys = shared_array![u64; 128];
        let masses = shared_array![u64; 128];
        let weights = shared_array![u64; 128];
        let written = shared_array![u32; 1];
        let thread = thread::thread_idx_x();
        let candidates = thread::grid_dim_x() * top_k;
        let mut keys = [0; PER_THREAD];
        repeat(PER_THREAD, |j| {
            let place = j as u32 * BLOCK_SIZE + thread;
            if place < candidates {
                // Past L1, which may hold older values.
                keys[j] = memory::load_l2(partials.add(place as usize));
            }
        });
        let count = top_k.min(vocab_size);
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
        let (mut largest, mut smallest) = (0, u64::MAX);
        let mut j = 0;
        while j < count {
            largest = kept_keys.get(j).max(largest);
            smallest = kept_keys.get(j).min(smallest);
            j += 1;
        }
        let max = from_order_key((largest >> 32) as u32);
        if !max.is_finite() {
            return true; // Nothing can be drawn: a logit is NaN or infinite, or all are -inf.
        }
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
        let target = top_p_target(row.top_p, all_mass.unwrap_or(total));
        let threshold = min_p_threshold(row.min_p_ln, max);
        let in_candidates =
            (row.top_p < 1.0 && total >= target) || smallest < threshold || count == vocab_size;
        if all_mass.is_some() && !in_candidates {
            return false;
        }
        let in_top_p = row.top_p >= 1.0 || larger < target;
        let in_min_p = mine >= threshold;
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
        true
    }
}

/// A number between the block's `count` largest keys, which are not below it, and the others. All keys differ but those that are
/// 0, of which there are none among those `count`, which is at least 1. All threads of the block must call it.
///
/// As [`Row::select`](super::super::radix::Row::select), of keys in registers, with a histogram for each other pass: a barrier less in each.
#[device]
#[inline(always)]
unsafe fn bound_of_largest(keys: &[u64; PER_THREAD], count: u32) -> u64 {
    // SAFETY: digits are below 256, the histograms' size; the block's threads call it together.
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
                if let Some((bin, above, at)) = walk(histogram, 0, missing) {
                    // Whether all of the bin belong to the largest.
                    let is_end = above + at == missing;
                    found.set(0, bin | u32::from(is_end) << 8);
                    found.set(1, missing - above);
                }
            } else if thread >= 256 {
                histograms.set(((shift % 16 * 32) ^ 256) + thread - 256, 0);
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
