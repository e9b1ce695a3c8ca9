//! The float formats as formats of matrices: blocks of one value, little-endian.

use super::{Blocks, Encode};
use crate::gguf::GgmlType;
use half::{bf16, f16};

/// IEEE 754 single precision.
pub enum F32 {}
/// IEEE 754 half precision.
pub enum F16 {}
/// The upper half of an f32.
pub enum Bf16 {}

fn bytes<const N: usize>(block: &[u8]) -> [u8; N] {
    block.try_into().expect("a block of this format")
}

impl Blocks for F32 {
    const GGML: GgmlType = GgmlType::F32;
    const NAME: &'static str = "f32";
    const VALUES: usize = 1;
    const BYTES: usize = 4;
    const ENCODE: Option<Encode> = Some(|values, _, block| block.copy_from_slice(&values[0].to_le_bytes()));

    fn decode(block: &[u8], values: &mut [f32]) {
        values[0] = f32::from_le_bytes(bytes(block));
    }
}

impl Blocks for F16 {
    const GGML: GgmlType = GgmlType::F16;
    const NAME: &'static str = "f16";
    const VALUES: usize = 1;
    const BYTES: usize = 2;
    const ENCODE: Option<Encode> =
        Some(|values, _, block| block.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes()));

    fn decode(block: &[u8], values: &mut [f32]) {
        values[0] = f16::from_le_bytes(bytes(block)).to_f32();
    }
}

impl Blocks for Bf16 {
    const GGML: GgmlType = GgmlType::BF16;
    const NAME: &'static str = "bf16";
    const VALUES: usize = 1;
    const BYTES: usize = 2;
    const ENCODE: Option<Encode> =
        Some(|values, _, block| block.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes()));

    fn decode(block: &[u8], values: &mut [f32]) {
        values[0] = bf16::from_le_bytes(bytes(block)).to_f32();
    }
}
