//! The whole row, by one block: where `top_p` and `min_p` leave more than the candidates.

use cuda_std::prelude::*;

#[device]
use super::super::{
    MASS_ONE, SamplerRow,
    draw::draw_by_weight,
    from_order_key, mass,
    radix::{Row, Scratch, Selection},
};
#[device]
use super::{BLOCK_SIZE, block_sums, key, min_p_threshold, top_p_target};

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
    // SAFETY: ids are below `vocab_size`; the block's threads call it together, and one of them writes `out`.
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
    let scratch = Scratch { histogram: shared_array![u64; 256], found: shared_array![u64; 3] };
    let row = Row { vocab_size, at, key, weight: |logit| mass(logit, max) };
    // All keys of one logit have one mass: if all of them are needed their ids do not matter.
    let is_enough = |found: &Selection<u64>, shift| {
        let each = mass(from_order_key((found.key >> 32) as u32), max);
        shift == 32 && found.above + found.at - target < each
    };
    // SAFETY: the block's threads call it together, once.
    unsafe { row.select(BLOCK_SIZE, target, scratch, is_enough) }.key
}
