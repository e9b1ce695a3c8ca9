//! The whole row, by one block: where `top_p` and `min_p` leave more than the candidates.

use cuda_std::prelude::*;

#[device]
use super::super::{MASS_ONE, SamplerRow, draw::draw_by_weight, from_order_key, mass, warp_exclusive_sum};
#[device]
use super::{BLOCK_SIZE, block_sums, key, min_p_threshold, top_p_target};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};

/// Draws from what `top_p` and `min_p` leave of the whole row, whose largest logit is `max`. All threads of the block must call it.
#[device]
pub(super) unsafe fn draw(
    row: &SamplerRow,
    number: u32,
    vocab_size: u32,
    max: f32,
    logits: *const f32,
    out: *mut u32,
) {
    unsafe {
        let at = |id: u32| *logits.add(id as usize);
        let mut bound = min_p_threshold(row.min_p_ln, max);
        if row.top_p < 1.0 {
            let mut own = 0;
            let mut id = thread::thread_idx_x();
            while id < vocab_size {
                own += mass(at(id), max);
                id += BLOCK_SIZE;
            }
            let (_, total) = block_sums(own);
            if total == 0 {
                return;
            }
            let target = top_p_target(row.top_p, total);
            bound = bound.max(bound_of_mass(vocab_size, target, max, at));
        }
        let weight = |id: u32| {
            let logit = at(id);
            let stays = logit > f32::NEG_INFINITY && key(logit, id) >= bound;
            if stays { (((logit - max) / row.temperature).exp() * MASS_ONE) as u64 } else { 0 }
        };
        draw_by_weight(vocab_size, number, weight, out);
    }
}

/// A number between the fewest largest keys whose masses add up to `target` and the others; `target` is at least 1 and at most the mass of
/// all. All threads of the block must call it.
#[device]
unsafe fn bound_of_mass(vocab_size: u32, target: u64, max: f32, at: impl Fn(u32) -> f32) -> u64 {
    unsafe {
        let histogram = shared_array![u64; 256];
        let found = shared_array![u64; 3];
        let thread = thread::thread_idx_x();
        let (mut prefix, mut above) = (0u64, 0u64);
        let mut shift = 64;
        while shift > 0 {
            shift -= 8;
            let settled = if shift == 56 { 0 } else { u64::MAX << (shift + 8) };
            thread::sync_threads();
            if thread < 256 {
                histogram.set(thread, 0);
            }
            thread::sync_threads();
            let mut id = thread;
            while id < vocab_size {
                let logit = at(id);
                let key = key(logit, id);
                if key & settled == prefix {
                    let bin = histogram.add((key >> shift) as u32 & 255).as_mut_ptr();
                    u64::add(bin, mass(logit, max), Ordering::Relaxed, Scope::Block);
                }
                id += BLOCK_SIZE;
            }
            thread::sync_threads();
            if thread < 32 {
                // Lane 0 owns the eight highest bins, lane 1 the next eight, and so on.
                let mut own = 0;
                let mut bin = 255 - thread * 8;
                repeat(8, |b| own += histogram.get(bin - b as u32));
                let mut above = above + warp_exclusive_sum(own);
                if above < target && target <= above + own {
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
            prefix |= found.get(0) << shift;
            above = found.get(1);
            // All keys of one logit have one mass: if all of them are needed their ids do not matter.
            let each = mass(from_order_key((prefix >> 32) as u32), max);
            if shift == 32 && above + found.get(2) - target < each {
                return prefix;
            }
        }
        prefix
    }
}
