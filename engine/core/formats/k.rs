//! What formats of 256 values share: sub-blocks whose scales are themselves small integers, times the scale of the whole.

use super::fit::{around, line, minimum, scale, weigh, within};
use super::{inverse, largest, put_half};

/// `N` sub-blocks of values `d * scale * q - dmin * min`, as they are encoded.
pub(super) struct Affine<const N: usize> {
    d: f32,
    dmin: f32,
    pub scales: [u8; N],
    pub mins: [u8; N],
    /// The largest `q`; the least is 0.
    levels: f32,
}

impl<const N: usize> Affine<N> {
    /// Each sub-block has `levels` steps, up from its minimum, which is 0 at most; scales and minima reach up to `top`. `d` and `dmin` become
    /// the f16 at byte `at` of the block and behind it.
    #[inline(always)]
    pub fn fit(
        values: &[f32],
        importance: Option<&[f32]>,
        [levels, top]: [f32; 2],
        block: &mut [u8],
        at: usize,
    ) -> Self {
        let weights = weigh(values, importance);
        let size = values.len() / N;
        let [mut exact_scales, mut exact_mins, mut sums] = [[0.0; N]; 3];
        let sub_blocks = values.chunks_exact(size).zip(weights.chunks_exact(size));
        for (b, (values, weights)) in sub_blocks.enumerate() {
            let (d, m) = line(values, weights, levels, 0.0);
            (exact_scales[b], exact_mins[b], sums[b]) = (d, -m, weights.iter().sum());
        }
        let fit = |exact: [f32; N], block: &mut [u8], at: usize| {
            let inverses = around(top, 4, 0.25).map(|steps| steps * inverse(largest(&exact)));
            let step = put_half(block, at, scale(&exact, &sums, inverses, within(0.0, top)));
            let inverse = inverse(step);
            (step, exact.map(|exact| within(0.0, top)(exact * inverse) as u8))
        };
        let (d, scales) = fit(exact_scales, block, at);
        // Minima that make up for what the rounding of the scales did.
        for (b, (values, weights)) in values.chunks_exact(size).zip(weights.chunks_exact(size)).enumerate() {
            let step = d * f32::from(scales[b]);
            exact_mins[b] = -minimum(values, weights, step, levels, -exact_mins[b]).min(0.0);
        }
        let (dmin, mins) = fit(exact_mins, block, at + 2);
        Self { d, dmin, scales, mins, levels }
    }

    /// `q` for a value of sub-block `b`.
    #[inline(always)]
    pub fn quantum(&self, b: usize, value: f32) -> u8 {
        let inverse = inverse(self.d * f32::from(self.scales[b]));
        let above = value + self.dmin * f32::from(self.mins[b]);
        within(0.0, self.levels)(above * inverse) as u8
    }
}

/// `N` sub-blocks of values `d * scale * q` with signed scales, as they are encoded.
pub(super) struct Symmetric<const N: usize> {
    d: f32,
    pub scales: [i8; N],
}

/// How `q` is found.
#[derive(Clone, Copy)]
pub(super) struct Codes<R> {
    /// The lowest `q`, to which the value of the largest magnitude goes or nearly, and the highest, to which it may go as well.
    pub extremes: [f32; 2],
    /// How far apart the steps are that are tried.
    pub apart: f32,
    /// The nearest `q`.
    pub round: R,
}

impl<R: Fn(f32) -> f32> Codes<R> {
    /// The `d` of values `d * q`.
    #[inline(always)]
    pub fn scale(&self, values: &[f32], weights: &[f32]) -> f32 {
        let [lowest, highest] = self.extremes;
        let largest = inverse(largest(values));
        let steps = around(lowest, 9, self.apart).chain([highest]);
        scale(values, weights, steps.map(|steps| steps * largest), &self.round)
    }
}

impl<const N: usize> Symmetric<N> {
    /// Scales reach from `-top` to `top - 1`. `d` becomes the f16 at byte `at` of the block.
    #[inline(always)]
    pub fn fit(
        values: &[f32],
        importance: Option<&[f32]>,
        codes: &Codes<impl Fn(f32) -> f32>,
        top: f32,
        block: &mut [u8],
        at: usize,
    ) -> Self {
        let weights = weigh(values, importance);
        let size = values.len() / N;
        let [mut exact, mut sums] = [[0.0; N]; 2];
        let sub_blocks = values.chunks_exact(size).zip(weights.chunks_exact(size));
        for (b, (values, weights)) in sub_blocks.enumerate() {
            exact[b] = codes.scale(values, weights);
            sums[b] = weights.iter().sum();
        }
        let inverses = around(-top, 4, 0.25).map(|steps| steps * inverse(largest(&exact)));
        let round = within(-top, top - 1.0);
        let d = put_half(block, at, scale(&exact, &sums, inverses, &round));
        let inverse = inverse(d);
        Self { d, scales: exact.map(|exact| round(exact * inverse) as i8) }
    }

    /// `value` in steps of sub-block `b`, not rounded.
    #[inline(always)]
    pub fn steps(&self, b: usize, value: f32) -> f32 {
        value * inverse(self.d * f32::from(self.scales[b]))
    }
}
/// Bytes of eight scales and eight minima of six bits.
pub(super) const SCALE_BYTES: usize = 12;

/// Scale and minimum of sub-block `b`: those of the first four are the low bits of bytes 0 to 3 and 4 to 7, of the others the low halves
/// and the high ones of the last four bytes with the two bits above those of the first as their highest.
#[inline(always)]
pub(super) fn scale_and_min(bytes: &[u8], b: usize) -> (u8, u8) {
    if b < 4 {
        (bytes[b] & 63, bytes[b + 4] & 63)
    } else {
        (bytes[b + 4] & 15 | bytes[b - 4] >> 6 << 4, bytes[b + 4] >> 4 | bytes[b] >> 6 << 4)
    }
}

/// The bytes that `scale_and_min` reads.
pub(super) fn put_scales_and_mins(scales: &[u8; 8], mins: &[u8; 8], bytes: &mut [u8]) {
    for b in 0..4 {
        bytes[b] = scales[b] | scales[b + 4] >> 4 << 6;
        bytes[b + 4] = mins[b] | mins[b + 4] >> 4 << 6;
        bytes[b + 8] = scales[b + 4] & 15 | mins[b + 4] << 4;
    }
}
