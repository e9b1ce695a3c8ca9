//! What is between the product of Q, K and V and attention: biases, norms of heads, rotation, the pages of K and V.
//!
//! Each row `[q; k; v]` of `qkv` gets its biases, heads of Q and K become `x / sqrt(mean(x²) + eps) * weight` where there are norms (Qwen3's
//! QK-norm; Henry et al. 2020, "Query-key normalization for transformers"), Q and K are rotated by the row's position, Q goes to `q`, K and V to their slots in the
//! pages of one layer: one pass over what would take six. With `h = head_dim / 2`, `p = positions[row]` and `j < h` the rotation of
//! a head is `(x[j], x[j + h]) = (x[j] cos[p, j] - x[j + h] sin[p, j], x[j + h] cos[p, j] + x[j] sin[p, j])` (Su et al. 2021,
//! "RoFormer", in the rotate-half form of GPT-NeoX that Qwen2 uses).
//!
//! Grid `[num_tokens, blocks, 1]`, exact in the rows; block `[threads, 1, 1]`, at most [`MAX_BLOCK_SIZE`]. A thread takes `pairs`
//! neighbouring pairs of values that are `head_dim / 2` apart, as Q's and K's rotation pairs them; there are threads for all.
//!
//! Safety: grid and block are as above, arrays have the lengths of [`BiasRopeKv`] and do not overlap, positions and slots are in
//! range.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat, row_and_column},
    norm,
    vector::{Group, Saturate},
};

/// The most threads of a block.
pub const MAX_BLOCK_SIZE: u32 = 256;

/// What all kernels take.
#[kernel_args]
pub struct BiasRopeKv<E> {
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    pub head_dim: u32,
    /// u32 `[num_tokens]`, each below `max_positions`
    pub positions: *const u32,
    /// u32 `[num_tokens]`, `page * PAGE_SIZE + place`, all different
    pub slots: *const u32,
    /// f32 `[max_positions, head_dim / 2]`, of the angles `p * rope_theta^(-2j / head_dim)`; a table made in higher precision
    /// on the host, so that large positions lose nothing here
    pub cos: *const f32,
    /// As `cos`
    pub sin: *const f32,
    /// f32 `[num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]`
    pub qkv: *const f32,
    /// f32 `[num_attention_heads * head_dim]`, or null where there is none
    pub q_bias: *const f32,
    /// f32 `[num_key_value_heads * head_dim]`, or null
    pub k_bias: *const f32,
    /// As `k_bias`
    pub v_bias: *const f32,
    /// f32 `[head_dim]`, or null where heads are not normed
    pub q_norm: *const f32,
    /// As `q_norm`, and null where that is
    pub k_norm: *const f32,
    pub eps: f32,
    /// f32 `[num_tokens, num_attention_heads * head_dim]`
    pub q: *mut f32,
    /// E `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`, rounded to nearest even, no f16 to infinity
    pub k_pages: *mut E,
    /// As `k_pages`
    pub v_pages: *mut E,
}

/// Where a head of the token in `slot` begins in the pages of a layer.
#[device]
#[inline(always)]
pub fn place(slot: u32, head: u32, num_key_value_heads: u32, head_dim: u32) -> usize {
    use crate::PAGE_SIZE;
    let (page, place) = (slot / PAGE_SIZE, slot % PAGE_SIZE);
    let head_of_page = page as usize * num_key_value_heads as usize + head as usize;
    (head_of_page * PAGE_SIZE as usize + place as usize) * head_dim as usize
}

/// Which head of which of Q, K and V a head of a row is.
#[device]
#[derive(Clone, Copy)]
struct Head {
    is_q: bool,
    is_v: bool,
    /// Among those of its own.
    index: u32,
}

#[device]
impl Head {
    #[inline(always)]
    fn new(head: u32, num_attention_heads: u32, num_key_value_heads: u32) -> Self {
        let is_q = head < num_attention_heads;
        let is_v = head >= num_attention_heads + num_key_value_heads;
        let before = if is_q {
            0
        } else if is_v {
            num_attention_heads + num_key_value_heads
        } else {
            num_attention_heads
        };
        Self { is_q, is_v, index: head - before }
    }

    /// Its own of three pointers.
    #[inline(always)]
    fn pick(self, q: *const f32, k: *const f32, v: *const f32) -> *const f32 {
        if self.is_q {
            q
        } else if self.is_v {
            v
        } else {
            k
        }
    }
}

