//! Q5_1: 32 values of five bits with a scale and a minimum.

use super::{Blocks, eight::*, half, nibbles::five};
use cuda_std::prelude::*;

/// Bytes 0 to 3: the scale `d` and the minimum `m`, f16. Bytes 4 to 7: the fifth bits, bit `j` that of value `j`. Byte `8 + j`: four bits
/// of value `j` in the low half, of value `j + 16` in the high one. A value is `d * q + m`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q5_1;

#[device]
impl Blocks for q5_1 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 24;

    #[inline(always)]
    unsafe fn value(block: *const u8, i: u32) -> f32 {
        // SAFETY: the caller's block has these bytes.
        unsafe { half(block, 0) * five(block.add(4), i) as f32 + half(block, 2) }
    }
}

#[device]
impl Eights for q5_1 {
    #[inline(always)]
    unsafe fn eight(block: *const u8, i: u32) -> Eight {
        // SAFETY: the caller's block has these bytes.
        unsafe {
            let [halves, fifth] = eight_bytes::<Self>(block, 0);
            let (d, m) = f16::unpack2(halves);
            let bytes = either(four_bits::<Self, 16>(block, 8, i), spread(fifth >> i, 4));
            Eight { added: Some(m), ..Eight::new(bytes, 0, d) }
        }
    }
}
