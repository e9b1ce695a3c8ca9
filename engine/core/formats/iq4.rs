//! IQ4_NL and IQ4_XS: values of four bits that stand for 16 unevenly spaced numbers.

use super::fit::weigh;
use super::k::{Codes, Symmetric};
use super::{Blocks, Encode, half, inverse, nibbles, put_half};
use crate::gguf::GgmlType;

/// What the four bits stand for: `kvalues_iq4nl` of ggml/src/ggml-common.h.
pub(crate) const CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The place of the code that is nearest to `x`, the lower one of two.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    let middles = CODES.windows(2).map(|pair| f32::midpoint(pair[0].into(), pair[1].into()));
    middles.map(|middle| u8::from(x > middle)).sum()
}

/// The code that is nearest to `x`, the lower one of two.
#[inline(always)]
fn code(x: f32) -> f32 {
    let mut code = f32::from(CODES[0]);
    for pair in CODES.windows(2) {
        let [low, high] = [pair[0], pair[1]].map(f32::from);
        code += if x > f32::midpoint(low, high) { high - low } else { 0.0 };
    }
    code
}

/// Steps are further apart than those of whole numbers: codes are unevenly spaced.
#[inline(always)]
fn codes() -> Codes<impl Fn(f32) -> f32> {
    Codes { extremes: [CODES[0], CODES[15]].map(f32::from), apart: 4.0, round: code }
}

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: the code of value `j` in the low half, of value `j + 16` in the high one. A value is
/// `d * CODES[q]`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ4_NL {}

impl Blocks for IQ4_NL {
    const GGML: GgmlType = GgmlType(20);
    const NAME: &'static str = "iq4_nl";
    const VALUES: usize = 32;
    const BYTES: usize = 18;
    const ENCODE: Option<Encode> = Some(encode_nl);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        nibbles::decode(&block[2..], values, |_, q| d * f32::from(CODES[usize::from(q)]));
    }
}

/// The value of the largest magnitude gets the first code, or one near it.
#[inline(always)]
fn encode_nl(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let weights = weigh(values, importance);
    let d = put_half(block, 0, codes().scale(values, &weights[..values.len()]));
    let inverse = inverse(d);
    nibbles::encode(values, &mut block[2..], |x| nearest(x * inverse));
}

/// Bytes 0 and 1: `d`, an f16. Scales of 8 sub-blocks `b` of 32 values: two bits `2b` of the u16 at byte 2 over a half of byte `4 + b / 2`.
/// Bytes 8 to 135: codes as in [`IQ4_NL`], 16 bytes a sub-block. A value is `d * (scale - 32) * CODES[q]`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ4_XS {}

/// Where the codes begin.
const QUANTA: usize = 8;

impl Blocks for IQ4_XS {
    const GGML: GgmlType = GgmlType(23);
    const NAME: &'static str = "iq4_xs";
    const VALUES: usize = 256;
    const BYTES: usize = 136;
    const ENCODE: Option<Encode> = Some(encode_xs);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (b, values) in values.chunks_exact_mut(32).enumerate() {
            let scale = block[4 + b / 2] >> (b % 2 * 4) & 15 | ((high >> (2 * b) & 3) << 4) as u8;
            let step = d * f32::from(scale as i8 - 32);
            let codes = &block[QUANTA + 16 * b..][..16];
            nibbles::decode(codes, values, |_, q| step * f32::from(CODES[usize::from(q)]));
        }
    }
}

#[inline(always)]
fn encode_xs(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let fit = Symmetric::<8>::fit(values, importance, &codes(), 32.0, block, 0);
    for (b, values) in values.chunks_exact(32).enumerate() {
        let scale = (fit.scales[b] + 32) as u8;
        block[4 + b / 2] |= (scale & 15) << (b % 2 * 4);
        block[2 + b / 4] |= scale >> 4 << (b % 4 * 2);
        let codes = &mut block[QUANTA + 16 * b..][..16];
        nibbles::encode(values, codes, |x| nearest(fit.steps(b, x)));
    }
}
