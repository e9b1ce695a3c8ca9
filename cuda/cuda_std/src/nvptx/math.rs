//! What `core` computes with the hardware's instructions.

pub use core::intrinsics::{
    ceilf32, ceilf64, floorf32, floorf64, fmaf32, fmaf64, round_ties_even_f32, round_ties_even_f64, roundf32,
    roundf64, sqrtf32, sqrtf64, truncf32, truncf64,
};

/// `max.f32`.
#[inline(always)]
pub fn maxf32(a: f32, b: f32) -> f32 {
    a.max(b)
}

/// `min.f32`.
#[inline(always)]
pub fn minf32(a: f32, b: f32) -> f32 {
    a.min(b)
}

/// What the host has to do for the hardware's NaN; the hardware makes it by itself.
#[inline(always)]
pub fn canonical(x: f32) -> f32 {
    x
}

/// `dp4a`.
#[inline(always)]
pub fn dot4_s8(a: u32, b: u32, c: i32) -> i32 {
    let d: i32;
    // SAFETY: arithmetic on registers.
    unsafe {
        core::arch::asm!("dp4a.s32.s32 {}, {}, {}, {};", out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack, preserves_flags));
    }
    d
}
