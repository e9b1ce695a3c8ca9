//! Q5_K: 8 sub-blocks of 32 values of five bits, whose scales and minima have six.

use super::k::{Affine, SCALE_BYTES, put_scales_and_mins, scale_and_min};
use super::{Blocks, Encode, half};
use crate::gguf::GgmlType;

/// Bytes 0 to 3: `d` and `dmin`, f16. Bytes 4 to 15: scales and minima, `scale_and_min`. Bytes 16 to 47: the fifth bits, bit `b` of byte
/// `16 + l` that of value `l` of sub-block `b`. Bytes 48 to 175: the other four, as in [`Q4_K`](super::Q4_K). A value is
/// `d * scale * q - dmin * min`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q5_K {}

/// Where the parts are.
const SCALES: usize = 4;
const FIFTHS: usize = SCALES + SCALE_BYTES;
const QUANTA: usize = FIFTHS + 32;

impl Blocks for Q5_K {
    const GGML: GgmlType = GgmlType(13);
    const NAME: &'static str = "q5_k";
    const VALUES: usize = 256;
    const BYTES: usize = 176;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, dmin) = (half(block, 0), half(block, 2));
        for (b, values) in values.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_and_min(&block[SCALES..], b);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            let bytes = block[QUANTA + b / 2 * 32..].iter().zip(&block[FIFTHS..]);
            for (value, (byte, fifth)) in values.iter_mut().zip(bytes) {
                let q = byte >> (b % 2 * 4) & 15 | (fifth >> b & 1) << 4;
                *value = scale * f32::from(q) - min;
            }
        }
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let fit = Affine::<8>::fit(values, importance, [31.0, 63.0], block, 0);
    put_scales_and_mins(&fit.scales, &fit.mins, &mut block[SCALES..]);
    for (b, values) in values.chunks_exact(32).enumerate() {
        for (l, &value) in values.iter().enumerate() {
            let q = fit.quantum(b, value);
            block[FIFTHS + l] |= q >> 4 << b;
            block[QUANTA + b / 2 * 32 + l] |= (q & 15) << (b % 2 * 4);
        }
    }
}
