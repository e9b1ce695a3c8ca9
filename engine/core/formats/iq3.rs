//! IQ3_XXS and IQ3_S: four values at a time are an entry of a code book, with signs.

use super::iq2::signs_of_seven;
use super::{Blocks, Encode, grids, half};
use crate::gguf::GgmlType;

/// Four values: `step` times those that three bits each stand for, negative where a bit of `signs` is set.
#[inline(always)]
fn entry(values: &mut [f32], step: f32, magnitudes: &[f32; 8], entry: u16, signs: u8) {
    for (k, value) in values.iter_mut().enumerate() {
        let magnitude = step * magnitudes[usize::from(entry >> (3 * k) & 7)];
        *value = if signs >> k & 1 == 0 { magnitude } else { -magnitude };
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: indices. Then a u32 for each 32 values: four times seven signs (`signs_of_seven`) and in the
/// top four bits a scale. A value is `d * (0.5 + scale) / 2 * entry`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ3_XXS {}

impl Blocks for IQ3_XXS {
    const GGML: GgmlType = GgmlType(18);
    const NAME: &'static str = "iq3_xxs";
    const VALUES: usize = 256;
    const BYTES: usize = 98;
    const ENCODE: Option<Encode> = None;

    fn decode(block: &[u8], values: &mut [f32]) {
        const MAGNITUDES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
        let d = half(block, 0);
        let words = block[66..].as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        for ((bits, indices), values) in words.zip(block[2..].chunks(8)).zip(values.chunks_exact_mut(32)) {
            let step = d * (0.5 + (bits >> 28) as f32) * 0.5;
            for (i, (values, &index)) in values.chunks_exact_mut(4).zip(indices).enumerate() {
                let signs = signs_of_seven(bits >> (7 * (i / 2))) >> (i % 2 * 4);
                entry(values, step, &MAGNITUDES, grids::IQ3_XXS[usize::from(index)], signs);
            }
        }
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: eight bits of the indices, bytes 66 to 73 the ninth. Bytes 74 to 105: signs. Then scales of four
/// bits, one for 32 values. A value is `d * (1 + 2 * scale) * entry`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ3_S {}

impl Blocks for IQ3_S {
    const GGML: GgmlType = GgmlType(21);
    const NAME: &'static str = "iq3_s";
    const VALUES: usize = 256;
    const BYTES: usize = 110;
    const ENCODE: Option<Encode> = None;

    fn decode(block: &[u8], values: &mut [f32]) {
        const MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
        let d = half(block, 0);
        for (g, values) in values.chunks_exact_mut(4).enumerate() {
            let scale = block[106 + g / 16] >> (g / 8 % 2 * 4) & 15;
            let index = u16::from(block[2 + g]) | u16::from(block[66 + g / 8] >> (g % 8) & 1) << 8;
            let signs = block[74 + g / 2] >> (g % 2 * 4);
            let step = d * f32::from(1 + 2 * scale);
            entry(values, step, &MAGNITUDES, grids::IQ3_S[usize::from(index)], signs);
        }
    }
}
