//! The arithmetic of `mma.sync` with `f32` sums.
//!
//! NVIDIA does not specify it. What is known was found by probing: Fasi, Higham, Mikaitis and Pranesh, "Numerical
//! behavior of NVIDIA tensor cores" (PeerJ Computer Science, 2021) for V100, T4 and A100; Li et al., "FTTN:
//! feature-targeted testing for numerical properties of NVIDIA and AMD matrix accelerators" (2024) and Khattak
//! and Mikaitis, "Accurate models of NVIDIA tensor cores" (2025) for Hopper. Products are exact. The products of
//! a block and the running sum are aligned to the largest exponent among them, cut off below a fixed number of
//! bits, and added as integers; the sum is cut off to `f32`, toward zero.

use half::{bf16, f16};

/// Products that are added at once with the running sum.
pub const BLOCK_PRODUCTS: usize = 16;
/// Bits kept below the last place of an `f32` with the largest exponent; Hopper has 2, A100 has 1.
pub const EXTRA_BITS: i32 = 2;

/// Formats of `a` and `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F16,
    Bf16,
}

impl Format {
    fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// How the tensor cores add, as far as it differs between generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Products that are added at once with the running sum.
    pub block_products: usize,
    /// Bits kept below the last place of an `f32` with the largest exponent.
    pub extra_bits: i32,
}

/// What is emulated.
pub const HOPPER: Model = Model { block_products: BLOCK_PRODUCTS, extra_bits: EXTRA_BITS };

/// `d = a · b + c` of a warp, `depth` 8 or 16: each lane's words a, b, c in, d out, in the fragments' layout.
pub fn multiply(model: Model, format: Format, depth: usize, words: &[[u32; 10]; 32]) -> [[u32; 4]; 32] {
    let a_words = depth / 4;
    let b_words = depth / 8;
    let half = |word: u32, high: usize| format.widen((word >> (16 * high)) as u16);
    let mut d = [[0; 4]; 32];
    for (lane, d) in d.iter_mut().enumerate() {
        for (i, d) in d.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let mut products = [(0.0, 0.0); 16];
            for (k, product) in products[..depth].iter_mut().enumerate() {
                // Which lane and word hold a[row][k] and b[k][column].
                let a = words[4 * (row % 8) + k % 8 / 2][row / 8 + 2 * (k / 8)];
                let b = words[4 * column + k % 8 / 2][a_words + k / 8];
                *product = (half(a, k % 2), half(b, k % 2));
            }
            let mut sum = f32::from_bits(words[lane][a_words + b_words + i]);
            for block in products[..depth].chunks(model.block_products) {
                sum = add_block(model, sum, block);
            }
            *d = sum.to_bits();
        }
    }
    d
}

/// `d = a · b + c` of a warp in TF32, `depth` 8: words as for [`multiply`], a number each, of which the last 13 bits are cut off.
pub fn multiply_tf32(model: Model, words: &[[u32; 10]; 32]) -> [[u32; 4]; 32] {
    let number = |word: u32| f32::from_bits(word & !0x1fff);
    let mut d = [[0; 4]; 32];
    for (lane, d) in d.iter_mut().enumerate() {
        for (i, d) in d.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let mut products = [(0.0, 0.0); 8];
            for (k, product) in products.iter_mut().enumerate() {
                // Which lane and word hold a[row][k] and b[k][column].
                let a = words[4 * (row % 8) + k % 4][row / 8 + 2 * (k / 4)];
                let b = words[4 * column + k % 4][4 + k / 4];
                *product = (number(a), number(b));
            }
            *d = add_block(model, f32::from_bits(words[lane][6 + i]), &products).to_bits();
        }
    }
    d
}

/// `d = a · b + c` of a warp in signed bytes with i32 sums, `depth` 16 or 32: words as for [`multiply`]. Exact, and wraps.
pub fn multiply_integers(depth: usize, words: &[[u32; 10]; 32]) -> [[u32; 4]; 32] {
    let (a_words, b_words) = (depth / 8, depth / 16);
    let byte = |word: u32, i: usize| i32::from((word >> (8 * i)) as i8);
    let mut d = [[0; 4]; 32];
    for (lane, d) in d.iter_mut().enumerate() {
        for (i, d) in d.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let sum = words[lane][a_words + b_words + i] as i32;
            *d = (0..depth).fold(sum, |sum, k| {
                // Which lane and word hold a[row][k] and b[k][column].
                let a = words[4 * (row % 8) + k % 16 / 4][row / 8 + 2 * (k / 16)];
                let b = words[4 * column + k % 16 / 4][a_words + k / 16];
                sum.wrapping_add(byte(a, k % 4) * byte(b, k % 4))
            }) as u32;
        }
    }
    d
}

