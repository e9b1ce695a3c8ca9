//! Sixteen f32 lanes on every processor, and the choice of instructions at run time.
//!
//! Every sum in [`crate::cpu`] is kept in sixteen lanes that are folded in one fixed order, whatever the width of the
//! registers below, so that AVX-512, AVX2 and the portable code give the same bits (the portable code needs a fused
//! multiply-add in hardware for that; where there is none it multiplies and adds).

use crate::formats::MatrixFormat;

/// Lanes of a [`Lanes`].
pub const LANES: usize = 16;

/// The instructions that a [`Kernel`] is compiled for; there are only values that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Instructions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    /// What the compiler may assume everywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (since 2013).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512F and VL besides (without VL the compiler spills half of the registers).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// What every processor has.
    pub const PORTABLE: Self = Self(Instructions::Portable);

    /// Everything that this processor has, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "changed on x86-64 only")]
        let mut isas = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            isas.push(Self(Instructions::Avx2));
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                isas.push(Self(Instructions::Avx512));
            }
        }
        isas
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "no vector instructions",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "AVX-512",
        }
    }

    /// Runs `kernel` compiled for these instructions.
    ///
    /// # Safety
    /// Whatever the kernel demands besides its instructions.
    #[inline]
    pub unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: only instructions that were detected have a value; the caller vouches for the kernel.
        unsafe {
            match self.0 {
                Instructions::Portable => kernel.run::<portable::Lanes16>(),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => x86::run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => x86::run_avx512(kernel),
            }
        }
    }
}

/// An inner loop, written once over [`Lanes`].
pub trait Kernel {
    type Output;

    /// The loop. Implementations are `#[inline(always)]`, so that they are compiled with the caller's instructions.
    ///
    /// # Safety
    /// The processor has the instructions of `L`; and what the implementation says.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Sixteen f32 values.
///
/// # Safety
/// All functions: the processor has the instructions; pointers are valid for sixteen values, of any alignment.
#[allow(clippy::missing_safety_doc, reason = "one contract, stated above, for all of them")]
pub trait Lanes: Copy {
    /// There are registers for 24 of them and more.
    const MANY_REGISTERS: bool;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(from: *const u8) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Asks for the cache line at `address`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
    /// `self * b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Folds 16 lanes to 8, 4, 2 and 1: `(j, j + 8)`, `(j, j + 4)`, then neighbours.
    unsafe fn sum(self) -> f32;
    /// [`Lanes::sum`] of each, in fewer instructions where the processor allows.
    #[inline(always)]
    unsafe fn sum4(of: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's.
        of.map(|lanes| unsafe { lanes.sum() })
    }
}

/// A number format in memory: little-endian, of any alignment.
pub trait Element: Send + Sync {
    const SIZE: usize;
    /// The largest value that is not infinite.
    const LARGEST: f32;

    /// The value whose bytes start at `from`.
    ///
    /// # Safety
    /// `from` is valid for [`Element::SIZE`] bytes.
    unsafe fn get(from: *const u8) -> f32;

    /// Stores `value` at `to`, rounded to nearest even.
    ///
    /// # Safety
    /// `to` is valid for writes of [`Element::SIZE`] bytes.
    unsafe fn set(to: *mut u8, value: f32);

    /// Sixteen values.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const u8) -> L;
}

/// [`Dtype::F32`](crate::dtype::Dtype::F32) as a type.
pub struct F32;
/// [`Dtype::F16`](crate::dtype::Dtype::F16) as a type.
pub struct F16;
/// [`Dtype::Bf16`](crate::dtype::Dtype::Bf16) as a type.
pub struct Bf16;

macro_rules! element {
    ($name:ident, $value:ty, $bytes:literal, $largest:expr, $load:ident, |$v:ident| $to_f32:expr, |$f:ident| $from_f32:expr) => {
        impl Element for $name {
            const SIZE: usize = $bytes;
            const LARGEST: f32 = $largest;

            #[inline(always)]
            unsafe fn get(from: *const u8) -> f32 {
                // SAFETY: the caller's; an array of bytes needs no alignment.
                let $v = <$value>::from_le_bytes(unsafe { *from.cast::<[u8; $bytes]>() });
                $to_f32
            }

            #[inline(always)]
            unsafe fn set(to: *mut u8, $f: f32) {
                let bytes = <$value>::to_le_bytes($from_f32);
                // SAFETY: the caller's; an array of bytes needs no alignment.
                unsafe { *to.cast::<[u8; $bytes]>() = bytes };
            }

            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const u8) -> L {
                // SAFETY: the caller's.
                unsafe { L::$load(from) }
            }
        }
    };
}

