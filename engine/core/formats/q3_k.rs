//! Q3_K: 16 sub-blocks of 16 values of three bits, whose scales have six.

use super::fit::within;
use super::k::{Codes, Symmetric};
use super::q2_k::place;
use super::{Blocks, Encode, half};
use crate::gguf::GgmlType;

/// Bytes 0 to 31: the third bits; sub-block `8h + 2j + s` has bit `4h + j` of bytes `16s + l`. Bytes 32 to 95: the other two, as in
/// [`Q2_K`](super::Q2_K). Bytes 96 to 107: scales `i`, four bits in the low half of byte `i` or the high one of byte `i - 8`, two in bits
/// `2 * (i / 4)` of byte `8 + i % 4`. Then `d`, an f16. A value is `d * (scale - 32) * (q - 4)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q3_K {}

/// Where the parts are.
const QUANTA: usize = 32;
const SCALES: usize = 96;
const D: usize = 108;

#[inline(always)]
fn scale(bytes: &[u8], i: usize) -> i8 {
    let low = bytes[i % 8] >> (i / 8 * 4) & 15;
    let high = bytes[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

impl Blocks for Q3_K {
    const GGML: GgmlType = GgmlType(11);
    const NAME: &'static str = "q3_k";
    const VALUES: usize = 256;
    const BYTES: usize = 110;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, D);
        for (b, values) in values.chunks_exact_mut(16).enumerate() {
            let step = d * f32::from(scale(&block[SCALES..], b));
            let (first, bits) = place(b, 0);
            let thirds = &block[b % 2 * 16..][..16];
            for ((value, byte), third) in values.iter_mut().zip(&block[QUANTA + first..][..16]).zip(thirds) {
                let q = byte >> bits & 3 | (third >> (b / 2) & 1) << 2;
                *value = step * f32::from(q as i8 - 4);
            }
        }
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let codes = Codes { extremes: [-4.0, 3.0], apart: 0.1, round: within(-4.0, 3.0) };
    let fit = Symmetric::<16>::fit(values, importance, &codes, 32.0, block, D);
    for (b, values) in values.chunks_exact(16).enumerate() {
        let scale = (fit.scales[b] + 32) as u8;
        block[SCALES + b % 8] |= (scale & 15) << (b / 8 * 4);
        block[SCALES + 8 + b % 4] |= scale >> 4 << (b / 4 * 2);
        for (l, &value) in values.iter().enumerate() {
            let q = ((codes.round)(fit.steps(b, value)) as i8 + 4) as u8;
            let (byte, bits) = place(b, l);
            block[QUANTA + byte] |= (q & 3) << bits;
            block[b % 2 * 16 + l] |= q >> 2 << (b / 2);
        }
    }
}
