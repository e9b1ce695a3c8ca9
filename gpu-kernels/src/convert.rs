//! Conversion between number formats.

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
