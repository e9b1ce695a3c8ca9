//! Q2_K: 16 sub-blocks of 16 values of two bits, whose scales and minima have four.

use super::k::Affine;
use super::{Blocks, Encode, half};
use crate::gguf::GgmlType;

/// Bytes 0 to 15: scale in the low half and minimum in the high one, of each sub-block. Bytes 16 to 79: quanta; sub-block `8h + 2j + s` has
/// bits `2j` and `2j + 1` of bytes `16 + 32h + 16s + l`. Then `d` and `dmin`, f16. A value is `d * scale * q - dmin * min`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q2_K {}

/// Where the parts are.
const QUANTA: usize = 16;
const D: usize = 80;

/// Byte of the quanta and bits in it for value `l` of sub-block `b`.
#[inline(always)]
pub(super) fn place(b: usize, l: usize) -> (usize, usize) {
    (b / 8 * 32 + b % 2 * 16 + l, b / 2 % 4 * 2)
}

impl Blocks for Q2_K {
    const GGML: GgmlType = GgmlType(10);
    const NAME: &'static str = "q2_k";
    const VALUES: usize = 256;
    const BYTES: usize = 84;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, dmin) = (half(block, D), half(block, D + 2));
        for (b, values) in values.chunks_exact_mut(16).enumerate() {
            let (scale, min) = (d * f32::from(block[b] & 15), dmin * f32::from(block[b] >> 4));
            let (first, bits) = place(b, 0);
            for (value, byte) in values.iter_mut().zip(&block[QUANTA + first..][..16]) {
                *value = scale * f32::from(byte >> bits & 3) - min;
            }
        }
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let fit = Affine::<16>::fit(values, importance, [3.0, 15.0], block, D);
    for (b, values) in values.chunks_exact(16).enumerate() {
        block[b] = fit.scales[b] | fit.mins[b] << 4;
        for (l, &value) in values.iter().enumerate() {
            let (byte, bits) = place(b, l);
            block[QUANTA + byte] |= fit.quantum(b, value) << bits;
        }
    }
}
