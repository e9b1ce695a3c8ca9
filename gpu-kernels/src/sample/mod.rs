//! The sampler, one kernel per step of the chain: `mask -> penalties -> top_k -> top_p -> min_p -> softmax -> categorical`, or
//! `mask -> penalties -> argmax` for a greedy row. A row whose parameter switches a step off is left alone, so rows of
//! different requests share a launch. The reference is `engine/core/cpu/sample.rs`.
//!
//! [`filters`] and [`draw`] are the plain chain, with one block a row. [`split`] does all from top_k on in one kernel with
//! several blocks a row.
//!
//! Probability mass is summed in 64-bit fixed point, where addition is associative: the result depends neither on the schedule
//! nor on the batch.

use cuda_std::prelude::*;

pub mod draw;
pub mod filters;
pub mod split;

mod radix;

/// Threads of a block of every kernel of the plain chain.
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
    /// Who draws if the row is not greedy: [`DRAW_PLAIN`], [`DRAW_CANDIDATES`], [`DRAW_ANY`] or [`DRAW_FILTERED`].
    pub draw: u32,
}

/// What the kernels of the plain chain take; each looks at what its step needs. The grid is `num_rows` blocks of
/// [`SAMPLER_THREADS`].
#[kernel_args]
pub struct Chain {
    pub vocab_size: u32,
    /// `[num_rows]`
    pub rows: *const SamplerRow,
    /// `[masked rows, ceil(vocab_size / 32)]`, token `id` being bit `id % 32` of word `id / 32`
    pub masks: *const u32,
    /// Penalised tokens: `[sum of the rows' lengths]`, distinct within a row, below `vocab_size`
    pub tokens: *const u32,
    /// How often each was said
    pub counts: *const u32,
    /// f32 `[num_rows, vocab_size]`, in place; from `softmax` on probabilities
    pub logits: *mut f32,
    /// `[num_rows]`
    pub out: *mut u32,
}

/// What the kernels take that draw with several blocks a row.
#[kernel_args]
pub struct Draw {
    pub vocab_size: u32,
    /// `[num_rows]`
    pub rows: *const SamplerRow,
    /// f32 `[num_rows, vocab_size]`
    pub logits: *const f32,
    /// u64, as many for each row as the kernel says: scratch
    pub partials: *mut u64,
    /// u32 `[num_rows]`, 0 before the first launch, and again after each
    pub counters: *mut u32,
    /// `[num_rows]`; rows that the kernel does not draw for, those without any mass, and those with a logit that is NaN or infinite are left
    /// alone
    pub out: *mut u32,
}

/// The plain chain draws.
pub const DRAW_PLAIN: u32 = 0;
/// [`split`] draws, from the `top_k` largest logits.
pub const DRAW_CANDIDATES: u32 = 1;
/// [`split`] draws, from all logits: the row has no filter.
pub const DRAW_ANY: u32 = 2;
/// [`split`] draws, from what `top_p` and `min_p` leave of all logits.
pub const DRAW_FILTERED: u32 = 3;

/// In place of a row's mask.
pub const NO_MASK: u32 = u32::MAX;

#[device]
const WARPS: u32 = SAMPLER_THREADS / 32;

/// Fixed-point unit of a probability mass: weights up to 1 are counted in 2^-36, and 2^20 of them fit 64 bits with
/// room for the generator's 24.
#[device]
const MASS_ONE: f32 = 68_719_476_736.0;

/// Image of a float whose unsigned order is the float's order; NaN becomes the largest, so that whoever looks for the largest logit finds it.
#[device]
pub fn order_key(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        u32::MAX
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

/// The float whose image [`order_key`] gives.
#[device]
pub fn from_order_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7FFF_FFFF } else { !key })
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

/// `floor(total * number / 2^24)` for a `number` below 2^24 and any `total` below 2^63.
#[device]
fn share(total: u64, number: u32) -> u64 {
    let (high, low) = (total >> 24, total & 0xFF_FFFF);
    high * u64::from(number) + ((low * u64::from(number)) >> 24)
}

impl SamplerRow {
    /// Whether the plain chain draws a token for it.
    #[device]
    fn draws_plainly(&self) -> bool {
        self.temperature > 0.0 && self.draw == DRAW_PLAIN
    }
}
