//! Sixteen f32 lanes on every processor, and the choice of instructions at run time.
//!
//! Every sum in [`crate::cpu`] is kept in sixteen lanes that are folded in one fixed order, whatever the width of the
//! registers below, so that AVX-512, AVX2 and the portable code give the same bits (the portable code needs a fused
//! multiply-add in hardware for that; where there is none it multiplies and adds).

pub(super) mod portable;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use super::int8::codes::{Bytes64, Codes};
use super::int8::dot::Dot;
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
    /// x86-64 with AVX-512BW and VNNI besides, for products of integers; floats are computed as with [`Instructions::Avx512`].
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
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
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
                    isas.push(Self(Instructions::Avx512Vnni));
                }
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
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => "AVX-512 with VNNI",
        }
    }

    /// As [`Isa::run`] for products of integers. AVX-512 without VNNI has nothing for them that AVX2 has not.
    ///
    /// # Safety
    /// Whatever the kernel demands besides its instructions.
    pub(super) unsafe fn run_dot<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: only instructions that were detected have a value; the caller vouches for the kernel.
        unsafe {
            match self.0 {
                Instructions::Portable => kernel.run::<portable::Lanes16>(),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 | Instructions::Avx512 => x86::run_dot_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Vnni => x86::run_dot_vnni(kernel),
            }
        }
    }

    /// As [`Isa::run`] for unpacking codes.
    ///
    /// # Safety
    /// Whatever the kernel demands besides its instructions.
    pub(super) unsafe fn run_codes<K: CodesKernel>(self, kernel: K) -> K::Output {
        // SAFETY: only instructions that were detected have a value; the caller vouches for the kernel.
        unsafe {
            match self.0 {
                Instructions::Portable => kernel.run::<Bytes64>(),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 | Instructions::Avx512 => x86::run_codes_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Vnni => x86::run_codes_avx512(kernel),
            }
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
                Instructions::Avx512 | Instructions::Avx512Vnni => x86::run_avx512(kernel),
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

/// As [`Kernel`], over [`Dot`].
pub(super) trait DotKernel {
    type Output;

    /// As [`Kernel::run`].
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn run<D: Dot>(self) -> Self::Output;
}

/// As [`Kernel`], over [`Codes`].
pub(super) trait CodesKernel {
    type Output;

    /// As [`Kernel::run`].
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn run<C: Codes>(self) -> Self::Output;
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
    /// Of integers of eight bits.
    unsafe fn load_i8(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Asks for the cache line at `address`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
    unsafe fn mul(self, b: Self) -> Self;
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

/// Writes the first `len` values of `from` to `to`.
///
/// # Safety
/// The processor has the instructions of `L`; `from` has so many values, and there is room for them.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes, E: Element>(from: &[u8], to: *mut f32, len: usize) {
    let whole = len / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: i + 16 <= len.
        unsafe { E::load::<L>(from.as_ptr().add(i * E::SIZE)).store(to.add(i)) };
    }
    for i in whole..len {
        // SAFETY: i < len.
        unsafe { *to.add(i) = E::get(from.as_ptr().add(i * E::SIZE)) };
    }
}

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
            // SAFETY: bytes holds as many values as there are of `out`.
            unsafe { widen::<L, E>(bytes, out.as_mut_ptr(), out.len()) }
        }
    }
    // SAFETY: lengths as asserted.
    with_element!(dtype, E => unsafe { isa.run(Convert::<E>(bytes, out, std::marker::PhantomData)) });
}
