//! Floats as blocks of one value, for kernels that take a matrix of any format.

use super::Blocks;
use cuda_std::prelude::*;

macro_rules! floats {
    ($($float:ident: $bytes:literal)*) => { $(
        #[device]
        impl Blocks for $float {
            const VALUES: u32 = 1;
            const BYTES: u32 = $bytes;

            #[inline(always)]
            unsafe fn value(block: *const u8, _: u32) -> f32 {
                // SAFETY: the caller's block is this value, and buffers are aligned.
                Element::to_f32(unsafe { block.cast::<$float>().read() })
            }
        }
    )* };
}
floats! { f32: 4 f16: 2 bf16: 2 }
