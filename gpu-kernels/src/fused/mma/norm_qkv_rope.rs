//! What comes before attention, on tensor cores: see the [module](super).

use cuda_std::prelude::*;

use super::super::norm_qkv_rope::NormQkvRope;
#[device]
use super::super::norm_qkv_rope::Part;
use super::stream_bytes;
#[device]
use super::{Normed, Stream, Tiles, row_of_lane};
#[device]
use crate::{
    bias_rope_kv::place,
    fused::{WORD, launch_dependents, wait_for_dependencies},
    grid::{divide, offset},
    vector::Saturate,
};

/// Pairs of values that are rotated together, of one head, that a block computes: the tile's first eight rows are their first values,
/// the others their second ones.
pub const PAIRS_PER_BLOCK: u32 = 8;

/// At most `N` rows, as `G` second operands.
///
/// Grid `[(num_attention_heads + 2 num_key_value_heads) * head_dim / 2 / PAIRS_PER_BLOCK, 1, 1]`, `head_dim` a multiple of
/// 16; block `[32 * warps, 1, 1]`, warps from 2 to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps));
/// dynamic shared memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`norm_shared_bytes`](super::norm_shared_bytes) of `N` rows and a [`batch`](super::batch) of tiles. `hidden_size` is a
/// multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_qkv_rope_{E}_mma_{N}",
    max_threads = 512,
)]
pub unsafe fn mma<const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, depth, .. } = a;
    let NormQkvRope { x, norm, eps, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, .. } = a;
    let NormQkvRope { positions, slots, cos, sin, q, k_pages, v_pages, .. } = a;
    launch_dependents();
    let (half, words) = (head_dim / 2, hidden_size / WORD);
    let (head, first) = divide(thread::block_idx_x(), half / PAIRS_PER_BLOCK);
    let first = first * PAIRS_PER_BLOCK;
    let shared = dynamic_shared::<u8>();
    // The same for the whole block.
    let (part, head, weight, bias) = if head < num_attention_heads {
        (Part::Q, head, q_weight, q_bias)
    } else if head < num_attention_heads + num_key_value_heads {
        (Part::K, head - num_attention_heads, k_weight, k_bias)
    } else {
        (Part::V, head - num_attention_heads - num_key_value_heads, v_weight, v_bias)
    };
    // SAFETY: the grid has a block for each eight pairs of each head.
    unsafe {
        let row = weight.add(offset(head * head_dim + first + row_of_lane(), hidden_size, 0));
        let rows = [row, row.add(offset(half, hidden_size, 0))];
        let tiles = Tiles::new(thread::grid_dim_x(), words);
        let weights = Stream::new(tiles, depth, shared, |_| (rows, [words; 2]));
        let inputs = Normed::<N, G>::new(n, hidden_size, x, norm);

        // What the thread that finishes a pair needs besides, fetched while the kernel before this one runs.
        let (i, r) = (thread::thread_idx_x() / 16 % N as u32, thread::thread_idx_x() % 8);
        let i = i.min(n - 1);
        let column = (head * head_dim + first + r) as usize;
        let (mut add, mut rotate, mut slot) = ([0.0f32; 2], [1.0f32, 0.0], 0);
        if thread::thread_idx_x() < 16 * N as u32 {
            if !bias.is_null() {
                add = [*bias.add(column), *bias.add(column + half as usize)];
            }
            if part == Part::Q || part == Part::K {
                let angle = offset(*positions.add(i as usize), half, first + r);
                rotate = [*cos.add(angle), *sin.add(angle)];
            }
            slot = *slots.add(i as usize);
        }

        // As one value: two pointers that a closure chooses from would be in local memory.
        let pages = [k_pages, v_pages];
        wait_for_dependencies();
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, eps, shared, |_, i, r, a, b| {
            let (a, b) = (a + add[0], b + add[1]);
            let [cos, sin] = rotate;
            let (a, b) = (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
            let half = half as usize;
            if part == Part::Q {
                let to = q.add(offset(i, num_attention_heads * head_dim, head * head_dim + first + r));
                *to = a;
                *to.add(half) = b;
            } else {
                let place = place(slot, head, num_key_value_heads, head_dim);
                let [k_pages, v_pages] = pages;
                let pages = if part == Part::K { k_pages } else { v_pages };
                let to = pages.add(place + (first + r) as usize);
                *to = f16::round(a);
                *to.add(half) = f16::round(b);
            }
        });
    }
}
