//! `eˣ` in f32 as the compiler makes lanes of it: no branches, no table, no call.
//!
//! Source: Moshier, Cephes mathematical library, `expf` (the coefficients); Cody and Waite, Software Manual for the Elementary
//! Functions (1980).

/// `eˣ`, off by less than two units in the last place. Below -87 what it is there, about 2^-126; from 88 on what it is there. Products and sums are
/// rounded one by one, so that all instructions give the same bits.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "as published")]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    /// `1.5 * 2^23`: what is added to it is rounded to an integer, its low bits.
    const ROUND: f32 = 12_582_912.0;
    /// The upper bits of `ln 2`, whose products with small integers are exact, and the rest.
    const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 6] = [
        1.987_569_15e-4,
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ];
    // NaN is neither.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let twos = rounded - ROUND;
    let r = x - twos * LN_2[0] - twos * LN_2[1];
    let series = COEFFICIENTS.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = series * (r * r) + r + 1.0;
    f32::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, Kernel, Lanes};

    #[test]
    fn all_values_are_near_those_in_f64() {
        let mut farthest = 0.0;
        for i in 0..=1_750_000 {
            let x = -87.0 + i as f32 * 1e-4;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            farthest = f64::max(farthest, (found - exact).abs() / (exact * f64::from(f32::EPSILON)));
        }
        assert!(farthest < 2.0, "{farthest}");
    }

    #[test]
    fn ends_are_small_and_large_and_nan_stays() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert!(exp(-87.0) > 0.0 && exp(-87.0) < 2e-38);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(88.0) > 1.6e38 && exp(88.0).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!((silu(0.0), silu(200.0)), (0.0, 200.0));
        assert!(silu(-200.0).abs() < 1e-35 && silu(f32::NAN).is_nan());
    }

    #[test]
    fn all_instructions_give_the_same_bits() {
        struct All<'a>(&'a mut [f32]);
        impl Kernel for All<'_> {
            type Output = ();

            #[inline(always)]
            unsafe fn run<L: Lanes>(self) {
                self.0.iter_mut().for_each(|x| *x = exp(*x));
            }
        }
        let x: Vec<f32> = (0..10_007).map(|i| (i as f32 - 5000.0) * 0.0173).collect();
        let expected: Vec<u32> = x.iter().map(|&x| exp(x).to_bits()).collect();
        for isa in Isa::available() {
            let mut found = x.clone();
            // SAFETY: it demands nothing but its instructions.
            unsafe { isa.run(All(&mut found)) };
            assert!(found.iter().map(|x| x.to_bits()).eq(expected.iter().copied()), "{isa:?}");
        }
    }
}
