//! Conversion between number formats.
//!
//! All kernels take any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`, one thread an element (or
//! eight) at a time.

use cuda_std::prelude::*;

#[device]
use crate::grid::{repeat, stride_loop};
#[device]
use cuda_std::atomic::{AtomicInteger, Ordering, Scope};

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

/// `out[i] = x[i]` for `i < count`, to f16, rounded once to nearest even, for weights: `beyond` becomes at least
/// the bits of the largest magnitude that f16 has no finite number for, and keeps what it has where all are in range.
/// A bf16 of magnitude 2^-17 to 65504 is an f16 exactly; smaller ones are off by 2^-25 at most.
#[kernel_args]
pub struct Narrow<From> {
    pub count: u64,
    /// From `[count]`
    pub x: *const From,
    /// f16 `[count]`
    pub out: *mut f16,
    /// u32 `[1]`
    pub beyond: *mut u32,
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

/// # Safety
/// Both arrays hold `count` values and do not overlap, or are of two bytes a value and the same; `beyond` leads to one that
/// nothing else writes meanwhile.
#[kernel(From = [f32, bf16], name = "narrow_{From}_f16_plain")]
pub unsafe fn narrow<From: Element>(Narrow { count, x, out, beyond }: Narrow<From>) {
    stride_loop(count, |i| {
        // SAFETY: indices are below `count`, each in one thread, which reads before it writes.
        unsafe {
            let value = (*x.add(i)).to_f32();
            note(magnitude(value), beyond);
            *out.add(i) = <f16 as Element>::from_f32(value);
        }
    });
}

/// As [`narrow`], eight values at a time: loads and stores of 16 bytes.
///
/// # Safety
/// As there; `count` is a multiple of 8, and both arrays are aligned to 16 bytes.
#[kernel(From = [bf16], name = "narrow_{From}_f16_vec8")]
pub unsafe fn narrow_vec8(Narrow { count, x, out, beyond }: Narrow<bf16>) {
    stride_loop(count / 8, |i| {
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
