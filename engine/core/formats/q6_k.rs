//! Q6_K: 16 sub-blocks of 16 values of six bits, whose scales have eight.

use super::fit::within;
use super::k::{Codes, Symmetric};
use super::{Blocks, Encode, half};
use crate::gguf::GgmlType;

/// Of value `128h + 32t + l`: bytes 0 to 127 have four bits, in the low half (`t` below 2) or the high one of byte `64h + 32 * (t % 2) + l`;
/// bytes 128 to 191 two, bits `2t` of byte `128 + 32h + l`; bytes 192 to 207 the scale, byte `192 + 8h + 2t + l / 16`, signed. Then `d`, an
/// f16. A value is `d * scale * (q - 32)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum Q6_K {}

/// Where the parts are.
const HIGH: usize = 128;
const SCALES: usize = 192;
const D: usize = 208;

/// For value `l` of run `r` of 32: byte of the low four bits and their place in it, and the same for the high two.
#[inline(always)]
fn places(r: usize, l: usize) -> [(usize, usize); 2] {
    let (h, t) = (r / 4, r % 4);
    [(64 * h + t % 2 * 32 + l, t / 2 * 4), (HIGH + 32 * h + l, 2 * t)]
}

impl Blocks for Q6_K {
    const GGML: GgmlType = GgmlType(14);
    const NAME: &'static str = "q6_k";
    const VALUES: usize = 256;
    const BYTES: usize = 210;
    const ENCODE: Option<Encode> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, D);
        for (b, values) in values.chunks_exact_mut(16).enumerate() {
            let scale = d * f32::from(block[SCALES + b] as i8);
            let [(low, low_bits), (high, high_bits)] = places(b / 2, b % 2 * 16);
            let bytes = block[low..][..16].iter().zip(&block[high..][..16]);
            for (value, (low, high)) in values.iter_mut().zip(bytes) {
                let q = low >> low_bits & 15 | (high >> high_bits & 3) << 4;
                *value = scale * f32::from(q as i8 - 32);
            }
        }
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let codes = Codes { extremes: [-32.0, 31.0], apart: 0.1, round: within(-32.0, 31.0) };
    let fit = Symmetric::<16>::fit(values, importance, &codes, 128.0, block, D);
    for (b, values) in values.chunks_exact(16).enumerate() {
        block[SCALES + b] = fit.scales[b] as u8;
        for (l, &value) in values.iter().enumerate() {
            let q = ((codes.round)(fit.steps(b, value)) as i8 + 32) as u8;
            let [(low, low_bits), (high, high_bits)] = places(b / 2, b % 2 * 16 + l);
            block[low] |= (q & 15) << low_bits;
            block[high] |= q >> 4 << high_bits;
        }
    }
}
