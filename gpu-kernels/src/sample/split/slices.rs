//! The masses of the slices of a row, and a token drawn by them.

use cuda_std::prelude::*;

#[device]
use super::super::{MASS_ONE, share};
#[device]
use super::{PER_THREAD, SLICE, block_max, block_sums};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::memory;

/// The masses of all slices. A thread has one.
#[device]
#[derive(Default)]
pub(super) struct Slices {
    /// The largest logit of this thread's slice, and its mass relative to that.
    own_max: f32,
    own_mass: u64,
    /// The largest logit of all.
    pub(super) max: f32,
    /// The slice's mass relative to that.
    scaled: u64,
    /// The masses of the slices before it.
    before: u64,
    /// The masses of all.
    pub(super) total: u64,
}

#[device]
impl Slices {
    /// Those that [`weigh`] wrote. All threads of the block must call it.
    #[inline(always)]
    pub(super) unsafe fn load(slices: *const u64, temperature: f32) -> Self {
        // SAFETY: `slices` has two numbers of each block of the grid; the block's threads call it together.
        unsafe {
            let thread = thread::thread_idx_x() as usize;
            let (mut own_max, mut own_mass) = (f32::NEG_INFINITY, 0);
            if thread < thread::grid_dim_x() as usize {
                // Past L1, which may hold older values.
                own_max = f32::from_bits(memory::load_l2(slices.add(2 * thread)) as u32);
                own_mass = memory::load_l2(slices.add(2 * thread + 1));
            }
            let max = block_max(own_max);
            let scale = if own_mass > 0 { ((own_max - max) / temperature).exp() } else { 0.0 };
            let scaled = (own_mass as f64 * f64::from(scale)) as u64;
            let (before, total) = block_sums(scaled);
            Self { own_max, own_mass, max, scaled, before, total }
        }
    }
}

/// Writes the slice's largest logit and its mass relative to that.
#[device]
#[inline(always)]
pub(super) unsafe fn weigh(
    slice: u32,
    temperature: f32,
    vocab_size: u32,
    logits: *const f32,
    slices: *mut u64,
) {
    // SAFETY: `slices` has two numbers of each slice, and one thread writes this one's; the block's threads call it together.
    unsafe {
        let logits = load_slice(slice, vocab_size, logits);
        let mut max = f32::NEG_INFINITY;
        repeat(PER_THREAD, |j| max = max.max(logits[j]));
        let max = block_max(max);
        let (_, total) = block_sums(sum(&weights(&logits, max, temperature)));
        if thread::thread_idx_x() == 0 {
            memory::store(slices.add(2 * slice as usize), u64::from(max.to_bits()));
            memory::store(slices.add(2 * slice as usize + 1), total);
        }
    }
}

/// Draws a slice by its mass, then a token of it.
#[device]
#[inline(always)]
pub(super) unsafe fn draw(
    all: &Slices,
    temperature: f32,
    number: u32,
    vocab_size: u32,
    logits: *const f32,
    out: *mut u32,
) {
    // SAFETY: the drawn slice is one of the grid's; the block's threads call it together, and one of them writes `out`.
    unsafe {
        let sampled = shared_array![u64; 3];
        let thread = thread::thread_idx_x();
        let &Slices { own_max, own_mass, scaled, before, total, .. } = all;
        if total == 0 {
            return;
        }
        let target = share(total, number);
        if before <= target && target < before + scaled {
            let within = ((target - before) as f64 / scaled as f64 * own_mass as f64) as u64;
            sampled.set(0, u64::from(thread));
            sampled.set(1, within.min(own_mass - 1));
            sampled.set(2, u64::from(own_max.to_bits()));
        }
        thread::sync_threads();
        let (slice, target) = (sampled.get(0) as u32, sampled.get(1));
        let logits = load_slice(slice, vocab_size, logits);
        let weights = weights(&logits, f32::from_bits(sampled.get(2) as u32), temperature);
        let (mut before, _) = block_sums(sum(&weights));
        repeat(PER_THREAD, |j| {
            if before <= target && target < before + weights[j] {
                *out = slice * SLICE + thread * PER_THREAD as u32 + j as u32;
            }
            before += weights[j];
        });
    }
}

/// This thread's logits of a slice, one after the other; -inf beyond the vocabulary, and infinite for NaN, which leaves no mass.
#[device]
#[inline(always)]
unsafe fn load_slice(slice: u32, vocab_size: u32, logits: *const f32) -> [f32; PER_THREAD] {
    let mut values = [f32::NEG_INFINITY; PER_THREAD];
    let first = slice * SLICE + thread::thread_idx_x() * PER_THREAD as u32;
    repeat(PER_THREAD, |j| {
        if first + (j as u32) < vocab_size {
            // SAFETY: inside the row.
            let value = unsafe { *logits.add((first + j as u32) as usize) };
            values[j] = if value.is_nan() { f32::INFINITY } else { value };
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