/// `sum` and the products of `a` and `b`, a block after the other.
pub fn add_products(model: Model, format: Format, sum: f32, a: &[u16], b: &[u16]) -> f32 {
    let mut products = [(0.0, 0.0); BLOCK_PRODUCTS];
    let blocks = a.chunks(model.block_products).zip(b.chunks(model.block_products));
    blocks.fold(sum, |sum, (a, b)| {
        let products = &mut products[..a.len()];
        for (product, (a, b)) in products.iter_mut().zip(a.iter().zip(b)) {
            *product = (format.widen(*a), format.widen(*b));
        }
        add_block(model, sum, products)
    })
}

/// The running sum and a block of products, added as the tensor cores do.
fn add_block(model: Model, sum: f32, products: &[(f32, f32)]) -> f32 {
    // A product of two 11-bit significands fits f64 exactly, bf16's range included.
    let terms = || products.iter().map(|&(a, b)| f64::from(a) * f64::from(b)).chain([f64::from(sum)]);
    if terms().any(|term| !term.is_finite()) {
        let (mut plus, mut minus, mut nan) = (false, false, false);
        for term in terms() {
            plus |= term == f64::INFINITY;
            minus |= term == f64::NEG_INFINITY;
            nan |= term.is_nan();
        }
        return match (nan || plus && minus, plus) {
            // The only NaN that the hardware makes.
            (true, _) => f32::from_bits(0x7fff_ffff),
            (false, true) => f32::INFINITY,
            (false, false) => f32::NEG_INFINITY,
        };
    }
    let Some(largest) = products
        .iter()
        .filter(|(a, b)| *a != 0.0 && *b != 0.0)
        // The product's exponent before it is normalised: significands in [1, 2) give one in [1, 4).
        .map(|&(a, b)| exponent(a.into()) + exponent(b.into()))
        .chain((sum != 0.0).then(|| exponent(sum.into()).max(-126)))
        .max()
    else {
        return 0.0;
    };
    let unit = largest - 23 - model.extra_bits;
    // Cut off toward zero, one by one; at most 17 terms below 2^(2 + 23 + EXTRA_BITS) fit easily.
    let total: i64 = terms().map(|term| scale(term, -unit) as i64).sum();
    truncate(total, unit)
}

/// The exponent of a finite number that is not 0, as if it were normalised.
fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// `value · 2^by`, exactly: two steps, since one factor may be out of range.
fn scale(value: f64, by: i32) -> f64 {
    let power = |e: i32| f64::from_bits(((e + 1023) as u64) << 52);
    value * power(by / 2) * power(by - by / 2)
}

/// `total · 2^unit` as an `f32`, rounded toward zero.
fn truncate(total: i64, unit: i32) -> f32 {
    if total == 0 {
        return 0.0;
    }
    let magnitude = total.unsigned_abs();
    let top = 63 - magnitude.leading_zeros() as i32;
    // The last place of the result, subnormal results included.
    let place = (top + unit - 23).max(-149);
    let shift = place - unit;
    let kept = if shift > 0 { magnitude >> shift.min(63) << shift.min(63) } else { magnitude };
    let value = scale(kept as f64, unit);
    let value = if value >= f64::from(f32::MAX) * (1.0 + f64::from(f32::EPSILON) / 4.0) {
        f32::INFINITY
    } else {
        value as f32
    };
    if total < 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(sum: f32, products: &[(f32, f32)]) -> f32 {
        add_block(HOPPER, sum, products)
    }

    #[test]
    fn small_products_are_cut_off_one_by_one_and_the_sum_once_more() {
        let small = |e: i32| [(2f32.powi(e), 0.5); 16];
        // 2^-25 is the last bit that is kept beside 1: four of them make a last place.
        assert_eq!(add(1.0, &small(-24)[..3]), 1.0);
        assert_eq!(add(1.0, &small(-24)[..4]), 1.0 + f32::EPSILON);
        assert_eq!(add(1.0, &small(-25)), 1.0);
        // Toward zero on both sides.
        assert_eq!(add(-1.0, &small(-24)[..3]), -1.0 + f32::EPSILON);
        assert_eq!(add(-1.0, &[(-2f32.powi(-24), 1.0)]), -1.0);
    }

    #[test]
    fn special_values_are_as_in_ieee_754_with_one_nan() {
        let (infinity, nan) = (f32::INFINITY, 0x7fff_ffff);
        assert_eq!(add(0.0, &[(infinity, -1.0)]), -infinity);
        assert_eq!(add(0.0, &[(infinity, 0.0)]).to_bits(), nan);
        assert_eq!(add(infinity, &[(-infinity, 1.0)]).to_bits(), nan);
        assert_eq!(add(f32::MAX, &[(f32::MAX, 1.0)]), infinity);
        assert_eq!(add(0.0, &[(-0.0, 1.0), (1.0, 0.0)]).to_bits(), 0);
        // Subnormal sums are exact.
        assert_eq!(add(f32::from_bits(3), &[(2f32.powi(-140), 2f32.powi(-9))]).to_bits(), 4);
        assert_eq!(add(1.0, &[(3.0, 5.0), (-2.0, 8.0)]).to_bits(), 0);
    }
}
