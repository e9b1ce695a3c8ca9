//! Floating point functions that `core` does not have.
//!
//! Route on the device: LLVM intrinsics where the hardware has an instruction, the exponential of `exp.rs` on top of them,
//! and the crate `libm` for the rest (rustc links no libdevice, and LLVM cannot select `expf`, `logf`,
//! `sinf`, `powf` for PTX).

use crate::target::{self, math};

/// Floating point functions by Rust-CUDA's names. Those of `std` mean what they mean there.
///
/// # Which NaN
/// For `f32` the methods from [`floor`](Self::floor) to [`exp2`](Self::exp2) give 0x7fff_ffff for every NaN, on
/// the host as on an H200 (the PTX ISA promises no bits). Which NaN the others give is unspecified, as are those of
/// `f64` and of Rust's own operators and inherent methods (`/`, `f32::max`, …); so is the sign of `f32::max` and
/// `f32::min` of two zeros. On the host inherent methods (`x.floor()`) win over this trait's.
pub trait GpuFloat: Copy + PartialOrd {
    /// The largest integer that is not above `self`.
    fn floor(self) -> Self;
    /// The smallest integer that is not below `self`.
    fn ceil(self) -> Self;
    /// The nearest integer; halves go away from zero.
    fn round(self) -> Self;
    /// The nearest integer; halves go to the even one.
    fn round_ties_even(self) -> Self;
    /// The integer part.
    fn trunc(self) -> Self;
    /// What [`trunc`](Self::trunc) cuts off.
    fn fract(self) -> Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `self * a + b`, rounded once: CUDA's name for [`mul_add`](Self::mul_add).
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
    /// The square root, rounded to nearest.
    fn sqrt(self) -> Self;
    /// `1 / sqrt(self)`; for `f32` the approximate instruction, relative error at most 2^-22.9.
    fn rsqrt(self) -> Self;
    /// `e^self`; for `f32` with an error of at most 2 units in the last place.
    fn exp(self) -> Self;
    /// `2^self`; for `f32` the approximate instruction, relative error at most 2^-22.
    fn exp2(self) -> Self;
    /// `e^self - 1`, accurate near zero.
    fn exp_m1(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// `ln(1 + self)`, accurate near zero.
    fn ln_1p(self) -> Self;
    /// The logarithm to the base 2.
    fn log2(self) -> Self;
    /// The logarithm to the base 10.
    fn log10(self) -> Self;
    /// The logarithm to any base.
    fn log(self, base: Self) -> Self;
    /// `self^n`.
    fn powf(self, n: Self) -> Self;
    /// `self^n`.
    fn powi(self, n: i32) -> Self;
    /// The cube root.
    fn cbrt(self) -> Self;
    /// `sqrt(self² + other²)` without overflow on the way.
    fn hypot(self, other: Self) -> Self;
    /// Sine of an angle in radians, for any size of angle.
    fn sin(self) -> Self;
    /// Cosine of an angle in radians, for any size of angle.
    fn cos(self) -> Self;
    /// Sine and cosine.
    fn sin_cos(self) -> (Self, Self);
    /// Tangent.
    fn tan(self) -> Self;
    /// Arc sine.
    fn asin(self) -> Self;
    /// Arc cosine.
    fn acos(self) -> Self;
    /// Arc tangent.
    fn atan(self) -> Self;
    /// The angle of the point (`other`, `self`).
    fn atan2(self, other: Self) -> Self;
    /// Hyperbolic sine.
    fn sinh(self) -> Self;
    /// Hyperbolic cosine.
    fn cosh(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Inverse of [`sinh`](Self::sinh).
    fn asinh(self) -> Self;
    /// Inverse of [`cosh`](Self::cosh).
    fn acosh(self) -> Self;
    /// Inverse of [`tanh`](Self::tanh).
    fn atanh(self) -> Self;
}

/// What the hardware has for `f32` beside `std`'s functions: quick approximations, and operations that are
/// not fused. Every NaN that they give is 0x7fff_ffff, as on an H200.
pub trait GpuFloatIntrinsics {
    /// `self + other`, never fused with a product (a plain `a * b + c` is, in kernels).
    fn add_rn(self, other: f32) -> f32;
    /// `self * other`, never fused with a sum.
    fn mul_rn(self, other: f32) -> f32;
    /// `1 / self`: relative error at most 2^-23 or so; values below 2^-126 count as zero.
    fn recip_approx(self) -> f32;
    /// `2^self`: relative error at most 2^-22 or so, without what [`exp2`](GpuFloat::exp2) does for subnormal numbers: they
    /// count as zero, before and after.
    fn exp2_approx(self) -> f32;
    /// `e^self` as `2^(self · log2 e)`: relative error about 2^-21 near zero, growing with `|self|`.
    fn exp_approx(self) -> f32;
    /// The natural logarithm, as `log2_approx(self) · ln 2`: its errors, so not for arguments near 1.
    fn ln_approx(self) -> f32;
    /// The logarithm to the base 2: absolute error at most 2^-22 for arguments between 0.5 and 2, relative error at
    /// most 2^-22 for all others (PTX ISA). That includes subnormal ones, of which the hardware takes the logarithm
    /// of a multiple and rounds once more: an H200 was seen a unit in the last place off.
    fn log2_approx(self) -> f32;
    /// Sine: absolute error 2^-20.9 in [-π, π], and useless far outside.
    fn sin_approx(self) -> f32;
    /// Cosine: absolute error 2^-20.9 in [-π, π], and useless far outside.
    fn cos_approx(self) -> f32;
}

impl GpuFloatIntrinsics for f32 {
    #[inline(always)]
    fn add_rn(self, other: f32) -> f32 {
        target::add_rn(self, other)
    }

    #[inline(always)]
    fn mul_rn(self, other: f32) -> f32 {
        target::mul_rn(self, other)
    }

    #[inline(always)]
    fn recip_approx(self) -> f32 {
        target::rcp_approx_ftz(self)
    }

    #[inline(always)]
    fn exp2_approx(self) -> f32 {
        target::ex2_approx_ftz(self)
    }

    #[inline(always)]
    fn exp_approx(self) -> f32 {
        target::ex2_approx(self * core::f32::consts::LOG2_E)
    }

    #[inline(always)]
    fn ln_approx(self) -> f32 {
        math::canonical(target::lg2_approx(self) * core::f32::consts::LN_2)
    }

    #[inline(always)]
    fn log2_approx(self) -> f32 {
        target::lg2_approx(self)
    }

    #[inline(always)]
    fn sin_approx(self) -> f32 {
        target::sin_approx(self)
    }

    #[inline(always)]
    fn cos_approx(self) -> f32 {
        target::cos_approx(self)
    }
}

// A closure: the device's intrinsics are no Rust functions.
#[allow(clippy::redundant_closure)]
#[inline(always)]
fn exp(x: f32) -> f32 {
    math::canonical(crate::exp::exp(x, fma, |x| target::ex2_approx(x)))
}

#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    math::fmaf32(a, b, c)
}

macro_rules! by {
    ($($name:ident($($argument:ident),*) = $function:path;)*) => { $(
        #[inline(always)]
        fn $name(self $(, $argument: Self)*) -> Self {
            $function(self $(, $argument)*)
        }
    )* };
}

impl GpuFloat for f32 {
    by! {
        floor() = math::floorf32;
        ceil() = math::ceilf32;
        round() = math::roundf32;
        round_ties_even() = math::round_ties_even_f32;
        trunc() = math::truncf32;
        mul_add(a, b) = fma;
        sqrt() = math::sqrtf32;
        rsqrt() = target::rsqrt_approx;
        exp() = exp;
        exp2() = target::ex2_approx;
        exp_m1() = libm::expm1f;
        ln() = libm::logf;
        ln_1p() = libm::log1pf;
        log2() = libm::log2f;
        log10() = libm::log10f;
        powf(n) = libm::powf;
        cbrt() = libm::cbrtf;
        hypot(other) = libm::hypotf;
        sin() = libm::sinf;
        cos() = libm::cosf;
        tan() = libm::tanf;
        asin() = libm::asinf;
        acos() = libm::acosf;
        atan() = libm::atanf;
        atan2(other) = libm::atan2f;
        sinh() = libm::sinhf;
        cosh() = libm::coshf;
        tanh() = libm::tanhf;
        asinh() = libm::asinhf;
        acosh() = libm::acoshf;
        atanh() = libm::atanhf;
    }