/// One thread a pair: `pairs` is 1, `head_dim` even.
///
/// # Safety
/// As the [module](self) says.
#[kernel(E = [f32, f16, bf16], name = "bias_rope_kv_{E}_plain", max_threads = 256)]
pub unsafe fn plain<E: Saturate>(a: BiasRopeKv<E>) {
    let BiasRopeKv { num_attention_heads, num_key_value_heads, head_dim, .. } = a;
    let BiasRopeKv { positions, slots, cos, sin, qkv, q_bias, k_bias, v_bias, q_norm, k_norm, eps, .. } = a;
    let BiasRopeKv { q, k_pages, v_pages, .. } = a;
    launch_dependents();
    wait_for_dependencies();
    let half = head_dim / 2;
    let heads = num_attention_heads + 2 * num_key_value_heads;
    let Some((row, pair)) = row_and_column(heads * half) else { return };
    let (head, j) = divide(pair, half);
    let part = Head::new(head, num_attention_heads, num_key_value_heads);
    // SAFETY: the grid has one row of blocks a token; positions are rows of the tables, slots of the layer's pages.
    unsafe {
        let from = qkv.add(offset(row, heads * head_dim, head * head_dim + j));
        let (mut a, mut b) = (*from, *from.add(half as usize));
        let bias = part.pick(q_bias, k_bias, v_bias);
        if !bias.is_null() {
            let bias = bias.add(offset(part.index, head_dim, j));
            a += *bias;
            b += *bias.add(half as usize);
        }
        if !part.is_v && !q_norm.is_null() {
            let (mut squares, mut d) = (0.0, 0);
            while d < head_dim {
                let mut x = *qkv.add(offset(row, heads * head_dim, head * head_dim + d));
                if !bias.is_null() {
                    x += *bias.add(offset(part.index, head_dim, d));
                }
                squares = x.mul_add(x, squares);
                d += 1;
            }
            let scale = norm::scale(squares, head_dim, eps);
            let weight = if part.is_q { q_norm } else { k_norm };
            a = a * scale * *weight.add(j as usize);
            b = b * scale * *weight.add((j + half) as usize);
        }
        if !part.is_v {
            let angle = offset(*positions.add(row as usize), half, j);
            let (cos, sin) = (*cos.add(angle), *sin.add(angle));
            (a, b) = (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
        }
        if part.is_q {
            let to = q.add(offset(row, num_attention_heads * head_dim, head * head_dim + j));
            *to = a;
            *to.add(half as usize) = b;
        } else {
            let pages = if part.is_v { v_pages } else { k_pages };
            let slot = *slots.add(row as usize);
            let to = pages.add(place(slot, part.index, num_key_value_heads, head_dim) + j as usize);
            *to = E::round(a);
            *to.add(half as usize) = E::round(b);
        }
    }
}

/// Loads of 16 bytes, a quarter of the instructions: `pairs` is 4, `head_dim` a multiple of 8, all pointers aligned to 16
/// bytes. Where heads are normed, `head_dim / 8` is a power of two and at most 32: lanes of one warp, whose squares are added in a
/// butterfly.
///
/// # Safety
/// As the [module](self) says.
#[kernel(E = [f32, f16, bf16], name = "bias_rope_kv_{E}_vec4", max_threads = 256)]
pub unsafe fn vec4<E: Group<4>>(a: BiasRopeKv<E>) {
    let BiasRopeKv { num_attention_heads, num_key_value_heads, head_dim, .. } = a;
    let BiasRopeKv { positions, slots, cos, sin, qkv, q_bias, k_bias, v_bias, q_norm, k_norm, eps, .. } = a;
    let BiasRopeKv { q, k_pages, v_pages, .. } = a;
    launch_dependents();
    let half = head_dim / 2;
    let heads = num_attention_heads + 2 * num_key_value_heads;
    let groups = heads * (half / 4);
    let row = thread::block_idx_x();
    let group = thread::block_idx_y() * thread::block_dim_x() + thread::thread_idx_x();
    // Threads without a group stay for the shuffles.
    let is_group = group < groups;
    let (head, j) = divide(group.min(groups - 1), half / 4);
    let j = 4 * j;
    let part = Head::new(head, num_attention_heads, num_key_value_heads);
    // SAFETY: as in the plain kernel; groups of four are whole and aligned.
    unsafe {
        // What the product before this does not write, fetched while it runs.
        type Halves = [[f32; 4]; 2];
        let load = |from: *const f32| -> Halves {
            [f32::load_group(from), f32::load_group(from.add(half as usize))]
        };
        let (mut added, mut weights, mut angles): (Halves, Halves, Halves) = Default::default();
        let bias = part.pick(q_bias, k_bias, v_bias);
        if !bias.is_null() {
            added = load(bias.add(offset(part.index, head_dim, j)));
        }
        let is_normed = !q_norm.is_null();
        let slot = *slots.add(row as usize);
        if !part.is_v {
            let angle = offset(*positions.add(row as usize), half, j);
            angles = [f32::load_group(cos.add(angle)), f32::load_group(sin.add(angle))];
            if is_normed {
                weights = load((if part.is_q { q_norm } else { k_norm }).add(j as usize));
            }
        }
        wait_for_dependencies();
        let [mut a, mut b] = load(qkv.add(offset(row, heads * head_dim, head * head_dim + j)));
        repeat(4, |i| {
            a[i] += added[0][i];
            b[i] += added[1][i];
        });
        // All threads of the launch agree.
        if is_normed {
            let mut squares = 0.0;
            repeat(4, |i| squares = a[i].mul_add(a[i], squares));
            repeat(4, |i| squares = b[i].mul_add(b[i], squares));
            let mut lanes = half / 8;
            while lanes > 0 {
                squares += warp::shuffle_xor(squares, lanes);
                lanes /= 2;
            }
            if !part.is_v {
                let scale = norm::scale(squares, head_dim, eps);
                repeat(4, |i| {
                    a[i] = a[i] * scale * weights[0][i];
                    b[i] = b[i] * scale * weights[1][i];
                });
            }
        }
        if !part.is_v {
            let [cos, sin] = angles;
            repeat(4, |i| {
                (a[i], b[i]) = (a[i].mul_add(cos[i], -(b[i] * sin[i])), b[i].mul_add(cos[i], a[i] * sin[i]));
            });
        }
        if !is_group {
            return;
        }
        if part.is_q {
            let to = q.add(offset(row, num_attention_heads * head_dim, head * head_dim + j));
            f32::store_group(to, a);
            f32::store_group(to.add(half as usize), b);
        } else {
            let pages = if part.is_v { v_pages } else { k_pages };
            let to = pages.add(place(slot, part.index, num_key_value_heads, head_dim) + j as usize);
            E::store_saturated(to, a);
            E::store_saturated(to.add(half as usize), b);
        }
    }
}
