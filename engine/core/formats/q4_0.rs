//! Q4_0: 32 values of four bits with a scale.

use super::Blocks;
use crate::gguf::GgmlType;
use half::f16;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `d * (q - 8)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q4_0 {}

impl Blocks for Q4_0 {
    const GGML: GgmlType = GgmlType(2);
    const NAME: &'static str = "q4_0";
    const VALUES: usize = 32;
    const BYTES: usize = 18;

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let (low, high) = values.split_at_mut(16);
        for ((byte, low), high) in block[2..].iter().zip(low).zip(high) {
            *low = d * f32::from((byte & 15) as i8 - 8);
            *high = d * f32::from((byte >> 4) as i8 - 8);
        }
    }

    /// The value of the largest magnitude becomes -8, so that one more step is of use.
    fn encode(values: &[f32], block: &mut [u8]) {
        let largest = values
            .iter()
            .copied()
            .fold(0.0, |largest: f32, x| if x.abs() > largest.abs() { x } else { largest });
        let d = largest / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let quantum = |x: f32| (x * inverse + 8.5).clamp(0.0, 15.0) as u8;
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        let (low, high) = values.split_at(16);
        for ((byte, &low), &high) in block[2..].iter_mut().zip(low).zip(high) {
            *byte = quantum(low) | quantum(high) << 4;
        }
    }
}
