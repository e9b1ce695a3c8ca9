//! What a reference says, and how far a kernel may be from it.

use std::vec::Vec;

/// An exact result and how exactly it can be had.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// In f64.
    pub value: f64,
    /// The largest difference that roundings in f32 explain.
    pub tolerance: f64,
}

/// Half the distance from 1 to the next f32: the relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

impl Expected {
    /// A sum in which every term goes through at most `roundings` roundings, each of at most the sum of the terms' magnitudes.
    pub fn sum(terms: impl IntoIterator<Item = f64>, roundings: usize) -> Self {
        let (mut value, mut magnitude) = (0.0, 0.0);
        for term in terms {
            value += term;
            magnitude += term.abs();
        }
        Self { value, tolerance: roundings as f64 * ROUNDING * magnitude }
    }

    /// A value whose relative error is of at most `roundings` roundings.
    pub fn rounded(value: f64, roundings: usize) -> Self {
        Self { value, tolerance: roundings as f64 * ROUNDING * value.abs() }
    }

    /// The sums of products of the rows of `a` `[m, k]` with those of `b` `[n, k]`, row-major `[m, n]`.
    pub(crate) fn products(a: &[f64], b: &[f64], k: usize, roundings: usize) -> Vec<Self> {
        let product = |a: &[f64], b: &[f64]| Self::sum(core::iter::zip(a, b).map(|(a, b)| a * b), roundings);
        a.chunks(k).flat_map(|a| b.chunks(k).map(move |b| product(a, b))).collect()
    }
}
