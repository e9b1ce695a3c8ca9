//! Values that move through registers as plain bits.

use half::{bf16, f16};

/// A value without padding or pointers for which every bit pattern is valid, so that memory instructions and
/// shuffles can move it as registers of 1, 2, 4 or 8 bytes, or as several of 16.
///
/// # Safety
/// Every byte of the type is initialised, and every bit pattern is a value of it.
pub unsafe trait Bits: Copy + 'static {}

macro_rules! bits {
    ($($t:ty),*) => { $(
        // SAFETY: a number; every pattern is one.
        unsafe impl Bits for $t {}
    )* };
}
bits!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, f16, bf16);

// SAFETY: an array has no padding of its own.
unsafe impl<T: Bits, const N: usize> Bits for [T; N] {}
