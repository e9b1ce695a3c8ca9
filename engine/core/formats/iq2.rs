//! IQ2_XXS, IQ2_XS and IQ2_S: eight values at a time are an entry of a code book, with signs.

use super::book::{Book, Fit, Layout};
use super::{Blocks, Encode, grids, half, put_half};
use crate::gguf::GgmlType;
use std::sync::LazyLock;

/// What two bits of an entry stand for.
const MAGNITUDES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];

static BOOK_XXS: LazyLock<Book> = LazyLock::new(|| Book::new(&grids::IQ2_XXS, 8, 2, &MAGNITUDES));
static BOOK_XS: LazyLock<Book> = LazyLock::new(|| Book::new(&grids::IQ2_XS, 8, 2, &MAGNITUDES));
static BOOK_S: LazyLock<Book> = LazyLock::new(|| Book::new(&grids::IQ2_S, 8, 2, &MAGNITUDES));

/// Values into blocks whose first bytes are `d`, eight times the step.
#[inline(always)]
fn fit(
    values: &[f32],
    importance: Option<&[f32]>,
    book: &Book,
    sub_block: usize,
    even_signs: bool,
    block: &mut [u8],
) -> Fit {
    block.fill(0);
    let layout = Layout { sub_block, largest: MAGNITUDES[2], even_signs };
    Fit::new(values, importance, book, layout, |step| put_half(block, 0, 8.0 * step) / 8.0)
}

/// Eight values: `step` times those of an entry, negative where a bit of `signs` is set.
#[inline(always)]
fn entry(values: &mut [f32], step: f32, entry: u16, signs: u8) {
    for (k, value) in values.iter_mut().enumerate() {
        let magnitude = step * MAGNITUDES[usize::from(entry >> (2 * k) & 3)];
        *value = if signs >> k & 1 == 0 { magnitude } else { -magnitude };
    }
}

/// Eight signs of seven stored: the last makes the number of minus signs even.
#[inline(always)]
pub(super) fn signs_of_seven(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Bytes 0 and 1: `d`, an f16. Eight bytes for each 32 values: four indices, then a u32 of four times seven signs (`signs_of_seven`)
/// and in the top four bits a scale. A value is `d * (0.5 + scale) / 4 * entry`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ2_XXS {}

impl Blocks for IQ2_XXS {
    const GGML: GgmlType = GgmlType(16);
    const NAME: &'static str = "iq2_xxs";
    const VALUES: usize = 256;
    const BYTES: usize = 66;
    const ENCODE: Option<Encode> = Some(encode_xxs);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (group, values) in block[2..].as_chunks::<8>().0.iter().zip(values.chunks_exact_mut(32)) {
            let [indices @ .., a, b, c, e] = *group;
            let bits = u32::from_le_bytes([a, b, c, e]);
            let step = d * (0.5 + (bits >> 28) as f32) * 0.25;
            for (i, (values, index)) in values.chunks_exact_mut(8).zip(indices).enumerate() {
                entry(values, step, grids::IQ2_XXS[usize::from(index)], signs_of_seven(bits >> (7 * i)));
            }
        }
    }
}

#[inline(always)]
fn encode_xxs(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let fit = fit(values, importance, &BOOK_XXS, 32, true, block);
    for (b, group) in block[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut word = u32::from(fit.scales[b]) << 28;
        for (i, entry) in group[..4].iter_mut().enumerate() {
            *entry = fit.entries[4 * b + i] as u8;
            word |= u32::from(fit.signs[4 * b + i] & 127) << (7 * i);
        }
        group[4..].copy_from_slice(&word.to_le_bytes());
    }
}

/// Bytes 0 and 1: `d`, an f16. Bytes 2 to 65: a u16 for each eight values, nine bits of index and seven signs (`signs_of_seven`).
/// Then scales of four bits, one for 16 values. A value is `d * (0.5 + scale) / 4 * entry`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ2_XS {}

impl Blocks for IQ2_XS {
    const GGML: GgmlType = GgmlType(17);
    const NAME: &'static str = "iq2_xs";
    const VALUES: usize = 256;
    const BYTES: usize = 74;
    const ENCODE: Option<Encode> = Some(encode_xs);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (g, values) in values.chunks_exact_mut(8).enumerate() {
            let code = u16::from_le_bytes([block[2 + 2 * g], block[3 + 2 * g]]);
            let index = grids::IQ2_XS[usize::from(code & 511)];
            entry(values, step(d, &block[66..], g), index, signs_of_seven(u32::from(code >> 9)));
        }
    }
}

#[inline(always)]
fn encode_xs(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let fit = fit(values, importance, &BOOK_XS, 16, true, block);
    for (g, signs) in fit.signs.iter().enumerate() {
        let code = fit.entries[g] | u16::from(signs & 127) << 9;
        block[2 + 2 * g..][..2].copy_from_slice(&code.to_le_bytes());
    }
    put_scales(&fit.scales, &mut block[66..]);
}

/// Bytes 0 and 1: `d`, an f16. For each eight values `g`: eight bits of index in byte `2 + g`, signs in byte `34 + g`, two more bits of index
/// in byte `66 + g / 4`. Then scales of four bits, one for 16 values. A value is `d * (0.5 + scale) / 4 * entry`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum IQ2_S {}

impl Blocks for IQ2_S {
    const GGML: GgmlType = GgmlType(22);
    const NAME: &'static str = "iq2_s";
    const VALUES: usize = 256;
    const BYTES: usize = 82;
    const ENCODE: Option<Encode> = Some(encode_s);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (g, values) in values.chunks_exact_mut(8).enumerate() {
            let index = u16::from(block[2 + g]) | u16::from(block[66 + g / 4] >> (2 * (g % 4)) & 3) << 8;
            entry(values, step(d, &block[74..], g), grids::IQ2_S[usize::from(index)], block[34 + g]);
        }
    }
}

/// The step of the eight values `g` from scales of four bits for 16 values each.
#[inline(always)]
fn step(d: f32, scales: &[u8], g: usize) -> f32 {
    d * (0.5 + f32::from(scales[g / 4] >> (g / 2 % 2 * 4) & 15)) * 0.25
}

/// The bytes that `step` reads.
fn put_scales(scales: &[u8; 16], bytes: &mut [u8]) {
    for (byte, scales) in bytes.iter_mut().zip(scales.as_chunks::<2>().0) {
        *byte = scales[0] | scales[1] << 4;
    }
}

#[inline(always)]
fn encode_s(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let fit = fit(values, importance, &BOOK_S, 16, false, block);
    for (g, &signs) in fit.signs.iter().enumerate() {
        block[2 + g] = fit.entries[g] as u8;
        block[34 + g] = signs;
        block[66 + g / 4] |= ((fit.entries[g] >> 8) << (2 * (g % 4))) as u8;
    }
    put_scales(&fit.scales, &mut block[74..]);
}
