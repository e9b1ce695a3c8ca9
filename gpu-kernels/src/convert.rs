//! Conversion between number formats.

#[device]
use cuda_std::atomic::{AtomicInteger, Ordering, Scope};
use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

#[device]
#[inline(always)]
unsafe fn plain<From: Element, To: Element>(count: u64, x: *const From, out: *mut To) {
    // SAFETY: indices are below `count`, each in one thread.
    crate::grid::stride_loop(count, |i| unsafe { *out.add(i) = To::from_f32((*x.add(i)).to_f32()) });
}

macro_rules! convert {
    ($($name:ident: $from:ident, $to:ident;)*) => { $(
        #[doc = concat!("`out[i] = x[i]` for `i < count`, ", stringify!($from), " to ", stringify!($to), ", by way of f32, rounded once to nearest even.")]
        ///
        /// Values beyond the target's range become infinite, NaN stays NaN.
        ///
        /// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a
        /// time.
        ///
        /// # Safety
        /// Both arrays hold `count` values and do not overlap.
        #[kernel]
        pub unsafe fn $name(count: u64, x: *const $from, out: *mut $to) {
            // SAFETY: the kernel's own contract.
            unsafe { plain(count, x, out) }
        }
    )* };
}

convert! {
    convert_f32_f16_plain: f32, f16;
    convert_f32_bf16_plain: f32, bf16;
    convert_f16_f32_plain: f16, f32;
    convert_f16_bf16_plain: f16, bf16;
    convert_bf16_f32_plain: bf16, f32;
    convert_bf16_f16_plain: bf16, f16;
}

/// The bits of the smallest magnitude that f16 rounds to infinity: half a step above its largest, 65504.
#[device]
const BEYOND_F16: u32 = 65_520.0f32.to_bits();

/// The bits of a magnitude: they have its order, and those of a NaN are larger than any.
#[device]
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Notes a magnitude that f16 does not have. No thread comes to the atomic where the numbers are in range.
///
/// # Safety
/// `beyond` leads to a u32 that only this function writes.
#[device]
#[inline(always)]
unsafe fn note(magnitude: u32, beyond: *mut u32) {
    if magnitude >= BEYOND_F16 {
        // SAFETY: the caller's promise.
        unsafe { u32::fetch_max(beyond, magnitude, Ordering::Relaxed, Scope::Device) };
    }
}

#[device]
#[inline(always)]
unsafe fn narrow<From: Element>(count: u64, x: *const From, out: *mut f16, beyond: *mut u32) {
    crate::grid::stride_loop(count, |i| {
        // SAFETY: indices are below `count`, each in one thread, which reads before it writes.
        unsafe {
            let value = (*x.add(i)).to_f32();
            note(magnitude(value), beyond);
            *out.add(i) = <f16 as Element>::from_f32(value);
        }
    });
}

macro_rules! narrow {
    ($($name:ident: $from:ident, $overlap:literal;)*) => { $(
        #[doc = concat!("`out[i] = x[i]` for `i < count`, ", stringify!($from), " to f16, rounded once to nearest even, for weights: `beyond` becomes at least")]
        /// the bits of the largest magnitude that f16 has no finite number for, and keeps what it has where all are in range.
        /// A bf16 of magnitude 2^-17 to 65504 is an f16 exactly; smaller ones are off by 2^-25 at most.
        ///
        /// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a
        /// time.
        ///
        /// # Safety
        #[doc = concat!("Both arrays hold `count` values", $overlap, "; `beyond` leads to one that nothing else writes meanwhile.")]
        #[kernel]
        pub unsafe fn $name(count: u64, x: *const $from, out: *mut f16, beyond: *mut u32) {
            // SAFETY: the kernel's own contract.
            unsafe { narrow(count, x, out, beyond) }
        }
    )* };
}

narrow! {
    narrow_f32_f16_plain: f32, " and do not overlap";
    narrow_bf16_f16_plain: bf16, " and are the same or do not overlap";
}

/// As [`narrow_bf16_f16_plain`], eight values at a time: loads and stores of 16 bytes.
///
/// # Safety
/// As there; `count` is a multiple of 8, and both arrays are aligned to 16 bytes.
#[kernel]
pub unsafe fn narrow_bf16_f16_vec8(count: u64, x: *const bf16, out: *mut f16, beyond: *mut u32) {
    use crate::grid::repeat;
    crate::grid::stride_loop(count / 8, |i| {
        // SAFETY: groups are inside the arrays and aligned, each in one thread, which reads before it writes.
        unsafe {
            let values = <bf16 as Element>::load(x.add(8 * i));
            let mut largest = 0;
            repeat(8, |j| largest = largest.max(magnitude(values[j])));
            note(largest, beyond);
            <f16 as Element>::store(out.add(8 * i), values);
        }
    });
}

/// `high[i] = x[i]` rounded to bf16, `low[i]` what that left out, rounded to bf16 too, for `i < count`: together they hold 16
/// of an f32's 24 bits, so that two products with bf16 matrices come near one with f32 inputs (the splitting of Ootomo and
/// Yokota, "Recovering single precision accuracy from Tensor Cores", 2022, with bf16 in the place of f16).
///
/// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a time.
///
/// # Safety
/// The three arrays hold `count` values and do not overlap.
#[kernel]
pub unsafe fn split_f32_bf16_plain(count: u64, x: *const f32, high: *mut bf16, low: *mut bf16) {
    crate::grid::stride_loop(count, |i| {
        // SAFETY: indices are below `count`, each in one thread.
        unsafe {
            let value = *x.add(i);
            let rounded = <bf16 as Element>::from_f32(value);
            *high.add(i) = rounded;
            *low.add(i) = <bf16 as Element>::from_f32(value - Element::to_f32(rounded));
        }
    });
}
