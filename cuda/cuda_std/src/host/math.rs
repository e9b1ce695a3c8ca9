//! Floating point: `std`'s for what is exact, and the nearest values to the true ones for what the hardware
//! approximates.

/// The only NaN that the hardware's instructions for `f32` make. The PTX ISA leaves it open; an H200 gives this one.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// The hardware's NaN for any other.
#[inline]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { NAN } else { x }
}

macro_rules! roundings {
    ($($single:ident, $double:ident = $method:ident;)*) => { $(
        #[inline]
        pub fn $single(x: f32) -> f32 {
            canonical(x.$method())
        }

        #[inline]
        pub fn $double(x: f64) -> f64 {
            x.$method()
        }
    )* };
}

roundings! {
    floorf32, floorf64 = floor;
    ceilf32, ceilf64 = ceil;
    roundf32, roundf64 = round;
    round_ties_even_f32, round_ties_even_f64 = round_ties_even;
    truncf32, truncf64 = trunc;
}

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

/// `max.f32`: a number before a NaN, and +0 is larger than -0.
#[inline]
pub fn maxf32(a: f32, b: f32) -> f32 {
    // What is equal has the same bits, zeros of different sign apart.
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { canonical(a.max(b)) }
}

/// `min.f32`, as [`maxf32`].
#[inline]
pub fn minf32(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { canonical(a.min(b)) }
}

#[inline]
pub fn ex2_approx(x: f32) -> f32 {
    canonical(f64::from(x).exp2() as f32)
}

/// Subnormal numbers are zero, before and after.
#[inline]
pub fn ex2_approx_ftz(x: f32) -> f32 {
    canonical(flush(f64::from(flush(x)).exp2() as f32))
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

/// Zero of the same sign for a subnormal number.
#[inline]
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// See [`crate::mma::dot4_s8`].
#[inline]
pub fn dot4_s8(a: u32, b: u32, c: i32) -> i32 {
    let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    products.fold(c, |sum, (a, b)| sum.wrapping_add(i32::from(a as i8) * i32::from(b as i8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_and_min_have_the_bits_of_an_h200() {
        let nans = [f32::from_bits(0xffd4_605a), f32::from_bits(0x7fec_0a3f), f32::from_bits(0x7f80_0001)];
        for nan in nans {
            assert_eq!(
                [maxf32(nan, -1.0), maxf32(-1.0, nan), minf32(nan, -1.0), minf32(-1.0, nan)],
                [-1.0; 4]
            );
            for other in nans {
                assert_eq!([maxf32(nan, other), minf32(nan, other)].map(f32::to_bits), [0x7fff_ffff; 2]);
            }
        }
        for (a, b) in [(0.0, -0.0), (-0.0, 0.0)] {
            assert_eq!([maxf32(a, b), minf32(a, b)].map(f32::to_bits), [0, 0x8000_0000]);
        }
        assert_eq!([maxf32(-2.0, -2.0), minf32(-2.0, 3.0), maxf32(-2.0, 3.0)], [-2.0, -2.0, 3.0]);
    }
}
