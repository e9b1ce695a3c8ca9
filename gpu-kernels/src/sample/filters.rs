//! What a row may not draw: masks, penalties and the filters of the plain chain. A filter keeps a logit as it is or replaces
//! it by -inf.
//!
//! Nothing is sorted: top-k and top-p find the smallest logit that is kept by radix selection over an order-preserving
//! integer image of the logits.

#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};
use cuda_std::prelude::*;

use super::{Chain, NO_MASK, SAMPLER_THREADS};
#[device]
use super::{
    WARPS,
    draw::row_max,
    from_order_key, mass, order_key,
    radix::{Row, Scratch, Selection},
};

/// Adds to a place that other threads of the block add to as well.
#[device]
unsafe fn add_shared(array: Shared<u64>, i: u32, value: u64) {
    // SAFETY: the caller's: `i` is within the array, to which threads of the block alone add.
    unsafe { AtomicAdd::add(array.add(i).as_mut_ptr(), value, Ordering::Relaxed, Scope::Block) }
}

/// Walks the logits of a row in descending order until the sum of their weights reaches `target`, which must be at
/// least 1 and at most the sum over the row. All threads of the block must call it; all get the answer.
#[device]
#[inline(always)]
unsafe fn select(
    logits: *const f32,
    vocab_size: u32,
    target: u64,
    weight: impl Fn(f32) -> u64,
) -> Selection<u32> {
    let scratch = Scratch { histogram: shared_array![u64; 256], found: shared_array![u64; 3] };
    // SAFETY: ids are below `vocab_size`.
    let at = |id: u32| unsafe { *logits.add(id as usize) };
    let row = Row { vocab_size, at, key: |logit, _| order_key(logit), weight };
    // SAFETY: the block's threads call it together, once.
    unsafe { row.select(SAMPLER_THREADS, target, scratch, |_, _| false) }
}

/// Replaces every logit below `key` by -inf, and of those equal to it all but the first `ties`, in the order of ids.
/// All threads of the block must call it.
#[device]
unsafe fn keep_from(logits: *mut f32, vocab_size: u32, key: u32, ties: u64) {
    // SAFETY: ids are below `vocab_size`; each thread changes its own logits, and all of the block reach each barrier.
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
    // SAFETY: ids are below `vocab_size`, and each thread changes its own logits.
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
/// A thread takes every 1024th token, so a warp reads one word of the mask at a time. Rows with [`NO_MASK`] are left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "mask_{E}_plain", max_threads = 1024)]
pub unsafe fn mask(Chain { vocab_size, rows, masks, logits, .. }: Chain) {
    // SAFETY: ids are below `vocab_size`, for which the row's mask has bits; each thread changes its own logits.
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
/// A thread takes every 1024th token of its row.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "penalties_{E}_plain", max_threads = 1024)]
pub unsafe fn penalties(Chain { vocab_size, rows, tokens, counts, logits, .. }: Chain) {
    // SAFETY: `counts_start..counts_end` is within the arrays; a row names a token once, so each thread changes its own logits.
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
/// Greedy rows and rows with `top_k` 0 or at least `vocab_size` are left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "top_k_{E}_plain", max_threads = 1024)]
pub unsafe fn top_k(Chain { vocab_size, rows, logits, .. }: Chain) {
    // SAFETY: a block works on its own row, and its threads turn back or go on together.
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() || row.top_k == 0 || row.top_k >= vocab_size {
            return;
        }
        let k = u64::from(row.top_k);
        let selection = select(logits, vocab_size, k, |_| 1);
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
/// Probabilities are summed in fixed point of 2^-36 relative to the largest: tokens less likely than that count as
/// impossible. Greedy rows and rows with `top_p` of 1 or more are left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "top_p_{E}_plain", max_threads = 1024)]
pub unsafe fn top_p(Chain { vocab_size, rows, logits, .. }: Chain) {
    // SAFETY: ids are below `vocab_size`; a block works on its own row, and its threads turn back or go on together.
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() || row.top_p >= 1.0 {
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
        let selection = select(logits, vocab_size, target, |logit| mass(logit, max));
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

/// Replaces logits that are more than `-min_p_ln` below the row's largest by -inf: keeps the tokens with at least
/// `min_p` times the largest probability.
///
/// Greedy rows and rows with `min_p_ln` of -inf are left alone.
///
/// # Safety
/// Grid and arrays are as [`Chain`] says.
#[kernel(E = [f32], name = "min_p_{E}_plain", max_threads = 1024)]
pub unsafe fn min_p(Chain { vocab_size, rows, logits, .. }: Chain) {
    // SAFETY: a block works on its own row, and its threads turn back or go on together.
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if !row.draws_plainly() || row.min_p_ln == f32::NEG_INFINITY {
            return;
        }
        let threshold = row_max(logits, vocab_size) + row.min_p_ln;
        thread::sync_threads();
        drop_below(logits, vocab_size, order_key(threshold));
    }
}
