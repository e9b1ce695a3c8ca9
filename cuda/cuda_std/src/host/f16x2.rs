//! Two f16 at once, on the host.

use half::f16;

/// The only NaN that the hardware's instructions for f16 make.
const NAN: u16 = 0x7fff;

/// What `f` makes of each half, where rounding it to f16 is the only rounding.
fn halves<const N: usize>(words: [u32; N], f: impl Fn([f64; N]) -> f64) -> u32 {
    let half = |shift: u32| {
        let value = f(words.map(|word| f16::from_bits((word >> shift) as u16).to_f64()));
        u32::from(if value.is_nan() { NAN } else { narrow(value) })
    };
    half(0) | half(16) << 16
}

/// The nearest f16, of two the even one. By way of an f32 that is cut off, and odd where something was: `f16::from_f64` does not look at the
/// lowest bits.
fn narrow(value: f64) -> u16 {
    let nearest = value as f32;
    let bits = match f64::from(nearest) {
        exact if exact == value => nearest.to_bits(),
        larger if larger.abs() > value.abs() => (nearest.to_bits() - 1) | 1,
        _ => nearest.to_bits() | 1,
    };
    f16::from_f32(f32::from_bits(bits)).to_bits()
}

/// Differences of f16 are exact in f64.
pub fn sub(a: u32, b: u32) -> u32 {
    halves([a, b], |[a, b]| a - b)
}

/// So are products.
pub fn mul(a: u32, b: u32) -> u32 {
    halves([a, b], |[a, b]| a * b)
}

/// And sums of both: a product of 22 bits that f16 holds has its last one at 2^-6 or below, `c` at 2^-24 or above. Only where `c` is more than
/// 2^28 times the product something may be lost, and then all of the product is.
pub fn mul_add(a: u32, b: u32, c: u32) -> u32 {
    halves([a, b, c], |[a, b, c]| a * b + c)
}

pub fn bytes(low: u32, high: u32, selector: u32) -> u32 {
    let all = u64::from(high) << 32 | u64::from(low);
    let byte = |which: u32| {
        let byte = (all >> (8 * (which & 7))) as u8;
        if which & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    (0..4).map(|i| u32::from(byte(selector >> (4 * i))) << (8 * i)).sum()
}

pub fn masked(word: u32, mask: u32, bits: u32) -> u32 {
    word & mask | bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(low: f32, high: f32) -> u32 {
        u32::from(f16::from_f32(low).to_bits()) | u32::from(f16::from_f32(high).to_bits()) << 16
    }

    #[test]
    fn halves_are_computed_apart() {
        assert_eq!(sub(pair(1152.0, 3.0), pair(1024.0, 5.0)), pair(128.0, -2.0));
        assert_eq!(mul(pair(3.0, -2.0), pair(0.5, 8.0)), pair(1.5, -16.0));
        assert_eq!(mul_add(pair(3.0, -2.0), pair(0.5, 8.0), pair(1.0, 0.25)), pair(2.5, -15.75));
    }

    #[test]
    fn a_sum_is_rounded_once() {
        let both = |value: f32| pair(value, value);
        // 1 + 2^-11 + 2^-21: a little more than the middle between two f16, which the product rounded by itself is.
        let little = 2f32.powi(-11) * (1.0 + 2f32.powi(-10));
        assert_eq!(mul_add(both(little), both(1.0), both(1.0)), both(1.0 + 2f32.powi(-10)));
        // 48 * 683 = 32784 is the middle of 32768 and 32800; the smallest f16 more is beyond it.
        let smallest = f32::from(f16::from_bits(1));
        assert_eq!(mul_add(both(48.0), both(683.0), both(0.0)), both(32768.0));
        assert_eq!(mul_add(both(48.0), both(683.0), both(smallest)), both(32800.0));
        assert_eq!(mul(both(65504.0), both(2.0)), both(f32::INFINITY));
        assert_eq!(sub(both(f32::INFINITY), both(f32::INFINITY)), 0x7fff_7fff);
    }

    #[test]
    fn bytes_are_taken_from_both() {
        assert_eq!(bytes(0x3322_1100, 0x7766_5544, 0x4140), 0x4411_4400);
        assert_eq!(bytes(0x3322_1100, 0x7766_5544, 0x7531), 0x7755_3311);
        assert_eq!(bytes(0x3382_1100, 0, 0xaaa2), 0xffff_ff82);
        assert_eq!(bytes(0x3382_1100, 0, 0xbbb3), 0x33);
        assert_eq!(masked(0x3322_1100, 0x000f_000f, 0x6400_6400), 0x6402_6400);
    }
}
