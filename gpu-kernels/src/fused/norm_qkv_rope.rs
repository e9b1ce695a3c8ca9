//! What comes before attention: norm, Q, K and V projections with their biases, rotation, and the write to the pages.

use cuda_std::prelude::*;

#[device]
use super::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies};
#[device]
use crate::{
    PAGE_SIZE,
    grid::{divide, offset, repeat},
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Lanes that compute a pair of values that are rotated together.
pub const LANES: u32 = 32;
/// Pairs that a block computes at a time.
pub const PAIRS_PER_BLOCK: u32 = BLOCK_SIZE / LANES;

/// The shape of the projections.
#[device]
#[derive(Clone, Copy)]
struct Shape {
    n: u32,
    hidden_size: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    head_dim: u32,
}

/// Which projection a head belongs to, and the head's number in it.
#[device]
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Q,
    K,
    V,
}

#[device]
impl Shape {
    #[inline(always)]
    fn part(&self, head: u32) -> (Part, u32) {
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

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn norm_qkv_rope<E: PackedElement + Saturate, const N: usize>(
    shape: Shape,
    x: *const f32,
    norm: *const f32,
    eps: f32,
    weights: [*const E; 3],
    biases: [*const f32; 3],
    positions: *const u32,
    slots: *const u32,
    cos: *const f32,
    sin: *const f32,
    q: *mut f32,
    k_pages: *mut E,
    v_pages: *mut E,
) {
    launch_dependents();
    let Shape { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim } = shape;
    let half = head_dim / 2;
    let lane = thread::thread_idx_x() % LANES;
    let words = hidden_size / WORD;
    let stage = Stage::new(n, words);
    let num_pairs = (num_attention_heads + 2 * num_key_value_heads) * half;
    let step = thread::grid_dim_x() * PAIRS_PER_BLOCK;
    let group = thread::thread_idx_x() / LANES;
    let mut first = thread::block_idx_x() * PAIRS_PER_BLOCK;
    let ([q_weight, k_weight, v_weight], [q_bias, k_bias, v_bias]) = (weights, biases);
    // SAFETY: every pair is of one of the projections; groups beyond the last pair compute it again and do not store.
    unsafe {
        let dot = |first: u32| {
            let (head, j) = divide((first + group).min(num_pairs - 1), half);
            let (part, head) = shape.part(head);
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
                    let (part, head) = shape.part(head);
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
                        let slot = *slots.add(i);
                        let head_of_page =
                            (slot / PAGE_SIZE) as usize * num_key_value_heads as usize + head as usize;
                        let place = head_of_page * PAGE_SIZE as usize + (slot % PAGE_SIZE) as usize;
                        let pages = if part == Part::K { k_pages } else { v_pages };
                        let to = pages.add(place * head_dim as usize + j as usize);
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

macro_rules! norm_qkv_rope {
    ($($name:ident: $rows:literal, $element:ident;)*) => { $(
        #[doc = concat!("Q, K and V of at most ", stringify!($rows), " rows: projections of `x / sqrt(mean(x²) + eps) * norm` with their biases, Q and K")]
        /// rotated as in [`bias_rope_kv`](crate::bias_rope_kv), K and V written to their slots.
        ///
        /// - `x`: f32 `[n, hidden_size]`; `norm`: f32 `[hidden_size]`
        #[doc = concat!("- `q_weight`: ", stringify!($element), " `[num_attention_heads * head_dim, hidden_size]`; `k_weight`, `v_weight`: `[num_key_value_heads * head_dim, hidden_size]`")]
        /// - `q_bias`, `k_bias`, `v_bias`: f32, a value for each row of the weights, or null
        /// - `positions`, `slots`: u32 `[n]`; `cos`, `sin`: f32 `[max_positions, head_dim / 2]`
        /// - `q`: f32 `[n, num_attention_heads * head_dim]`
        #[doc = concat!("- `k_pages`, `v_pages`: ", stringify!($element), " `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`")]
        ///
        /// Grid `[blocks, 1, 1]`, any number of them from 1 to `ceil(pairs / PAIRS_PER_BLOCK)`, where the pairs are
        /// `(num_attention_heads + 2 num_key_value_heads) * head_dim / 2`; block `[BLOCK_SIZE, 1, 1]`; dynamic shared memory
        /// [`stage_bytes`](super::stage_bytes) of `n` rows of `hidden_size`, a multiple of 8.
        ///
        /// # Safety
        /// Grid, block and arrays are as above, matrices and `x` aligned to 16 bytes; positions and slots are in range, slots
        /// different; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
        #[kernel(max_threads = 256, min_blocks = 2)]
        pub unsafe fn $name(
            n: u32,
            hidden_size: u32,
            num_attention_heads: u32,
            num_key_value_heads: u32,
            head_dim: u32,
            x: *const f32,
            norm: *const f32,
            eps: f32,
            q_weight: *const $element,
            k_weight: *const $element,
            v_weight: *const $element,
            q_bias: *const f32,
            k_bias: *const f32,
            v_bias: *const f32,
            positions: *const u32,
            slots: *const u32,
            cos: *const f32,
            sin: *const f32,
            q: *mut f32,
            k_pages: *mut $element,
            v_pages: *mut $element,
        ) {
            let shape = Shape { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim };
            let (weights, biases) = ([q_weight, k_weight, v_weight], [q_bias, k_bias, v_bias]);
            // SAFETY: the kernel's own contract.
            unsafe {
                norm_qkv_rope::<$element, $rows>(
                    shape, x, norm, eps, weights, biases, positions, slots, cos, sin, q, k_pages, v_pages,
                )
            }
        }
    )* };
}

norm_qkv_rope! {
    norm_qkv_rope_f16_one: 1, f16;
    norm_qkv_rope_bf16_one: 1, bf16;
    norm_qkv_rope_f16_few: 4, f16;
    norm_qkv_rope_bf16_few: 4, bf16;
}
