//! What comes before attention: norm, Q, K and V projections with their biases, rotation, and the write to the pages.

use cuda_std::prelude::*;

#[device]
use super::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies};
#[device]
use crate::{
    bias_rope_kv::place,
    grid::{divide, offset, repeat},
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Lanes that compute a pair of values that are rotated together.
pub const LANES: u32 = 32;
/// Pairs that a block computes at a time.
pub const PAIRS_PER_BLOCK: u32 = BLOCK_SIZE / LANES;

/// Q, K and V: projections of `x / sqrt(mean(x²) + eps) * norm` with their biases, Q and K rotated as in
/// [`bias_rope_kv`](crate::bias_rope_kv), K and V written to their slots.
#[kernel_args]
pub struct NormQkvRope<E> {
    pub n: u32,
    pub hidden_size: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    pub head_dim: u32,
    /// Of the stream of the kernels on tensor cores; the others do not look at it.
    pub depth: u32,
    /// Blocks that compute V, the last of the grid: of the kernels for units in several formats.
    pub v_blocks: u32,
    /// f32 `[n, hidden_size]`
    pub x: *const f32,
    /// f32 `[hidden_size]`
    pub norm: *const f32,
    pub eps: f32,
    /// E `[num_attention_heads * head_dim, hidden_size]`
    pub q_weight: *const E,
    /// E `[num_key_value_heads * head_dim, hidden_size]`
    pub k_weight: *const E,
    /// As `k_weight`
    pub v_weight: *const E,
    /// f32, a value for each row of the weight, or null
    pub q_bias: *const f32,
    /// As `q_bias`
    pub k_bias: *const f32,
    /// As `q_bias`
    pub v_bias: *const f32,
    /// u32 `[n]`, each below `max_positions`
    pub positions: *const u32,
    /// u32 `[n]`, all different
    pub slots: *const u32,
    /// f32 `[max_positions, head_dim / 2]`
    pub cos: *const f32,
    /// As `cos`
    pub sin: *const f32,
    /// f32 `[n, num_attention_heads * head_dim]`
    pub q: *mut f32,
    /// E `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`
    pub k_pages: *mut E,
    /// As `k_pages`
    pub v_pages: *mut E,
}

/// Which projection a head belongs to, and the head's number in it.
#[device]
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    Q,
    K,
    V,
}

#[device]
impl<E> NormQkvRope<E> {
    #[inline(always)]
    pub(super) fn part(&self, head: u32) -> (Part, u32) {
        let keys = self.num_attention_heads;
        let values = keys + self.num_key_value_heads;
        if head < keys {
            (Part::Q, head)
        } else if head < values {
            (Part::K, head - keys)
        } else {
            (Part::V, head - values)
        }
    }
}

/// At most `N` rows.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(pairs / PAIRS_PER_BLOCK)`, where the pairs are
/// `(num_attention_heads + 2 num_key_value_heads) * head_dim / 2`; block `[BLOCK_SIZE, 1, 1]`; dynamic shared memory
/// [`stage_bytes`](super::stage_bytes) of `n` rows of `hidden_size`, a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16, bf16],
    N = [one: 1, few: 4],
    name = "norm_qkv_rope_{E}_{N}",
    max_threads = 256,
    min_blocks = 2,
)]
pub unsafe fn lanes<E: PackedElement + Saturate, const N: usize>(a: NormQkvRope<E>) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, .. } = a;
    let NormQkvRope { x, norm, eps, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, .. } = a;
    let NormQkvRope { positions, slots, cos, sin, q, k_pages, v_pages, .. } = a;
    launch_dependents();
    let half = head_dim / 2;
    let lane = thread::thread_idx_x() % LANES;
    let words = hidden_size / WORD;
    let stage = Stage::new(n, words);
    let num_pairs = (num_attention_heads + 2 * num_key_value_heads) * half;
    let step = thread::grid_dim_x() * PAIRS_PER_BLOCK;
    let group = thread::thread_idx_x() / LANES;
    let mut first = thread::block_idx_x() * PAIRS_PER_BLOCK;
    // SAFETY: every pair is of one of the projections; groups beyond the last pair compute it again and do not store.
    unsafe {
        let dot = |first: u32| {
            let (head, j) = divide((first + group).min(num_pairs - 1), half);
            let (part, head) = a.part(head);
            let weight = if part == Part::Q {
                q_weight
            } else if part == Part::K {
                k_weight
            } else {
                v_weight
            };
            let row = weight.add(offset(head * head_dim + j, hidden_size, 0));
            Dot::<E, 2, 4, LANES>::new([row, row.add(offset(half, hidden_size, 0))], words, lane)
        };
        let mut products = dot(first);
        let ahead = stage.load_norm(norm);
        wait_for_dependencies();
        let scales = stage.copy_normed::<N>(x, norm, ahead, eps);
        loop {
            let pair = first + group;
            let shares = products.shares::<N>(lane, stage);
            first += step;
            // The next weights are under way while these products are added up.
            if first < num_pairs {
                products = dot(first);
            }
            let sums = sum_of_lanes::<2, N, LANES>(shares);
            repeat(N, |i| {
                if lane == i as u32 && lane < n && pair < num_pairs {
                    let (head, j) = divide(pair, half);
                    let (part, head) = a.part(head);
                    let bias = if part == Part::Q {
                        q_bias
                    } else if part == Part::K {
                        k_bias
                    } else {
                        v_bias
                    };
                    let (mut a, mut b) = (sums[0][i] * scales[i], sums[1][i] * scales[i]);
                    if !bias.is_null() {
                        let column = (head * head_dim + j) as usize;
                        a += *bias.add(column);
                        b += *bias.add(column + half as usize);
                    }
                    if part != Part::V {
                        let angle = offset(*positions.add(i), half, j);
                        let (cos, sin) = (*cos.add(angle), *sin.add(angle));
                        (a, b) = (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
                    }
                    if part == Part::Q {
                        let to = q.add(offset(i as u32, num_attention_heads * head_dim, head * head_dim + j));
                        *to = a;
                        *to.add(half as usize) = b;
                    } else {
                        let place = place(*slots.add(i), head, num_key_value_heads, head_dim);
                        let pages = if part == Part::K { k_pages } else { v_pages };
                        let to = pages.add(place + j as usize);
                        *to = E::round(a);
                        *to.add(half as usize) = E::round(b);
                    }
                }
            });
            if first >= num_pairs {
                return;
            }
        }
    }
}
