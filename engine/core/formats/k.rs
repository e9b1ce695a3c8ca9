//! What formats of 256 values share: sub-blocks whose scales are themselves small integers, times the scale of the whole.

use super::{inverse, largest, put_half, range};

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
    /// Each sub-block from its least value, or 0, to its greatest in `levels` steps; scales and minima reach up to `top`. `d` and `dmin`
    /// become the f16 at byte `at` of the block and behind it.
    pub fn fit(values: &[f32], levels: u8, top: u8, block: &mut [u8], at: usize) -> Self {
        let levels = f32::from(levels);
        let (mut exact_scales, mut exact_mins) = ([0.0; N], [0.0; N]);
        for (b, sub_block) in values.chunks_exact(values.len() / N).enumerate() {
            let (min, max) = range(sub_block);
            let min = min.min(0.0);
            (exact_scales[b], exact_mins[b]) = ((max - min) / levels, -min);
        }
        let fit = |exact: [f32; N], block: &mut [u8], at: usize| {
            let step = put_half(block, at, largest(&exact) / f32::from(top));
            let inverse = inverse(step);
            (step, exact.map(|exact| (exact * inverse).round().clamp(0.0, f32::from(top)) as u8))
        };
        let (d, scales) = fit(exact_scales, block, at);
        let (dmin, mins) = fit(exact_mins, block, at + 2);
        Self { d, dmin, scales, mins, levels }
    }

    /// `q` for a value of sub-block `b`.
    pub fn quantum(&self, b: usize, value: f32) -> u8 {
        let inverse = inverse(self.d * f32::from(self.scales[b]));
        let above = value + self.dmin * f32::from(self.mins[b]);
        (above * inverse).round().clamp(0.0, self.levels) as u8
    }
}

/// `N` sub-blocks of values `d * scale * q` with signed scales, as they are encoded.
pub(super) struct Symmetric<const N: usize> {
    d: f32,
    pub scales: [i8; N],
}

impl<const N: usize> Symmetric<N> {
    /// In each sub-block the value of the largest magnitude becomes `lowest`, a negative `q`; scales reach from `-top` to `top - 1`.
    /// `d` becomes the f16 at byte `at` of the block.
    pub fn fit(values: &[f32], lowest: f32, top: f32, block: &mut [u8], at: usize) -> Self {
        let mut exact = [0.0; N];
        for (scale, sub_block) in exact.iter_mut().zip(values.chunks_exact(values.len() / N)) {
            *scale = largest(sub_block) / lowest;
        }
        let d = put_half(block, at, largest(&exact) / -top);
        let inverse = inverse(d);
        Self { d, scales: exact.map(|exact| (exact * inverse).round().clamp(-top, top - 1.0) as i8) }
    }

    /// `value` in steps of sub-block `b`, not rounded.
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
