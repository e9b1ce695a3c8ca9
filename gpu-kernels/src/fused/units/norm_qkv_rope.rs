//! What comes before attention, of weights in units: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_qkv_rope::NormQkvRope;
#[device]
use super::super::norm_qkv_rope::Part;
#[device]
use super::{Normed, Product, Tiles};
#[device]
use crate::{
    bias_rope_kv::place as place_in_pages,
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset},
    units::*,
    vector::Saturate,
};

/// Pairs of values that are rotated together, of one head, that a block computes: the tile's first eight rows are their first values,
/// the others their second ones: a span of half a head.
pub const PAIRS_PER_BLOCK: u32 = 8;

/// At most `N` rows, as `G` second operands; Q and K in one format, V in another or the same. The weights lead to units.
///
/// Grid `[(num_attention_heads + 2 num_key_value_heads) * head_dim / 2 / PAIRS_PER_BLOCK, 1, 1]`, `head_dim` a multiple of
/// 16; block `[32 * warps, 1, 1]` of [`num_warps`](super::num_warps), at least `N / 2` warps; dynamic shared memory
/// [`ring_bytes`](super::ring_bytes) and [`shared_bytes`](super::shared_bytes) for either format.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    (W, V) = [
        (q4_0::q4_0, q4_0::q4_0), (q4_k::q4_k, q4_k::q4_k), (q4_k::q4_k, q6_k::q6_k), (q5_0::q5_0, q5_0::q5_0), (q5_0::q5_0, q8_0::q8_0), (q5_k::q5_k, q5_k::q5_k), (q5_k::q5_k, q6_k::q6_k), (q6_k::q6_k, q6_k::q6_k), (q8_0::q8_0, q8_0::q8_0)
    ],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_qkv_rope_{W}_{V}_units_{N}",
    max_threads = 512,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, V: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    let NormQkvRope { num_attention_heads, num_key_value_heads, head_dim, .. } = a;
    let NormQkvRope { q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, .. } = a;
    launch_dependents();
    let (head, first) = divide(thread::block_idx_x(), head_dim / 2 / PAIRS_PER_BLOCK);
    let first = first * PAIRS_PER_BLOCK;
    // The same for the whole block.
    // SAFETY: the grid has a block for each eight pairs of each head.
    unsafe {
        if head < num_attention_heads {
            project::<W, N, G>(a, Part::Q, head, first, q_weight, q_bias);
        } else if head < num_attention_heads + num_key_value_heads {
            project::<W, N, G>(a, Part::K, head - num_attention_heads, first, k_weight, k_bias);
        } else {
            let head = head - num_attention_heads - num_key_value_heads;
            project::<V, N, G>(a, Part::V, head, first, v_weight, v_bias);
        }
    }
}

/// Eight pairs of a head, from pair `first` on.
///
/// # Safety
/// As [`units`].
#[device]
#[inline(always)]
unsafe fn project<W: Unit, const N: usize, const G: usize>(
    a: NormQkvRope<f16>,
    part: Part,
    head: u32,
    first: u32,
    weight: *const f16,
    bias: *const f32,
) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, depth, .. } = a;
    let NormQkvRope { x, norm, eps, positions, slots, cos, sin, q, k_pages, v_pages, .. } = a;
    let half = head_dim / 2;
    // SAFETY: the caller's promise.
    unsafe {
        let tile = (head * half + first) / PAIRS_PER_BLOCK;
        let units = divide(hidden_size, W::COLS).0;
        let tiles = Tiles { weights: weight.cast(), count: tile + 1, units, first: tile, step: 1 };
        let product = Product::<W, N, G>::begin(tiles, depth);
        let mut inputs = Normed::new(x, norm, hidden_size);
        product.prepare(&mut inputs);

        // What the thread that finishes a pair needs besides, fetched while the kernel before this one runs.
        let (i, r) = (thread::thread_idx_x() / 16 % N as u32, thread::thread_idx_x() % 8);
        let i = i.min(n - 1);
        let column = (head * head_dim + first + r) as usize;
        let (mut add, mut rotate, mut slot) = ([0.0f32; 2], [1.0f32, 0.0], 0);
        if thread::thread_idx_x() < 16 * N as u32 {
            if !bias.is_null() {
                add = [*bias.add(column), *bias.add(column + half as usize)];
            }
            if part != Part::V {
                let angle = offset(*positions.add(i as usize), half, first + r);
                rotate = [*cos.add(angle), *sin.add(angle)];
            }
            slot = *slots.add(i as usize);
        }

        wait_for_dependencies();
        let scale = |squares| crate::rms_norm::scale(squares, hidden_size, eps);
        product.multiply(n, inputs, scale, |_, i, r, a, b| {
            let (a, b) = (a + add[0], b + add[1]);
            let [cos, sin] = rotate;
            let (a, b) = (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
            let half = half as usize;
            if part == Part::Q {
                let to = q.add(offset(i, num_attention_heads * head_dim, head * head_dim + first + r));
                *to = a;
                *to.add(half) = b;
            } else {
                let place = place_in_pages(slot, head, num_key_value_heads, head_dim);
                let pages = if part == Part::K { k_pages } else { v_pages };
                let to = pages.add(place + (first + r) as usize);
                *to = f16::round(a);
                *to.add(half) = f16::round(b);
            }
        });
    }
}
