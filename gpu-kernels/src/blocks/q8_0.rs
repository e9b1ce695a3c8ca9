//! Q8_0: 32 values of eight bits with a scale.

use super::Blocks;
use cuda_std::prelude::*;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: the signed value `j`. A value is `d * q`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q8_0;

#[device]
impl Blocks for q8_0 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 34;

    #[inline(always)]
    unsafe fn value(row: *const u8, column: u32) -> f32 {
        // SAFETY: the caller's row has this block, whose scale is aligned to two bytes.
        unsafe {
            let block = row.add((column / 32) as usize * Self::BYTES as usize);
            let d = block.cast::<f16>().read().to_f32();
            d * f32::from(block.add(2 + (column % 32) as usize).cast::<i8>().read())
        }
    }
}
