//! Floating point: `std`'s for what is exact, and the nearest values to the true ones for what the hardware
//! approximates.

macro_rules! exact {
    ($($name:ident = $t:ty, $method:ident;)*) => { $(
        #[inline]
        pub fn $name(x: $t) -> $t {
            x.$method()
        }
    )* };
}

exact! {
    floorf32 = f32, floor;
    floorf64 = f64, floor;
    ceilf32 = f32, ceil;
    ceilf64 = f64, ceil;
    roundf32 = f32, round;
    roundf64 = f64, round;
    round_ties_even_f32 = f32, round_ties_even;
    round_ties_even_f64 = f64, round_ties_even;
    truncf32 = f32, trunc;
    truncf64 = f64, trunc;
}

/// The hardware's NaN: a root or a sum makes no other.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

#[inline]
pub fn sqrtf32(x: f32) -> f32 {
    canonical(x.sqrt())
}

#[inline]
pub fn sqrtf64(x: f64) -> f64 {
    x.sqrt()
}

#[inline]
pub fn fmaf32(a: f32, b: f32, c: f32) -> f32 {
    canonical(a.mul_add(b, c))
}

#[inline]
pub fn fmaf64(a: f64, b: f64, c: f64) -> f64 {
    a.mul_add(b, c)
}

#[inline]
pub fn add_rn(a: f32, b: f32) -> f32 {
    canonical(a + b)
}

#[inline]
pub fn mul_rn(a: f32, b: f32) -> f32 {
    canonical(a * b)
}

#[inline]
pub fn ex2_approx(x: f32) -> f32 {
    canonical(f64::from(x).exp2() as f32)
}

#[inline]
pub fn lg2_approx(x: f32) -> f32 {
    canonical(f64::from(x).log2() as f32)
}

#[inline]
pub fn rsqrt_approx(x: f32) -> f32 {
    canonical((1.0 / f64::from(x).sqrt()) as f32)
}

/// Subnormal numbers are zero, before and after.
#[inline]
pub fn rcp_approx_ftz(x: f32) -> f32 {
    canonical(flush((1.0 / f64::from(flush(x))) as f32))
}

#[inline]
pub fn sin_approx(x: f32) -> f32 {
    canonical(f64::from(x).sin() as f32)
}

#[inline]
pub fn cos_approx(x: f32) -> f32 {
    canonical(f64::from(x).cos() as f32)
}

#[inline]
fn canonical(x: f32) -> f32 {
    if x.is_nan() { NAN } else { x }
}

/// Zero of the same sign for a subnormal number.
#[inline]
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}
