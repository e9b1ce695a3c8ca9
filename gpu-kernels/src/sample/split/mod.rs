//! Draws by several blocks a row, in one launch: each finds in its slice of the row all that may matter, and the last one to
//! finish draws from that.
//!
//! - [`DRAW_CANDIDATES`]: what may matter are the slice's `top_k` largest logits (`candidates.rs`).
//! - [`DRAW_ANY`]: the slice's largest logit and its mass relative to that (`slices.rs`). The last block draws a slice, then a token of it.
//! - [`DRAW_FILTERED`]: both, for as many candidates as there is room for. Of what a trained model says these nearly always hold all that
//!   `top_p` and `min_p` leave; where they do not, the last block goes through the whole row (`filtered.rs`).

mod candidates;
mod filtered;
mod slices;

use cuda_std::prelude::*;

use super::Draw;
#[device]
use super::{DRAW_ANY, DRAW_CANDIDATES, DRAW_FILTERED, DRAW_PLAIN, order_key, philox};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::is_last_block,
    reduce::{self, Max, block_scan},
};
#[device]
use slices::Slices;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 512;
/// Logits, or candidates, of a thread.
#[device]
const PER_THREAD: usize = 8;
/// Logits of a block, and the most candidates of all blocks of a row.
pub const SLICE: u32 = 8 * BLOCK_SIZE;
/// The most candidates that a token is drawn from.
pub const MAX_TOP_K: u32 = 128;

/// Blocks of a row.
pub const fn num_slices(vocab_size: u32) -> u32 {
    vocab_size.div_ceil(SLICE)
}

/// The largest `top_k` of rows that are [`DRAW_CANDIDATES`]: so many candidates of each slice fit. `vocab_size` is not 0.
pub const fn max_top_k(vocab_size: u32) -> u32 {
    let of_slice = SLICE / num_slices(vocab_size);
    if of_slice < MAX_TOP_K { of_slice } else { MAX_TOP_K }
}

/// Whether rows of that many logits can be drawn: the last block has a thread for each slice.
pub const fn is_eligible(vocab_size: u32) -> bool {
    vocab_size > 0 && num_slices(vocab_size) <= BLOCK_SIZE
}

/// Numbers of `partials` that a row needs: candidates, and the largest logit and the mass of each slice.
pub const PARTIALS_PER_ROW: u32 = SLICE + 2 * BLOCK_SIZE;

/// Draws a token for each row that asks this kernel to, as `top_k`, `top_p`, `min_p`, `softmax` and `categorical` of the plain chain
/// would.
///
/// There are [`PARTIALS_PER_ROW`] partials a row.
///
/// Grid `[num_slices(vocab_size), num_rows, 1]`, block `[BLOCK_SIZE, 1, 1]`. Probabilities are summed in fixed point of 2^-36
/// relative to the largest.
///
/// # Safety
/// Grid and block are as above, arrays as [`Draw`] says, and do not overlap; rows ask for it only where it [`is_eligible`], and those that are
/// [`DRAW_CANDIDATES`] have a `top_k` of at most [`max_top_k`].
#[kernel(E = [f32], name = "draw_{E}_split", max_threads = 512)]
pub unsafe fn split(Draw { vocab_size, rows, logits, partials, counters, out }: Draw) {
    launch_dependents();
    let is_last = shared_array![u32; 1];
    let (slice, row_id) = (thread::block_idx_x(), thread::block_idx_y() as usize);
    // SAFETY: the caller's promise; each block writes its own partials, and only the last one reads them.
    unsafe {
        wait_for_dependencies();
        let row = *rows.add(row_id);
        if row.temperature <= 0.0 || row.draw == DRAW_PLAIN {
            return;
        }
        let logits = logits.add(row_id * vocab_size as usize);
        let partials = partials.add(row_id * PARTIALS_PER_ROW as usize);
        let (counter, out) = (counters.add(row_id), out.add(row_id));
        let number = philox(row.position, row.index, row.seed_low, row.seed_high) >> 8;
        let top_k = if row.draw == DRAW_CANDIDATES { row.top_k } else { max_top_k(vocab_size) };
        let slices = partials.add(SLICE as usize);
        // Filters look at probabilities at temperature 1.
        let temperature = if row.draw == DRAW_ANY { row.temperature } else { 1.0 };
        if row.draw != DRAW_ANY {
            candidates::find(slice, top_k, vocab_size, logits, partials);
        }
        if row.draw != DRAW_CANDIDATES {
            slices::weigh(slice, temperature, vocab_size, logits, slices);
        }
        if !is_last_block(counter, thread::grid_dim_x(), is_last) {
            return;
        }
        let all =
            if row.draw == DRAW_CANDIDATES { Slices::default() } else { Slices::load(slices, temperature) };
        if row.draw == DRAW_ANY {
            slices::draw(&all, temperature, number, vocab_size, logits, out);
        } else {
            let all_mass = if row.draw == DRAW_FILTERED { Some(all.total) } else { None };
            if !candidates::draw(&row, number, top_k, vocab_size, all_mass, partials, out) {
                filtered::draw(&row, number, vocab_size, all.max, logits, out);
            }
        }
    }
}

/// The mass that the first tokens must reach; the first one always stays.
#[device]
#[inline(always)]
fn top_p_target(top_p: f32, total: u64) -> u64 {
    // top_p has 24 significant bits, which a product in f64 keeps exactly enough.
    ((f64::from(top_p) * total as f64) as u64).max(1)
}

/// The smallest key that `min_p` leaves.
#[device]
#[inline(always)]
fn min_p_threshold(min_p_ln: f32, max: f32) -> u64 {
    if min_p_ln == f32::NEG_INFINITY { 0 } else { u64::from(order_key(max + min_p_ln)) << 32 }
}

/// Of a logit and its id: larger for larger logits, then for smaller ids; never 0.
#[device]
#[inline(always)]
fn key(logit: f32, id: u32) -> u64 {
    u64::from(order_key(logit)) << 32 | u64::from(!id)
}

/// The largest value over the block, in every thread; all must call it.
#[device]
#[inline(always)]
unsafe fn block_max(value: f32) -> f32 {
    let of_warps = shared_array![f32; 16];
    thread::sync_threads();
    // SAFETY: the barrier stands between this and the last time.
    unsafe { reduce::block::<Max, f32>(value, of_warps, BLOCK_SIZE / 32) }
}

/// The sum over the threads before this one, and over the block; all must call it.
#[device]
#[inline(always)]
unsafe fn block_sums(value: u64) -> (u64, u64) {
    let of_warps = shared_array![u64; 16];
    thread::sync_threads();
    // SAFETY: the barrier stands between this and the last time.
    unsafe { block_scan(value, of_warps, BLOCK_SIZE / 32) }
}
