//! Q5_1: 32 values of five bits with a scale and a minimum.

use super::fit::steps_from;
use super::{Blocks, Encode, half, inverse, nibbles, put_half};
use crate::gguf::GgmlType;

/// Bytes 0 to 3: the scale `d` and the minimum `m`, f16. Bytes 4 to 7: the fifth bits, bit `j` that of value `j`. Byte `8 + j`: four bits of
/// value `j` in the low half, of value `j + 16` in the high one. A value is `d * q + m`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q5_1 {}

impl Blocks for Q5_1 {
    const GGML: GgmlType = GgmlType(7);
    const NAME: &'static str = "q5_1";
    const VALUES: usize = 32;
    const BYTES: usize = 24;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, m) = (half(block, 0), half(block, 2));
        nibbles::decode_five(&block[4..], values, |q| d * f32::from(q) + m);
    }
}

/// From the least value to the greatest in 31 steps.
#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let (d, min) = steps_from(values, importance, 31.0);
    let inverse = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, min);
    nibbles::encode_five(values, &mut block[4..], |x| ((x - min) * inverse + 0.5).clamp(0.0, 31.0) as u8);
}
