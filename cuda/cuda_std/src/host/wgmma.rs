//! `wgmma`: see [`crate::wgmma`].

use core::panic::Location;

use half::{bf16, f16};

use crate::emulation::{Factors, Format, current};
use crate::wgmma::{Descriptor, WgmmaElement};

macro_rules! products {
    ($($element:ident, $format:ident;)*) => { $(
        impl<const N: usize> WgmmaElement<N> for $element {
            #[track_caller]
            unsafe fn multiply(d: &mut [f32; N], a: Descriptor, b: Descriptor, accumulate: bool) {
                let factors = Factors { accumulate, ..Factors::new(Format::$format, Some(a.0), b.0) };
                current().multiply_matrices(factors, [0; 16], d, Location::caller());
            }

            #[track_caller]
            unsafe fn multiply_first(d: &mut [f32; N], a: [u32; 16], b: Descriptor) {
                let factors = Factors { accumulate: false, ..Factors::new(Format::$format, None, b.0) };
                current().multiply_matrices(factors, a, d, Location::caller());
            }

            #[track_caller]
            unsafe fn multiply_registers(d: &mut [f32; N], a: [u32; 16], b: Descriptor, accumulate: bool) {
                let factors = Factors { accumulate, ..Factors::new(Format::$format, None, b.0) };
                current().multiply_matrices(factors, a, d, Location::caller());
            }

            #[track_caller]
            unsafe fn multiply_transposed(d: &mut [f32; N], a: [u32; 16], b: Descriptor) {
                let factors = Factors { transposed: true, ..Factors::new(Format::$format, None, b.0) };
                current().multiply_matrices(factors, a, d, Location::caller());
            }

            #[track_caller]
            unsafe fn wait<const PENDING: u32>(d: &mut [f32; N]) {
                current().wait_matrices(PENDING as usize, d, Location::caller());
            }
        }
    )* };
}
products! {
    f16, F16;
    bf16, Bf16;
}

/// Emulated threads have as many registers as they want.
pub unsafe fn decrease_registers<const COUNT: u32>() {}

/// As [`decrease_registers`].
pub unsafe fn increase_registers<const COUNT: u32>() {}
