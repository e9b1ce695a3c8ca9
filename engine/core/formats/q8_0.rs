//! Q8_0: 32 values of eight bits with a scale.

use super::{Blocks, Encode, half, inverse, largest, put_half};
use crate::gguf::GgmlType;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: the signed value `j`. A value is `d * q`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q8_0 {}

impl Blocks for Q8_0 {
    const GGML: GgmlType = GgmlType(8);
    const NAME: &'static str = "q8_0";
    const VALUES: usize = 32;
    const BYTES: usize = 34;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (&byte, value) in block[2..].iter().zip(values) {
            *value = d * f32::from(byte as i8);
        }
    }
}

/// The value of the largest magnitude becomes 127 or -127.
#[inline(always)]
fn encode(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let d = largest(values).abs() / 127.0;
    let inverse = inverse(d);
    put_half(block, 0, d);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = (value * inverse).round() as i8 as u8;
    }
}
