//! MXFP4 and NVFP4: floats of four bits (one of sign, two of exponent, one of mantissa) with a scale that is a small float too.

use super::{Blocks, Encode, inverse, largest, nibbles};
use crate::gguf::GgmlType;

/// Twice what the four bits stand for; there is no negative zero. OCP Microscaling Formats 1.0, section 5.3.3.
pub(crate) const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Byte 0: the exponent `e`. Byte `1 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `2^(e - 127) * fp4`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum MXFP4 {}

/// `2^(e - 128)`, half of the scale, which the doubled values make up for.
pub(crate) fn half_of_power(e: u8) -> f32 {
    // The lowest two are below the normal numbers of f32.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The bits whose number is nearest to `x`, the first of them.
fn nearest(x: f32) -> u8 {
    let mut best = (f32::INFINITY, 0);
    for (i, &doubled) in DOUBLED.iter().enumerate() {
        let distance = (f32::from(doubled) - x).abs();
        if distance < best.0 {
            best = (distance, i as u8);
        }
    }
    best.1
}

impl Blocks for MXFP4 {
    const GGML: GgmlType = GgmlType(39);
    const NAME: &'static str = "mxfp4";
    const VALUES: usize = 32;
    const BYTES: usize = 17;
    const ENCODE: Option<Encode> = Some(encode_mx);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half_of_power(block[0]);
        nibbles::decode(&block[1..], values, |_, q| d * f32::from(DOUBLED[usize::from(q)]));
    }
}

/// The largest magnitude falls between 4 and 8; what is above 6 becomes 6.
#[inline(always)]
fn encode_mx(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let exponent = (largest(values).abs().to_bits() >> 23) as u8;
    block[0] = exponent.saturating_sub(2);
    // Exact for all but the least of normal numbers, whose products are rounded.
    let inverse = 1.0 / half_of_power(block[0]);
    nibbles::encode(values, &mut block[1..], |x| nearest(x * inverse));
}

/// Bytes 0 to 3: scales of four sub-blocks of 16 values, floats without sign of four bits of exponent and three of mantissa. Bytes 4 to 35:
/// codes, eight bytes a sub-block, value `j` in the low half of byte `j`, value `j + 8` in the high one. A value is `scale * fp4`, and
/// times the scale of the whole matrix ([`Matrix::scale`](crate::weights::Matrix::scale)).
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum NVFP4 {}

/// Half of a scale, which the doubled values make up for; the first code and the last of the positive ones are 0.
fn half_of_scale(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    match (code, exponent) {
        (0 | 127, _) => 0.0,
        (_, 0) => mantissa as f32 / 1024.0,
        _ => f32::from_bits((exponent + 119) << 23 | mantissa << 20),
    }
}

impl Blocks for NVFP4 {
    const GGML: GgmlType = GgmlType(40);
    const NAME: &'static str = "nvfp4";
    const VALUES: usize = 64;
    const BYTES: usize = 36;
    const ENCODE: Option<Encode> = Some(encode_nv);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (scales, codes) = block.split_at(4);
        for ((&scale, codes), values) in scales.iter().zip(codes.chunks(8)).zip(values.chunks_exact_mut(16)) {
            let d = half_of_scale(scale);
            nibbles::decode(codes, values, |_, q| d * f32::from(DOUBLED[usize::from(q)]));
        }
    }
}

/// The value of the largest magnitude in a sub-block becomes 6 or -6, as near as the scales are to that.
#[inline(always)]
fn encode_nv(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let (scales, codes) = block.split_at_mut(4);
    for ((scale, codes), values) in scales.iter_mut().zip(codes.chunks_mut(8)).zip(values.chunks_exact(16)) {
        let wanted = largest(values).abs() / 12.0;
        let distance = |&code: &u8| (half_of_scale(code) - wanted).abs();
        *scale = (0..127).min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("there are codes");
        let inverse = inverse(half_of_scale(*scale));
        nibbles::encode(values, codes, |x| nearest(x * inverse));
    }
}
