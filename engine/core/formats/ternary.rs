//! TQ1_0 and TQ2_0: values that are -1, 0 or 1 times a scale.

use super::{Blocks, Encode, half, inverse, largest, put_half};
use crate::gguf::GgmlType;

/// The digit 0, 1 or 2 of a value whose scale is the largest magnitude.
fn digit(value: f32, inverse: f32) -> u8 {
    ((value * inverse).round() as i8 + 1) as u8
}

/// Base 3, five digits a byte: 160 values in bytes 0 to 31, 80 in bytes 32 to 47, and four digits a byte in 48 to 51; digit `n` of byte `m` of
/// a part of `c` bytes is value `n * c + m` of it. A byte is the number of its digits, the first highest, as a fraction of 243 in 256ths,
/// rounded up. Bytes 52 and 53: `d`, an f16. A value is `d * (digit - 1)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum TQ1_0 {}

/// Bytes and digits of each part.
const PARTS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

/// Calls `each` with a byte and the place of the first of its values, for every byte; the next values are as far apart as the part has bytes.
#[inline(always)]
fn for_each_byte<B>(bytes: impl IntoIterator<Item = B>, mut each: impl FnMut(B, usize, usize, usize)) {
    let mut bytes = bytes.into_iter();
    let mut first = 0;
    for (count, digits) in PARTS {
        for (m, byte) in bytes.by_ref().take(count).enumerate() {
            each(byte, first + m, count, digits);
        }
        first += count * digits;
    }
}

impl Blocks for TQ1_0 {
    const GGML: GgmlType = GgmlType(34);
    const NAME: &'static str = "tq1_0";
    const VALUES: usize = 256;
    const BYTES: usize = 54;
    const ENCODE: Option<Encode> = Some(encode_1);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 52);
        for_each_byte(&block[..52], |&byte, first, stride, digits| {
            let mut fraction = byte;
            for n in 0..digits {
                values[first + n * stride] = d * (f32::from((u16::from(fraction) * 3) >> 8) - 1.0);
                fraction = fraction.wrapping_mul(3);
            }
        });
    }
}

/// Each value is -1, 0 or 1 in units of the largest magnitude.
#[inline(always)]
fn encode_1(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let d = largest(values).abs();
    let inverse = inverse(d);
    put_half(block, 52, d);
    for_each_byte(&mut block[..52], |byte, first, stride, digits| {
        let weights = [81, 27, 9, 3, 1];
        let terms = (0..digits).map(|n| u16::from(digit(values[first + n * stride], inverse)) * weights[n]);
        *byte = (terms.sum::<u16>() * 256).div_ceil(243) as u8;
    });
}

/// Bits `2n` and `2n + 1` of byte `32h + m`: digit of value `128h + 32n + m`. Bytes 64 and 65: `d`, an f16. A value is `d * (digit - 1)`.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
pub enum TQ2_0 {}

impl Blocks for TQ2_0 {
    const GGML: GgmlType = GgmlType(35);
    const NAME: &'static str = "tq2_0";
    const VALUES: usize = 256;
    const BYTES: usize = 66;
    const ENCODE: Option<Encode> = Some(encode_2);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half(block, 64);
        for (r, values) in values.chunks_exact_mut(32).enumerate() {
            for (value, byte) in values.iter_mut().zip(&block[r / 4 * 32..]) {
                *value = d * (f32::from(byte >> (r % 4 * 2) & 3) - 1.0);
            }
        }
    }
}

/// As [`encode_1`].
#[inline(always)]
fn encode_2(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    block.fill(0);
    let d = largest(values).abs();
    let inverse = inverse(d);
    put_half(block, 64, d);
    for (r, values) in values.chunks_exact(32).enumerate() {
        for (byte, &value) in block[r / 4 * 32..].iter_mut().zip(values) {
            *byte |= digit(value, inverse) << (r % 4 * 2);
        }
    }
}