    #[inline(always)]
    fn fract(self) -> Self {
        math::canonical(self - GpuFloat::trunc(self))
    }

    #[inline(always)]
    fn log(self, base: Self) -> Self {
        GpuFloat::ln(self) / GpuFloat::ln(base)
    }

    #[inline(always)]
    fn powi(self, n: i32) -> Self {
        power(self, n, 1.0)
    }

    #[inline(always)]
    fn sin_cos(self) -> (Self, Self) {
        libm::sincosf(self)
    }
}

impl GpuFloat for f64 {
    by! {
        floor() = math::floorf64;
        ceil() = math::ceilf64;
        round() = math::roundf64;
        round_ties_even() = math::round_ties_even_f64;
        trunc() = math::truncf64;
        mul_add(a, b) = math::fmaf64;
        sqrt() = math::sqrtf64;
        exp() = libm::exp;
        exp2() = libm::exp2;
        exp_m1() = libm::expm1;
        ln() = libm::log;
        ln_1p() = libm::log1p;
        log2() = libm::log2;
        log10() = libm::log10;
        powf(n) = libm::pow;
        cbrt() = libm::cbrt;
        hypot(other) = libm::hypot;
        sin() = libm::sin;
        cos() = libm::cos;
        tan() = libm::tan;
        asin() = libm::asin;
        acos() = libm::acos;
        atan() = libm::atan;
        atan2(other) = libm::atan2;
        sinh() = libm::sinh;
        cosh() = libm::cosh;
        tanh() = libm::tanh;
        asinh() = libm::asinh;
        acosh() = libm::acosh;
        atanh() = libm::atanh;
    }

    #[inline(always)]
    fn rsqrt(self) -> Self {
        1.0 / math::sqrtf64(self)
    }

    #[inline(always)]
    fn fract(self) -> Self {
        self - GpuFloat::trunc(self)
    }

    #[inline(always)]
    fn log(self, base: Self) -> Self {
        GpuFloat::ln(self) / GpuFloat::ln(base)
    }

    #[inline(always)]
    fn powi(self, n: i32) -> Self {
        power(self, n, 1.0)
    }

    #[inline(always)]
    fn sin_cos(self) -> (Self, Self) {
        libm::sincos(self)
    }
}

/// `x^n` by squaring; `one` is 1.
#[inline(always)]
fn power<T: Copy + core::ops::Mul<Output = T> + core::ops::Div<Output = T>>(x: T, n: i32, one: T) -> T {
    let (mut square, mut left, mut result) = (x, n.unsigned_abs(), one);
    while left != 0 {
        if left & 1 == 1 {
            result = result * square;
        }
        square = square * square;
        left >>= 1;
    }
    if n < 0 { one / result } else { result }
}
