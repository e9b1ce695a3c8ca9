//! IQ3_XXS and IQ3_S: four values at a time are an entry of a code book, with signs.

use super::book::{Book, Fit, Layout};
use super::iq2::signs_of_seven;
use super::{Blocks, Encode, grids, half, put_half};
use crate::gguf::GgmlType;
use std::sync::LazyLock;

/// What three bits stand for.
const MAGNITUDES_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const MAGNITUDES_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

static BOOK_XXS: LazyLock<Book> = LazyLock::new(|| Book::new(&grids::IQ3_XXS, 4, 3, &MAGNITUDES_XXS));
static BOOK_S: LazyLock<Book> = LazyLock::new(|| Book::new(&grids::IQ3_S, 4, 3, &MAGNITUDES_S));

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
    const ENCODE: Option<Encode> = Some(encode_xxs);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        let words = block[66..].as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        for ((bits, indices), values) in words.zip(block[2..].chunks(8)).zip(values.chunks_exact_mut(32)) {
            let step = d * (0.5 + (bits >> 28) as f32) * 0.5;
            for (i, (values, &index)) in values.chunks_exact_mut(4).zip(indices).enumerate() {
                let signs = signs_of_seven(bits >> (7 * (i / 2))) >> (i % 2 * 4);
                entry(values, step, &MAGNITUDES_XXS, grids::IQ3_XXS[usize::from(index)], signs);
            }
        }
    }
}

#[inline(always)]
fn encode_xxs(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let layout = Layout { sub_block: 32, largest: MAGNITUDES_XXS[7], even_signs: true };
    let fit = Fit::new(values, importance, &BOOK_XXS, layout, |step| put_half(block, 0, 4.0 * step) / 4.0);
    for (index, entry) in block[2..].iter_mut().zip(fit.entries) {
        *index = entry as u8;
    }
    for (b, word) in block[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let signs = fit.signs[4 * b..][..4].iter().enumerate();
        let signs = signs.fold(0, |bits, (i, signs)| bits | u32::from(signs & 127) << (7 * i));
        *word = (signs | u32::from(fit.scales[b]) << 28).to_le_bytes();
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
    const ENCODE: Option<Encode> = Some(encode_s);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 0);
        for (g, values) in values.chunks_exact_mut(4).enumerate() {
            let scale = block[106 + g / 16] >> (g / 8 % 2 * 4) & 15;
            let index = u16::from(block[2 + g]) | u16::from(block[66 + g / 8] >> (g % 8) & 1) << 8;
            let signs = block[74 + g / 2] >> (g % 2 * 4);
            let step = d * f32::from(1 + 2 * scale);
            entry(values, step, &MAGNITUDES_S, grids::IQ3_S[usize::from(index)], signs);
        }
    }
}

#[inline(always)]
fn encode_s(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let layout = Layout { sub_block: 32, largest: MAGNITUDES_S[7], even_signs: false };
    let fit = Fit::new(values, importance, &BOOK_S, layout, |step| put_half(block, 0, step));
    for (g, entry) in fit.entries.into_iter().enumerate() {
        block[2 + g] = entry as u8;
        block[66 + g / 8] |= ((entry >> 8) << (g % 8)) as u8;
    }
    block[74..106].copy_from_slice(&fit.signs);
    for (b, scale) in fit.scales[..8].iter().enumerate() {
        block[106 + b / 2] |= scale << (b % 2 * 4);
    }
}
