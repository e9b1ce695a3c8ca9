//! Q5_0: 32 values of five bits with a scale.

use super::fit::step;
use super::{Blocks, Encode, half, inverse, nibbles, put_half};
use crate::gguf::GgmlType;

/// Bytes 0 and 1: the scale `d`, an f16. Bytes 2 to 5: the fifth bits, bit `j` that of value `j`. Byte `6 + j`: four bits of value `j` in
/// the low half, of value `j + 16` in the high one. A value is `d * (q - 16)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q5_0 {}

impl Blocks for Q5_0 {
    const GGML: GgmlType = GgmlType(6);
    const NAME: &'static str = "q5_0";
    const VALUES: usize = 32;
    const BYTES: usize = 22;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        nibbles::decode_five(&block[2..], values, |q| d * f32::from(q as i8 - 16));
    }
}

/// The value of the largest magnitude becomes -16, so that one more step is of use.
#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let d = step(values, importance, -16.0);
    let inverse = inverse(d);
    put_half(block, 0, d);
    nibbles::encode_five(values, &mut block[2..], |x| (x * inverse + 16.5).clamp(0.0, 31.0) as u8);
}
