//! The norms of the heads of Q and K, before they are rotated.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    rms_norm::scale,
};

/// Threads of a block: a warp for its head.
pub const BLOCK_SIZE: u32 = 32;

/// Of each row `[q; k; v]` of `qkv` every head of q and of k becomes `x / sqrt(mean(x²) + eps) * weight`, in place, where `x` is what it was
/// and its bias (Qwen3's QK-norm; Henry et al. 2020, "Query-key normalization for transformers").
#[kernel_args]
pub struct QkNorm {
    pub q_heads: u32,
    pub k_heads: u32,
    pub head_dim: u32,
    /// f32 `[rows, (q_heads + 2 k_heads) * head_dim]`
    pub qkv: *mut f32,
    /// f32 `[head_dim]`
    pub q_weight: *const f32,
    /// f32 `[head_dim]`
    pub k_weight: *const f32,
    /// f32 `[q_heads * head_dim]`, or null.
    pub q_bias: *const f32,
    /// f32 `[k_heads * head_dim]`, or null.
    pub k_bias: *const f32,
    pub eps: f32,
}

/// f32 throughout; the sum of squares has a fixed order: each lane adds its values from left to right, then a butterfly over the warp.
///
/// Grid `[rows, q_heads + k_heads, 1]`, exact; block `[BLOCK_SIZE, 1, 1]`. Lane `t` takes values `t`, `t + 32`, …. Any `head_dim`.
/// Written to be read: a head is read twice, value by value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`QkNorm`], `qkv` overlaps nothing.
#[kernel(E = [f32], name = "qk_norm_{E}_plain")]
pub unsafe fn plain(a: QkNorm) {
    let QkNorm { q_heads, k_heads, head_dim, qkv, q_weight, k_weight, q_bias, k_bias, eps } = a;
    launch_dependents();
    wait_for_dependencies();
    let (head, lane) = (thread::block_idx_y(), thread::thread_idx_x());
    let start =
        crate::grid::offset(thread::block_idx_x(), (q_heads + 2 * k_heads) * head_dim, head * head_dim);
    let is_q = head < q_heads;
    let weight = if is_q { q_weight } else { k_weight };
    let (bias, of_kind) = if is_q { (q_bias, head) } else { (k_bias, head - q_heads) };
    // SAFETY: the grid has a block for each head of each row; values stay inside the head.
    unsafe {
        let x = qkv.add(start);
        let mut sum = 0.0;
        let mut i = lane;
        while i < head_dim {
            let mut value = *x.add(i as usize);
            if !bias.is_null() {
                value += *bias.add((of_kind * head_dim + i) as usize);
                *x.add(i as usize) = value;
            }
            sum = value.mul_add(value, sum);
            i += 32;
        }
        let scale = scale(warp::reduce_sum(sum), head_dim, eps);
        let mut i = lane;
        while i < head_dim {
            *x.add(i as usize) = *x.add(i as usize) * scale * *weight.add(i as usize);
            i += 32;
        }
    }
}
