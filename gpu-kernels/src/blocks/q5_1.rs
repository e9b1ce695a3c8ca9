//! Q5_1: 32 values of five bits with a scale and a minimum.

use super::{Blocks, half, nibbles::five};
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
