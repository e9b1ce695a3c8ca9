//! Radix selection: where a descending walk over keys reaches a target, eight bits a pass (Alabi et al., "Fast k-selection algorithms
//! for graphics processing units", 2012, `radixSelect`). Nothing is sorted.

use core::ops::{self, BitAnd, BitOr, Not, Shl, Shr};
use cuda_std::prelude::*;

#[device]
use crate::{grid::repeat, reduce::warp_inclusive_sum};
#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};

/// Where a descending walk reaches its target.
#[device]
#[derive(Clone, Copy)]
pub struct Selection<K> {
    /// At this key, or at a key with these digits.
    pub key: K,
    /// The weight of all that is above.
    pub above: u64,
    /// The weight of what is there.
    pub at: u64,
}

/// An unsigned number.
#[device]
pub trait Key:
    Copy
    + PartialEq
    + From<u8>
    + Into<u64>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
{
}

#[device]
impl Key for u32 {}

#[device]
impl Key for u64 {}

/// What bins count in.
#[device]
pub trait Count: Bits + PartialOrd + ops::Add<Output = Self> + Into<u64> {
    /// A number that this type has.
    fn of(number: u64) -> Self;
}

#[device]
impl Count for u32 {
    #[inline(always)]
    fn of(number: u64) -> Self {
        number as Self
    }
}

#[device]
impl Count for u64 {
    #[inline(always)]
    fn of(number: u64) -> Self {
        number
    }
}

/// Walks down 256 bins, beginning with the sum `above`, to where the sum reaches `target`. The lane whose bin that is gets the bin,
/// what is above it and what is in it.
///
/// # Safety
/// `histogram` has 256 bins, which nobody writes; all lanes of the warp call it together.
#[device]
#[inline(always)]
pub unsafe fn walk<T: Count>(histogram: Shared<T>, above: T, target: T) -> Option<(u32, T, T)> {
    // Lane 0 owns the eight highest bins, lane 1 the next eight, and so on.
    let mut bin = 255 - warp::lane_id() * 8;
    let mut own = T::of(0);
    // SAFETY: inside the bins: the sum is reached in one of this lane's.
    unsafe {
        repeat(8, |b| own = own + histogram.get(bin - b as u32));
        let through: u64 = own.into();
        let mut above = above + T::of(warp_inclusive_sum(through) - through);
        if !(above < target && target <= above + own) {
            return None;
        }
        while above + histogram.get(bin) < target {
            above = above + histogram.get(bin);
            bin -= 1;
        }
        Some((bin, above, histogram.get(bin)))
    }
}

/// The logits of a row, and how they are walked over.
#[device]
pub struct Row<At, Of, Weight> {
    pub vocab_size: u32,
    /// The logit of an id.
    pub at: At,
    /// The key of a logit and its id.
    pub key: Of,
    /// What a logit adds to the sum.
    pub weight: Weight,
}

/// Scratch of a selection in shared memory: 256 bins and three numbers.
#[device]
#[derive(Clone, Copy)]
pub struct Scratch {
    pub histogram: Shared<u64>,
    pub found: Shared<u64>,
}

#[device]
impl<K: Key, At: Fn(u32) -> f32, Of: Fn(f32, u32) -> K, Weight: Fn(f32) -> u64> Row<At, Of, Weight> {
    /// Walks the row in descending order until the sum of weights reaches `target`, which is at least 1 and at most the sum over
    /// the row; or until `is_enough` says so of the digits that are known, those from a bit on.
    ///
    /// # Safety
    /// All of the block's `num_threads` threads, at least 256, call it together; nobody else uses the scratch. All get the answer.
    #[inline(always)]
    pub unsafe fn select(
        &self,
        num_threads: u32,
        target: u64,
        scratch: Scratch,
        is_enough: impl Fn(&Selection<K>, u32) -> bool,
    ) -> Selection<K> {
        let Scratch { histogram, found } = scratch;
        let thread = thread::thread_idx_x();
        let mut selection = Selection { key: K::from(0), above: 0, at: 0 };
        let bits = 8 * size_of::<K>() as u32;
        let mut shift = bits;
        // SAFETY: the caller's promise; barriers stand between the phases of a pass.
        unsafe {
            while shift > 0 {
                shift -= 8;
                let settled = if shift + 8 == bits { K::from(0) } else { !K::from(0) << (shift + 8) };
                thread::sync_threads();
                if thread < 256 {
                    histogram.set(thread, 0);
                }
                thread::sync_threads();
                let mut id = thread;
                while id < self.vocab_size {
                    let logit = (self.at)(id);
                    let key = (self.key)(logit, id);
                    if key & settled == selection.key {
                        let digit: u64 = ((key >> shift) & K::from(255)).into();
                        let bin = histogram.add(digit as u32).as_mut_ptr();
                        u64::add(bin, (self.weight)(logit), Ordering::Relaxed, Scope::Block);
                    }
                    id += num_threads;
                }
                thread::sync_threads();
                if thread < 32
                    && let Some((bin, above, at)) = walk(histogram, selection.above, target)
                {
                    found.set(0, u64::from(bin));
                    found.set(1, above);
                    found.set(2, at);
                }
                thread::sync_threads();
                let digit = K::from(found.get(0) as u8);
                selection.key = selection.key | digit << shift;
                selection.above = found.get(1);
                selection.at = found.get(2);
                if is_enough(&selection, shift) {
                    return selection;
                }
            }
        }
        selection
    }
}
