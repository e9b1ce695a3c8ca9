//! Q4_K: 8 sub-blocks of 32 values of four bits, whose scales and minima have six.

use super::k::{Affine, SCALE_BYTES, put_scales_and_mins, scale_and_min};
use super::{Blocks, Encode, half};
use crate::gguf::GgmlType;

/// Bytes 0 to 3: `d` and `dmin`, f16. Bytes 4 to 15: scales and minima, `scale_and_min`. Bytes 16 to 143: quanta; byte `16 + 32p + l` has
/// value `l` of sub-block `2p` in the low half and of `2p + 1` in the high one. A value is `d * scale * q - dmin * min`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q4_K {}

/// Where the parts are.
const SCALES: usize = 4;
const QUANTA: usize = SCALES + SCALE_BYTES;

impl Blocks for Q4_K {
    const GGML: GgmlType = GgmlType(12);
    const NAME: &'static str = "q4_k";
    const VALUES: usize = 256;
    const BYTES: usize = 144;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, dmin) = (half(block, 0), half(block, 2));
        for (b, values) in values.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_and_min(&block[SCALES..], b);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for (value, byte) in values.iter_mut().zip(&block[QUANTA + b / 2 * 32..]) {
                *value = scale * f32::from(byte >> (b % 2 * 4) & 15) - min;
            }
        }
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let fit = Affine::<8>::fit(values, importance, [15.0, 63.0], block, 0);
    put_scales_and_mins(&fit.scales, &fit.mins, &mut block[SCALES..]);
    for (b, values) in values.chunks_exact(32).enumerate() {
        for (byte, &value) in block[QUANTA + b / 2 * 32..].iter_mut().zip(values) {
            *byte |= fit.quantum(b, value) << (b % 2 * 4);
        }
    }
}
