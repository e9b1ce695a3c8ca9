//! The exponential function for `f32`, apart from the device so that the host can test it.

/// `e^x` in about ten instructions, from a fused multiply-add and a `2^x` for `|x| <= 0.5`.
///
/// With `n` the integer nearest to `x / ln 2`, `e^x = 2^n · 2^((x - n ln 2) / ln 2)`; `n ln 2` is subtracted
/// in two parts so that the remainder keeps its bits, and only the remainder goes through the approximate
/// `2^x`.
#[inline(always)]
pub fn exp(x: f32, fma: impl Fn(f32, f32, f32) -> f32, exp2: impl Fn(f32) -> f32) -> f32 {
    // ln 2 as a float with 12 trailing zero bits, so that `n * LN_2_HIGH` is exact, and the rest.
    const LN_2_HIGH: f32 = f32::from_bits(0x3f31_7000);
    const LN_2_LOW: f32 = 3.194_618_3e-5;
    // Adding 1.5 · 2^23 leaves no bits for a fraction: the sum's low bits are the rounded integer n.
    const SHIFT: f32 = 12_582_912.0;
    // Beyond these the result is infinite or zero anyway, and n stays in range. A NaN passes `clamp` as it
    // is.
    let x = x.clamp(-105.0, 89.0);
    let shifted = fma(x, core::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = fma(-n, LN_2_LOW, fma(-n, LN_2_HIGH, x));
    // 2^n in two factors: n reaches -151 and 128, beyond the exponents of normal numbers.
    let n = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).cast_signed();
    let half = n >> 1;
    let rest = n.wrapping_sub(half);
    let power = |e: i32| f32::from_bits(e.wrapping_add(127).cast_unsigned() << 23);
    exp2(r * core::f32::consts::LOG2_E) * power(half) * power(rest)
}

#[cfg(test)]
mod tests {
    extern crate std;

    fn exp(x: f32) -> f32 {
        super::exp(x, f32::mul_add, f32::exp2)
    }

    /// Distance from the true value in units of the last place of a result of its size.
    fn error_in_ulps(x: f32) -> f64 {
        let expected = f64::from(x).exp();
        let exponent = (expected.log2().floor() as i32).max(-126);
        (f64::from(exp(x)) - expected).abs() / (f64::from(exponent) - 23.0).exp2()
    }

    #[test]
    fn is_within_two_units_in_the_last_place() {
        // From e^-104 = 0 through the subnormal results to the largest finite one, in steps that hit no
        // pattern.
        let mut x = -104.0_f32;
        while x < 88.7 {
            let error = error_in_ulps(x);
            // The other half unit is for the device's `ex2.approx`.
            assert!(error <= 1.5, "{error} units at {x}");
            x += 0.000_713_1;
        }
    }

    #[test]
    fn keeps_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.5), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
