//! [`Lanes`] in AVX2 and in AVX-512.

use super::{CodesKernel, DotKernel, Kernel, Lanes};
use crate::cpu::int8::codes::x86::{Ymm, Zmm};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl")]
pub unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx512>() }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn run_dot_avx2<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")]
pub(in crate::cpu) unsafe fn run_dot_vnni<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx512>() }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn run_codes_avx2<K: CodesKernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Ymm>() }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")]
pub(in crate::cpu) unsafe fn run_codes_avx512<K: CodesKernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Zmm>() }
}

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub struct Avx2(pub(in crate::cpu) __m256, pub(in crate::cpu) __m256);

#[derive(Clone, Copy)]
pub struct Avx512(pub(in crate::cpu) __m512);

#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller vouches for the processor; there is no memory in it.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_hadd_ps(v, v);
        _mm_cvtss_f32(_mm_hadd_ps(v, v))
    }
}

impl Lanes for Avx2 {
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { Self(_mm256_loadu_ps(from.cast()), _mm256_loadu_ps(from.add(32).cast())) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            let widen = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v)));
            Self(widen(low), widen(high))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe {
            let (low, high) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast()));
            let widen = |v| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
            Self(widen(low), widen(high))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's: 16 values can be written there, and the processor has the instructions.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: any address may be prefetched; the caller vouches for the processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
    }
}

impl Lanes for Avx512 {
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { Self(_mm512_loadu_ps(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's: 16 values can be written there, and the processor has the instructions.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: any address may be prefetched; the caller vouches for the processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }

    /// Each step folds all four at once; a quarter of the register ends up with one of them.
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller vouches for the processor; `sums` has room for the four values stored.
        unsafe {
            // 16 to 8: (a, b) and (c, d) in one register each.
            let fold8 =
                |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let (ab, cd) = (fold8(a.0, b.0), fold8(c.0, d.0));
            // 8 to 4, then neighbours.
            let v = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0xb1>(v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0x4e>(v));
            let first_of_each = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_each, v)));
            sums
        }
    }
}