element!(F32, f32, 4, f32::MAX, load_f32, |v| v, |f| f);
element!(
    F16,
    half::f16,
    2,
    half::f16::MAX.to_f32_const(),
    load_f16,
    |v| v.to_f32(),
    |f| half::f16::from_f32(f)
);
element!(Bf16, half::bf16, 2, half::bf16::MAX.to_f32_const(), load_bf16, |v| v.to_f32(), |f| {
    half::bf16::from_f32(f)
});

/// Runs `$body` with the type `$element` that stands for `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::Dtype::F32 => {
                type $element = $crate::cpu::simd::F32;
                $body
            }
            $crate::dtype::Dtype::F16 => {
                type $element = $crate::cpu::simd::F16;
                $body
            }
            $crate::dtype::Dtype::Bf16 => {
                type $element = $crate::cpu::simd::Bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// The `out.len()` values of whole blocks of a format, times `scale`, which is 1 for floats.
///
/// # Panics
/// If `bytes` are not those blocks.
pub fn to_f32(isa: Isa, format: MatrixFormat, scale: f32, bytes: &[u8], out: &mut [f32]) {
    let Some(dtype) = format.float() else {
        format.decode(bytes, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= scale);
        }
        return;
    };
    assert_eq!(bytes.len(), out.len() * dtype.size());
    struct Convert<'a, E>(&'a [u8], &'a mut [f32], std::marker::PhantomData<E>);
    impl<E: Element> Kernel for Convert<'_, E> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            let Self(bytes, out, _) = self;
            let whole = out.len() / LANES * LANES;
            for i in (0..whole).step_by(LANES) {
                // SAFETY: i + 16 <= out.len() values, as many as bytes holds.
                unsafe { E::load::<L>(bytes.as_ptr().add(i * E::SIZE)).store(out.as_mut_ptr().add(i)) };
            }
            for (i, value) in out.iter_mut().enumerate().skip(whole) {
                // SAFETY: i < out.len().
                *value = unsafe { E::get(bytes.as_ptr().add(i * E::SIZE)) };
            }
        }
    }
    // SAFETY: lengths as asserted.
    with_element!(dtype, E => unsafe { isa.run(Convert::<E>(bytes, out, std::marker::PhantomData)) });
}

mod portable {
    use super::{Bf16, Element, F16, F32, LANES, Lanes};

    /// Left to the compiler: four registers on aarch64.
    #[derive(Clone, Copy)]
    pub struct Lanes16([f32; LANES]);

    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    unsafe fn load<E: Element>(from: *const u8) -> Lanes16 {
        // SAFETY: the caller's: sixteen values.
        Lanes16(std::array::from_fn(|i| unsafe { E::get(from.add(i * E::SIZE)) }))
    }

    impl Lanes for Lanes16 {
        const MANY_REGISTERS: bool = false;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self([value; LANES])
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const u8) -> Self {
            // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
            unsafe { load::<F32>(from) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
            unsafe { load::<F16>(from) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
            unsafe { load::<Bf16>(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's: 16 values can be written there, and the processor has the instructions.
            unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            Self(std::array::from_fn(|i| fused(self.0[i], b.0[i], c.0[i])))
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            let a = self.0;
            let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
            let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
            (c[0] + c[1]) + (c[2] + c[3])
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Lanes};
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

    /// Lanes 0 to 7 and 8 to 15.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

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
                let fold8 = |a, b| {
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
                };
                let (ab, cd) = (fold8(a.0, b.0), fold8(c.0, d.0));
                // 8 to 4, then neighbours.
                let v =
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0xb1>(v));
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0x4e>(v));
                let first_of_each = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                let mut sums = [0.0; 4];
                _mm_storeu_ps(
                    sums.as_mut_ptr(),
                    _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_each, v)),
                );
                sums
            }
        }
    }
}
