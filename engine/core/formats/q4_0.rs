//! Q4_0: 32 values of four bits with a scale.

use super::fit::step;
use super::{Blocks, Encode, half, inverse, nibbles, put_half};
use crate::gguf::GgmlType;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `d * (q - 8)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q4_0 {}

impl Blocks for Q4_0 {
    const GGML: GgmlType = GgmlType(2);
    const NAME: &'static str = "q4_0";
    const VALUES: usize = 32;
    const BYTES: usize = 18;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        nibbles::decode(&block[2..], values, |_, q| d * f32::from(q as i8 - 8));
    }
}

/// The value of the largest magnitude becomes -8, so that one more step is of use.
#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let d = step(values, importance, -8.0);
    let inverse = inverse(d);
    put_half(block, 0, d);
    nibbles::encode(values, &mut block[2..], |x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8);
}
