//! Q4_0: 32 values of four bits with a scale.

use super::Blocks;
use cuda_std::prelude::*;

/// Bytes 0 and 1: the scale `d`, an f16. Byte `2 + j`: value `j` in the low half, value `j + 16` in the high one. A value is `d * (q - 8)`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_0;

#[device]
impl Blocks for q4_0 {
    const VALUES: u32 = 32;
    const BYTES: u32 = 18;

    #[inline(always)]
    unsafe fn value(row: *const u8, column: u32) -> f32 {
        let j = (column % 32) as usize;
        // SAFETY: the caller's row has this block, whose scale is aligned to two bytes.
        unsafe {
            let block = row.add((column / 32) as usize * Self::BYTES as usize);
            let d = block.cast::<f16>().read().to_f32();
            let byte = u32::from(block.add(2 + j % 16).read());
            d * ((byte >> (j / 16 * 4) & 15) as i32 - 8) as f32
        }
    }
}
