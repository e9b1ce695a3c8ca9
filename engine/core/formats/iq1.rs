//! IQ1_S and IQ1_M: eight values at a time are an entry of a code book of -1, 0 and 1, all a little higher or lower.

use super::{Blocks, Encode, grids, half};
use crate::gguf::GgmlType;
use half::f16;

/// How much higher or lower.
const DELTA: f32 = 0.125;

/// Eight values: `step` times those of an entry, which are moved by [`DELTA`].
#[inline(always)]
fn entry(values: &mut [f32], step: f32, index: u16, lower: bool) {
    let (entry, delta) = (grids::IQ1_S[usize::from(index)], if lower { -DELTA } else { DELTA });
    for (k, value) in values.iter_mut().enumerate() {
        *value = step * (f32::from(entry >> (2 * k) & 3) - 1.0 + delta);
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 33: eight bits of the indices. Then a u16 for each 32 values: four times three more bits of index,
/// a scale of three bits, and whether values are lower. A value is `d * (2 * scale + 1) * (entry ± 0.125)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ1_S {}

impl Blocks for IQ1_S {
    const GGML: GgmlType = GgmlType(19);
    const NAME: &'static str = "iq1_s";
    const VALUES: usize = 256;
    const BYTES: usize = 50;
    const ENCODE: Option<Encode> = None;

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (g, values) in values.chunks_exact_mut(8).enumerate() {
            let high = u16::from_le_bytes([block[34 + g / 4 * 2], block[35 + g / 4 * 2]]);
            let index = u16::from(block[2 + g]) | (high >> (g % 4 * 3) & 7) << 8;
            entry(values, d * f32::from(2 * (high >> 12 & 7) + 1), index, high >> 15 != 0);
        }
    }
}

/// Bytes 0 to 31: eight bits of the indices. Half of a byte from 32 on for each eight values: three more, and whether values are lower. Then
/// four u16 of four scales of three bits, one for 16 values; their top four bits are, the lowest first, an f16 `d`. A value is
/// `d * (2 * scale + 1) * (entry ± 0.125)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ1_M {}

/// The scales and, above them, the parts of `d`.
fn words(block: &[u8]) -> [u16; 4] {
    std::array::from_fn(|i| u16::from_le_bytes([block[48 + 2 * i], block[49 + 2 * i]]))
}

impl Blocks for IQ1_M {
    const GGML: GgmlType = GgmlType(29);
    const NAME: &'static str = "iq1_m";
    const VALUES: usize = 256;
    const BYTES: usize = 56;
    const ENCODE: Option<Encode> = None;

    fn decode(block: &[u8], values: &mut [f32]) {
        let words = words(block);
        let bits = words.iter().enumerate().fold(0, |bits, (i, word)| bits | word >> 12 << (4 * i));
        let d = f16::from_bits(bits).to_f32();
        for (g, values) in values.chunks_exact_mut(8).enumerate() {
            let high = block[32 + g / 2] >> (g % 2 * 4);
            let index = u16::from(block[g]) | u16::from(high & 7) << 8;
            let scale = words[g / 8] >> (g / 2 % 4 * 3) & 7;
            entry(values, d * f32::from(2 * scale + 1), index, high & 8 != 0);
        }
    }
}
