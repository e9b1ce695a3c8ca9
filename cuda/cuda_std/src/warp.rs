//! The 32 threads that run together: votes, matches, shuffles, reductions.
//!
//! Route on the device: LLVM intrinsics throughout, since every operation here is convergent.
//!
//! The functions named `warp_…` are Rust-CUDA's, with a mask of participating lanes; they are `unsafe` since
//! a lane outside its own mask, or a masked lane that never comes, is undefined behaviour of the hardware.
//! The short names ([`shuffle_xor`], [`reduce_sum`], …) stand for all 32 lanes, which must call them
//! together.

use core::mem::{MaybeUninit, transmute_copy};

use crate::Bits;
use crate::target;

/// All 32 lanes.
pub const FULL_MASK: u32 = u32::MAX;

/// The thread's lane, 0 to 31.
#[inline(always)]
#[must_use]
pub fn lane_id() -> u32 {
    target::laneid()
}

/// The warp's index in a block that is one-dimensional.
#[inline(always)]
#[must_use]
pub fn warp_id() -> u32 {
    target::tid_x() / 32
}

/// A mask of the lanes that execute this very instruction together; says nothing about the next one.
#[inline(always)]
#[must_use]
pub fn activemask() -> u32 {
    target::activemask()
}

/// Whether this lane is the one of `mask` that the hardware chose; exactly one is. sm_90.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn elect(mask: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { target::elect(mask) }.1
}

/// Waits for the lanes of `mask`; memory accesses of these lanes before it are seen by them after it.
///
/// # Safety
/// This lane is in `mask`, and every lane of `mask` comes to a `sync_warp` with the same mask.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::bar_warp_sync(mask) }
}

/// Whether `predicate` holds in every lane of `mask`.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_vote_all(mask: u32, predicate: bool) -> bool {
    // SAFETY: the caller's promise.
    unsafe { target::vote_all(mask, predicate) }
}

/// Whether `predicate` holds in a lane of `mask`.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_vote_any(mask: u32, predicate: bool) -> bool {
    // SAFETY: the caller's promise.
    unsafe { target::vote_any(mask, predicate) }
}

/// A bit for each lane of `mask` in which `predicate` holds.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { target::vote_ballot(mask, predicate) }
}

/// A value of 32 or 64 bits that lanes compare, bit by bit.
pub trait WarpMatchValue: Bits {}

impl WarpMatchValue for u32 {}
impl WarpMatchValue for i32 {}
impl WarpMatchValue for f32 {}
impl WarpMatchValue for u64 {}
impl WarpMatchValue for i64 {}
impl WarpMatchValue for f64 {}

/// The lanes of `mask` whose `value` has the same bits as this lane's.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_match_any<T: WarpMatchValue>(mask: u32, value: T) -> u32 {
    // SAFETY: the caller's promise; a `WarpMatchValue` has 4 or 8 bytes, each of them initialised.
    unsafe {
        if size_of::<T>() == 4 {
            target::match_any_32(mask, transmute_copy(&value))
        } else {
            target::match_any_64(mask, transmute_copy(&value))
        }
    }
}

/// `mask` if `value` has the same bits in all of its lanes.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_match_all<T: WarpMatchValue>(mask: u32, value: T) -> Option<u32> {
    // SAFETY: as in `warp_match_any`.
    let (lanes, all) = unsafe {
        if size_of::<T>() == 4 {
            target::match_all_32(mask, transmute_copy(&value))
        } else {
            target::match_all_64(mask, transmute_copy(&value))
        }
    };
    all.then_some(lanes)
}

/// What [`warp_reduce`] does with the lanes' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarpReductionOp {
    /// Sum, modulo 2^32.
    Add,
    /// Smallest value.
    Min,
    /// Largest value.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

/// An integer that the hardware reduces over a warp in one instruction (`redux.sync`).
pub trait WarpReduceValue: Bits {
    /// Reduces; see [`warp_reduce`].
    ///
    /// # Safety
    /// As for [`sync_warp`].
    unsafe fn reduce(mask: u32, value: Self, op: WarpReductionOp) -> Self;
}

impl WarpReduceValue for u32 {
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn reduce(mask: u32, value: Self, op: WarpReductionOp) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match op {
                WarpReductionOp::Add => target::redux_add(value, mask),
                WarpReductionOp::Min => target::redux_umin(value, mask),
                WarpReductionOp::Max => target::redux_umax(value, mask),
                WarpReductionOp::And => target::redux_and(value, mask),
                WarpReductionOp::Or => target::redux_or(value, mask),
                WarpReductionOp::Xor => target::redux_xor(value, mask),
            }
        }
    }
}

impl WarpReduceValue for i32 {
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn reduce(mask: u32, value: Self, op: WarpReductionOp) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match op {
                WarpReductionOp::Min => target::redux_min(value, mask),
                WarpReductionOp::Max => target::redux_max(value, mask),
                // The rest does not depend on the sign.
                _ => u32::reduce(mask, value.cast_unsigned(), op).cast_signed(),
            }
        }
    }
}

/// `op` over the values of the lanes of `mask`; every one of them gets the result.
///
/// # Safety
/// As for [`sync_warp`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn warp_reduce<T: WarpReduceValue>(mask: u32, value: T, op: WarpReductionOp) -> T {
    // SAFETY: the caller's promise.
    unsafe { T::reduce(mask, value, op) }
}

