//! Conversion between number formats.
//!
//! All kernels take any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`, one thread an element (or
//! eight) at a time.

use cuda_std::prelude::*;

#[device]
use crate::grid::{repeat, stride_loop};
#[device]
use cuda_std::{
    atomic::{AtomicInteger, Ordering, Scope},
    warp::{FULL_MASK, WarpReductionOp, warp_reduce},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out[i] = x[i]` for `i < count`, by way of f32, rounded once to nearest even.
#[kernel_args]
pub struct Convert<From, To> {
    pub count: u64,
    /// From `[count]`
    pub x: *const From,
    /// To `[count]`
    pub out: *mut To,
}

/// Values beyond the target's range become infinite, NaN stays NaN.
///
/// # Safety
/// Both arrays hold `count` values and do not overlap.
#[kernel(
    (From, To) = [(f32, f16), (f32, bf16), (f16, f32), (f16, bf16), (bf16, f32), (bf16, f16)],
    name = "convert_{From}_{To}_plain",
)]
pub unsafe fn plain<From: Element, To: Element>(Convert { count, x, out }: Convert<From, To>) {
    // SAFETY: indices are below `count`, each in one thread.
    stride_loop(count, |i| unsafe { *out.add(i) = To::from_f32((*x.add(i)).to_f32()) });
}

/// `largest` becomes at least the bits of the largest magnitude of `x[i]`, `i < count`; they have the order of the magnitudes, and those of
/// a NaN are larger than any.
#[kernel_args]
pub struct Largest<From> {
    pub count: u64,
    /// From `[count]`
    pub x: *const From,
    /// u32 `[1]`
    pub largest: *mut u32,
}

#[device]
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Notes the largest of a thread's magnitudes: one atomic a warp.
///
/// # Safety
/// `largest` leads to a u32 that only this function writes; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn note(of_thread: u32, largest: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let of_warp = warp_reduce(FULL_MASK, of_thread, WarpReductionOp::Max);
        if warp::lane_id() == 0 {
            u32::fetch_max(largest, of_warp, Ordering::Relaxed, Scope::Device);
        }
    }
}

/// # Safety
/// `x` holds `count` values, `largest` leads to one that nothing else writes meanwhile.
#[kernel(From = [f32, bf16], name = "largest_{From}_plain")]
pub unsafe fn largest<From: Element>(Largest { count, x, largest }: Largest<From>) {
    let mut of_thread = 0;
    // SAFETY: indices are below `count`.
    stride_loop(count, |i| of_thread = of_thread.max(magnitude(unsafe { *x.add(i) }.to_f32())));
    // SAFETY: the loop is over for all lanes.
    unsafe { note(of_thread, largest) }
}

/// As [`largest`], eight values at a time: loads of 16 bytes.
///
/// # Safety
/// As there; `count` is a multiple of 8, `x` is aligned to 16 bytes.
#[kernel(From = [bf16], name = "largest_{From}_vec8")]
pub unsafe fn largest_vec8(Largest { count, x, largest }: Largest<bf16>) {
    let mut of_thread = 0;
    stride_loop(count / 8, |i| {
        // SAFETY: groups are inside the array and aligned.
        let values = unsafe { <bf16 as Element>::load(x.add(8 * i)) };
        repeat(8, |j| of_thread = of_thread.max(magnitude(values[j])));
    });
    // SAFETY: as above.
    unsafe { note(of_thread, largest) }
}

/// `out[i] = x[i] * f16_scale(largest)` for `i < count`, to f16, rounded once to nearest even: weights, whose largest magnitude is known.
#[kernel_args]
pub struct Narrow<From> {
    pub count: u64,
    /// From `[count]`
    pub x: *const From,
    /// f16 `[count]`
    pub out: *mut f16,
    /// u32 `[1]`, see [`f16_scale`]
    pub largest: *const u32,
}

/// The power of two that weights are multiplied with before they become f16, from the bits of their largest magnitude. 1 for those that
/// suit it: none becomes infinite, and the large ones keep their bits. For others what makes the largest one of 2^14 to 2^15.
///
/// A bf16 of magnitude 2^-17 to 65504 is an f16 exactly; smaller ones are off by 2^-25 at most.
#[must_use]
pub const fn f16_scale(largest: u32) -> f32 {
    /// f16 rounds it to infinity: half a step above its largest, 65504.
    const BEYOND: u32 = 65_520.0f32.to_bits();
    const SMALL: u32 = (1.0f32 / 1024.0).to_bits();
    const INFINITE: u32 = f32::INFINITY.to_bits();
    const BIAS: u32 = 127;
    const EXPONENT: u32 = 14;
    if largest == 0 || largest >= INFINITE || (largest >= SMALL && largest < BEYOND) {
        return 1.0;
    }
    // No scale is beyond the largest power of two of f32.
    let exponent = if largest >> 23 < EXPONENT { EXPONENT } else { largest >> 23 };
    f32::from_bits((2 * BIAS + EXPONENT - exponent) << 23)
}

/// # Safety
/// Both arrays hold `count` values and do not overlap, or are of two bytes a value and the same; nothing writes `largest` meanwhile.
#[kernel(From = [f32, bf16], name = "narrow_{From}_f16_plain")]
pub unsafe fn narrow<From: Element>(Narrow { count, x, out, largest }: Narrow<From>) {
    // SAFETY: the contract.
    let scale = f16_scale(unsafe { *largest });
    stride_loop(count, |i| {
        // SAFETY: indices are below `count`, each in one thread, which reads before it writes.
        unsafe { *out.add(i) = <f16 as Element>::from_f32((*x.add(i)).to_f32() * scale) }
    });
}

/// As [`narrow`], eight values at a time: loads and stores of 16 bytes.
///
/// # Safety
/// As there; `count` is a multiple of 8, and both arrays are aligned to 16 bytes.
#[kernel(From = [bf16], name = "narrow_{From}_f16_vec8")]
pub unsafe fn narrow_vec8(Narrow { count, x, out, largest }: Narrow<bf16>) {
    // SAFETY: the contract.
    let scale = f16_scale(unsafe { *largest });
    stride_loop(count / 8, |i| {
        // SAFETY: groups are inside the arrays and aligned, each in one thread, which reads before it writes.
        unsafe {
            let mut values = <bf16 as Element>::load(x.add(8 * i));
            repeat(8, |j| values[j] *= scale);
            <f16 as Element>::store(out.add(8 * i), values);
        }
    });
}

/// `high[i] = x[i]` rounded to bf16, `low[i]` what that left out, rounded to bf16 too, for `i < count`: together they hold 16
/// of an f32's 24 bits, so that two products with bf16 matrices come near one with f32 inputs (the splitting of Ootomo and
/// Yokota, "Recovering single precision accuracy from Tensor Cores", 2022, with bf16 in the place of f16).
#[kernel_args]
pub struct Split {
    pub count: u64,
    /// f32 `[count]`
    pub x: *const f32,
    /// bf16 `[count]`
    pub high: *mut bf16,
    /// bf16 `[count]`
    pub low: *mut bf16,
}

/// # Safety
/// The three arrays hold `count` values and do not overlap.
#[kernel(From = [f32], name = "split_{From}_bf16_plain")]
pub unsafe fn split(Split { count, x, high, low }: Split) {
    stride_loop(count, |i| {
        // SAFETY: indices are below `count`, each in one thread.
        unsafe {
            let value = *x.add(i);
            let rounded = <bf16 as Element>::from_f32(value);
            *high.add(i) = rounded;
            *low.add(i) = <bf16 as Element>::from_f32(value - Element::to_f32(rounded));
        }
    });
}
