//! What `core` computes with the hardware's instructions.

pub use core::intrinsics::{
    ceilf32, ceilf64, floorf32, floorf64, fmaf32, fmaf64, round_ties_even_f32, round_ties_even_f64, roundf32,
    roundf64, sqrtf32, sqrtf64, truncf32, truncf64,
};
