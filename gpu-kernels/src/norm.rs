//! What kernels that normalise beside what else they do share with [`rms_norm`](crate::rms_norm).

use cuda_std::prelude::*;

/// What a row's values are multiplied with, from the sum of their squares: `1 / sqrt(sum / hidden_size + eps)`.
#[device]
#[inline(always)]
pub fn scale(sum_of_squares: f32, hidden_size: u32, eps: f32) -> f32 {
    1.0 / (sum_of_squares / hidden_size as f32 + eps).sqrt()
}
