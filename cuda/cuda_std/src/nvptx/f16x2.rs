//! Two f16 at once, on the device.

use core::arch::asm;

macro_rules! arithmetic {
    ($($name:ident($($argument:ident),*) = $instruction:literal;)*) => { $(
        #[inline(always)]
        pub fn $name($($argument: u32),*) -> u32 {
            let d: u32;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!($instruction, out(reg32) d, $(in(reg32) $argument),*, options(pure, nomem, nostack, preserves_flags));
            }
            d
        }
    )* };
}

arithmetic! {
    sub(a, b) = "sub.rn.f16x2 {}, {}, {};";
    mul(a, b) = "mul.rn.f16x2 {}, {}, {};";
    mul_add(a, b, c) = "fma.rn.f16x2 {}, {}, {}, {};";
    bytes(a, b, selector) = "prmt.b32 {}, {}, {}, {};";
    // The table of `a & b | c`.
    masked(a, b, c) = "lop3.b32 {}, {}, {}, {}, 0xea;";
}