/// A value as the 32-bit registers that shuffles move. Smaller values are widened, larger ones take several
/// shuffles. A macro, so that on the host an exchange knows the line that asked for it.
macro_rules! by_words {
    ($t:ident, $value:expr, |$word:ident| $exchange:expr) => {{
        const { assert!(size_of::<$t>() <= 4 && size_of::<$t>() != 3 || size_of::<$t>().is_multiple_of(4)) }
        let value = $value;
        let mut out = MaybeUninit::<$t>::uninit();
        let from = (&raw const value).cast::<u8>();
        let to = out.as_mut_ptr().cast::<u8>();
        // SAFETY: offsets stay inside the value, and `Bits` has no byte that is not initialised and no invalid
        // pattern.
        unsafe {
            match size_of::<$t>() {
                1 => {
                    let $word: u32 = from.read().into();
                    to.write($exchange as u8);
                }
                2 => {
                    let $word: u32 = from.cast::<u16>().read_unaligned().into();
                    let word: u32 = $exchange;
                    to.cast::<u16>().write_unaligned(word as u16);
                }
                size => {
                    let mut i = 0;
                    while i < size / 4 {
                        let $word = from.cast::<u32>().add(i).read_unaligned();
                        let word: u32 = $exchange;
                        to.cast::<u32>().add(i).write_unaligned(word);
                        i += 1;
                    }
                }
            }
            out.assume_init()
        }
    }};
}

/// PTX's third shuffle operand: bits 8 to 12 cut the warp into segments of `width` lanes, bits 0 to 4 bound
/// the source lane in a segment.
#[inline(always)]
fn clamp(width: u32, bound: u32) -> u32 {
    ((32 - width) << 8) | bound
}

macro_rules! warp_shuffle {
    ($($(#[$doc:meta])* $name:ident, $intrinsic:ident, $lane:ident, $bound:expr;)*) => { $(
        $(#[$doc])*
        ///
        /// `width` (a power of two up to 32) cuts the warp into segments that exchange among themselves. The
        /// second value says whether the source lane was inside its segment; if not, the lane keeps its own
        /// value.
        ///
        /// # Safety
        /// As for [`sync_warp`]; what comes from a lane that is not in `mask` is unspecified.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        pub unsafe fn $name<T: Bits>(mask: u32, value: T, $lane: u32, width: u32) -> (T, bool) {
            let mut inside = false;
            let value = by_words!(T, value, |word| {
                // The caller's promise.
                let (word, in_range) = target::$intrinsic(mask, word, $lane, clamp(width, $bound));
                inside = in_range;
                word
            });
            (value, inside)
        }
    )* };
}

warp_shuffle! {
    /// The value of the lane `delta` above this one.
    warp_shuffle_down, shfl_down_p, delta, 31;
    /// The value of the lane `delta` below this one.
    warp_shuffle_up, shfl_up_p, delta, 0;
    /// The value of lane `idx` of the segment.
    warp_shuffle_idx, shfl_idx_p, idx, 31;
    /// The value of the lane whose number is this one's, exclusive-or `lane_mask`.
    warp_shuffle_xor, shfl_bfly_p, lane_mask, 31;
}

macro_rules! shuffle {
    ($($(#[$doc:meta])* $name:ident, $intrinsic:ident, $lane:ident, $bound:expr;)*) => { $(
        $(#[$doc])*
        ///
        /// All 32 lanes of the warp must call it together.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        #[must_use]
        pub fn $name<T: Bits>(value: T, $lane: u32) -> T {
            // A full mask; that all lanes come is this function's stated condition, and whatever a lane then
            // reads is a value of T.
            by_words!(T, value, |word| target::$intrinsic(FULL_MASK, word, $lane, $bound))
        }
    )* };
}

shuffle! {
    /// The value of the lane whose number is this one's, exclusive-or `lane_mask`.
    shuffle_xor, shfl_bfly, lane_mask, 31;
    /// The value of lane `lane` (modulo 32).
    shuffle_idx, shfl_idx, lane, 31;
    /// The value of the lane `delta` below this one; the lowest `delta` lanes keep theirs.
    shuffle_up, shfl_up, delta, 0;
    /// The value of the lane `delta` above this one; the highest `delta` lanes keep theirs.
    shuffle_down, shfl_down, delta, 31;
}

/// Combines the values of all 32 lanes in a butterfly: with distance 16, 8, 4, 2, 1, in this order, so that
/// the result does not vary between runs. Every lane gets it, the same bits if `combine` is commutative and
/// nothing in it can be fused with how `value` was made (for floats,
/// [`GpuFloatIntrinsics::add_rn`](crate::float::GpuFloatIntrinsics::add_rn)).
///
/// All 32 lanes of the warp must call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub fn reduce<T: Bits>(value: T, combine: impl Fn(T, T) -> T) -> T {
    let value = combine(value, shuffle_xor(value, 16));
    let value = combine(value, shuffle_xor(value, 8));
    let value = combine(value, shuffle_xor(value, 4));
    let value = combine(value, shuffle_xor(value, 2));
    combine(value, shuffle_xor(value, 1))
}

/// The sum over all 32 lanes, in the order of [`reduce`], in every lane.
///
/// The additions are never fused with a product that `value` is: a lane and its partner would round
/// differently.
///
/// All 32 lanes of the warp must call it together.
// A closure: the device's intrinsics are no Rust functions.
#[allow(clippy::redundant_closure)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub fn reduce_sum(value: f32) -> f32 {
    reduce(value, |a, b| target::add_rn(a, b))
}

/// The largest value of all 32 lanes, in every lane. A NaN loses to every number, -0 to +0.
///
/// All 32 lanes of the warp must call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub fn reduce_max(value: f32) -> f32 {
    reduce(value, target::math::maxf32)
}

/// The smallest value of all 32 lanes, in every lane. A NaN loses to every number, +0 to -0.
///
/// All 32 lanes of the warp must call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub fn reduce_min(value: f32) -> f32 {
    reduce(value, target::math::minf32)
}
