//! Sums of products of bytes in sixteen lanes, a row of the matrix each.

use crate::cpu::simd::{LANES, Lanes, portable};
use std::array::from_fn;

/// Bytes of a step: four neighbouring codes of each of sixteen rows.
pub(in crate::cpu) const STEP: usize = 4 * LANES;

/// What the codes of a group are.
pub(in crate::cpu) trait Group {
    /// Four codes a step; 4 or 8.
    const STEPS: usize;
    /// The largest code, of codes without a sign; 0 where they have one.
    const LARGEST: u8;
    /// Whether codes are above the integers that they stand for.
    const RAISED: bool;
    /// Whether something is added to each value ([`super::layouts::Layout`]).
    const ADDENDS: bool;

    /// Steps whose products in pairs can be added in 16 bits: a pair is at most `2 * 127 * LARGEST`.
    #[cfg(target_arch = "x86_64")]
    const IN_16_BITS: usize = match Self::LARGEST {
        0 | 64.. => 1,
        32..64 => 2,
        16..32 => 4,
        _ => Self::STEPS,
    };
}

/// Sixteen lanes that multiply bytes.
///
/// # Safety
/// As [`Lanes`].
#[allow(clippy::missing_safety_doc, reason = "one contract, stated above, for all of them")]
pub(in crate::cpu) trait Dot: Lanes {
    /// Rows of `x` that share a pass through the registers.
    const ROWS: usize;

    /// What signed codes have been raised by when they are multiplied: their sums have as many times the sum of `x` too much.
    const RAISED: u8;

    /// `Σ code * x` over the [`Group::STEPS`] steps at `codes` (the codes of a step for lane `i` are bytes `4i` to `4i + 3`) and as many
    /// values, four a step, of each row of `x`, which are none below -127. Exact.
    unsafe fn dot<G: Group, const N: usize>(codes: *const u8, x: [*const i8; N]) -> [Self; N];
}

/// Four bytes of `x` at `step`.
#[inline(always)]
unsafe fn four(x: *const i8, step: usize) -> i32 {
    // SAFETY: the caller's: four bytes are there.
    unsafe { x.add(4 * step).cast::<i32>().read_unaligned() }
}

impl Dot for portable::Lanes16 {
    const ROWS: usize = 4;
    const RAISED: u8 = 0;

    #[inline(always)]
    unsafe fn dot<G: Group, const N: usize>(codes: *const u8, x: [*const i8; N]) -> [Self; N] {
        x.map(|x| {
            let mut sums = [0i32; LANES];
            for step in 0..G::STEPS {
                // SAFETY: the caller's: the steps and four bytes of x for each are there.
                let (codes, x) = unsafe { (&*codes.add(step * STEP).cast::<[u8; STEP]>(), four(x, step)) };
                let x = x.to_ne_bytes().map(|x| i32::from(x as i8));
                for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                    let code = |i: usize| {
                        if G::LARGEST == 0 { i32::from(codes[i] as i8) } else { i32::from(codes[i]) }
                    };
                    *sum += (code(0) * x[0] + code(1) * x[1]) + (code(2) * x[2] + code(3) * x[3]);
                }
            }
            Self(from_fn(|i| sums[i] as f32))
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Dot, Group, STEP, four};
    use crate::cpu::simd::x86::{Avx2, Avx512};
    use std::arch::x86_64::*;

    impl Dot for Avx2 {
        const ROWS: usize = 4;
        const RAISED: u8 = 0;

        /// `vpmaddubsw` multiplies bytes without a sign with signed ones and adds pairs in 16 bits. Signed codes give their sign to `x`.
        #[inline(always)]
        unsafe fn dot<G: Group, const N: usize>(codes: *const u8, x: [*const i8; N]) -> [Self; N] {
            // SAFETY: the caller's: the steps and four bytes of x for each are there, and the processor has the instructions.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                let mut sums = [[_mm256_setzero_si256(); 2]; N];
                for first in (0..G::STEPS).step_by(G::IN_16_BITS) {
                    let mut pairs = [[_mm256_setzero_si256(); 2]; N];
                    for step in first..first + G::IN_16_BITS {
                        let at = codes.add(step * STEP);
                        let codes =
                            [_mm256_load_si256(at.cast()), _mm256_load_si256(at.add(STEP / 2).cast())];
                        for (pairs, &x) in pairs.iter_mut().zip(&x) {
                            let x = _mm256_set1_epi32(four(x, step));
                            for (pairs, codes) in pairs.iter_mut().zip(codes) {
                                let products = if G::LARGEST == 0 {
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
                                } else {
                                    _mm256_maddubs_epi16(codes, x)
                                };
                                *pairs = _mm256_add_epi16(*pairs, products);
                            }
                        }
                    }
                    for (sums, pairs) in sums.iter_mut().zip(pairs) {
                        for (sum, pairs) in sums.iter_mut().zip(pairs) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
                // No closures: they have no instructions of their own to be compiled with.
                let mut dots = [Self(_mm256_setzero_ps(), _mm256_setzero_ps()); N];
                for (dot, [low, high]) in dots.iter_mut().zip(sums) {
                    *dot = Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high));
                }
                dots
            }
        }
    }

    impl Dot for Avx512 {
        const ROWS: usize = 8;
        const RAISED: u8 = 128;

        /// `vpdpbusd` multiplies bytes without a sign with signed ones and adds four in 32 bits.
        #[inline(always)]
        unsafe fn dot<G: Group, const N: usize>(codes: *const u8, x: [*const i8; N]) -> [Self; N] {
            // SAFETY: the caller's: the steps and four bytes of x for each are there, and the processor has the instructions.
            unsafe {
                let mut sums = [_mm512_setzero_si512(); N];
                for step in 0..G::STEPS {
                    let mut codes = _mm512_load_si512(codes.add(step * STEP).cast());
                    if G::LARGEST == 0 {
                        codes = _mm512_xor_si512(codes, _mm512_set1_epi8(i8::MIN));
                    }
                    for (sum, &x) in sums.iter_mut().zip(&x) {
                        *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(four(x, step)));
                    }
                }
                let mut dots = [Self(_mm512_setzero_ps()); N];
                for (dot, sum) in dots.iter_mut().zip(sums) {
                    *dot = Self(_mm512_cvtepi32_ps(sum));
                }
                dots
            }
        }
    }
}
