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

/// What finishes a pair, besides its products.
#[device]
#[derive(Clone, Copy)]
struct Finish {
    part: Part,
    /// Of the part.
    head: u32,
    /// The pair of the head.
    pair: u32,
    add: [f32; 2],
    /// Cosine and sine.
    rotate: [f32; 2],
    slot: u32,
}

#[device]
impl Finish {
    /// Of pair `r` of a tile, for input row `i`.
    ///
    /// # Safety
    /// As [`mma`].
    #[inline(always)]
    unsafe fn new(a: &NormQkvRope<f16>, tile: u32, i: u32, r: u32) -> Self {
        let half = a.head_dim / 2;
        let (part, head, first) = place_of(a, tile);
        let (pair, column) = (first + r, (head * a.head_dim + first + r) as usize);
        let bias = if part == Part::Q {
            a.q_bias
        } else if part == Part::K {
            a.k_bias
        } else {
            a.v_bias
        };
        let (mut add, mut rotate) = ([0.0f32; 2], [1.0f32, 0.0]);
        // SAFETY: the caller's promise.
        unsafe {
            if !bias.is_null() {
                add = [*bias.add(column), *bias.add(column + half as usize)];
            }
            if part != Part::V {
                let angle = offset(*a.positions.add(i as usize), half, pair);
                rotate = [*a.cos.add(angle), *a.sin.add(angle)];
            }
            Self { part, head, pair, add, rotate, slot: *a.slots.add(i as usize) }
        }
    }
}

/// The part of a tile, its head there, and the first of its pairs in that.
#[device]
#[inline(always)]
fn place_of(a: &NormQkvRope<f16>, tile: u32) -> (Part, u32, u32) {
    let (head, first) = divide(tile, a.head_dim / 2 / PAIRS_PER_BLOCK);
    let (part, head) = a.part(head);
    (part, head, first * PAIRS_PER_BLOCK)
}

/// At most `N` rows, as `G` second operands.
///
/// Grid `[(num_attention_heads + 2 num_key_value_heads) * head_dim / 2 / PAIRS_PER_BLOCK, 1, 1]`, or where the blocks have `MANY` tiles any number from 1
/// to that, `head_dim` a multiple of 16; block `[32 * warps, 1, 1]`, warps from 2 to [`MAX_NORM_WARPS`](super::MAX_NORM_WARPS) ([`num_warps`](super::num_warps));
/// dynamic shared memory [`stream_bytes`] of `depth` (1 to [`MAX_DEPTH`](super::MAX_DEPTH)) and these warps, and
/// [`norm_shared_bytes`](super::norm_shared_bytes) of `N` rows and a [`batch`](super::batch) of tiles. `hidden_size` is a
/// multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    E = [f16],
    MANY = [once: 0, many: 1],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_qkv_rope_{E}_mma_{N}_{MANY}",
    max_threads = 512,
)]
pub unsafe fn mma<const MANY: u32, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, depth, .. } = a;
    let NormQkvRope { x, norm, eps, q_weight, k_weight, v_weight, q, k_pages, v_pages, .. } = a;
    launch_dependents();
    let (half, words) = (head_dim / 2, hidden_size / WORD);
    let shared = dynamic_shared::<u8>();
    // The row of a lane, and that of the other values of its pairs.
    let rows = |tile: u32| {
        let (part, head, first) = place_of(&a, tile);
        let weight = if part == Part::Q {
            q_weight
        } else if part == Part::K {
            k_weight
        } else {
            v_weight
        };
        let row = weight.wrapping_add(offset(head * head_dim + first + row_of_lane(), hidden_size, 0));
        [row, row.wrapping_add(offset(half, hidden_size, 0))]
    };
    // SAFETY: the grid has a block for each eight pairs of each head, or blocks have several tiles.
    unsafe {
        let heads = num_attention_heads + 2 * num_key_value_heads;
        let count = if MANY == 1 { heads * half / PAIRS_PER_BLOCK } else { thread::grid_dim_x() };
        let tiles = Tiles::new(count, words);
        // The same for the whole block, where that has one tile.
        let first = rows(thread::block_idx_x());
        let weights = Stream::new(tiles, depth, shared, |tile| {
            (if MANY == 1 { rows(tile) } else { first }, [words; 2])
        });
        let inputs = Normed::<N, G>::new(n, hidden_size, x, norm);

        // What the thread that finishes a pair needs besides, fetched while the kernel before this one runs.
        let per_tile = 16 * N as u32;
        let (own, of_tile) =
            if MANY == 1 { divide(thread::thread_idx_x(), per_tile) } else { (0, thread::thread_idx_x()) };
        let own = tiles.tile(own);
        let mut ahead =
            Finish { part: Part::V, head: 0, pair: 0, add: [0.0; 2], rotate: [1.0, 0.0], slot: 0 };
        if of_tile < per_tile && own < count {
            ahead = Finish::new(&a, own, (of_tile / 16).min(n - 1), of_tile % 8);
        }

        // As one value: two pointers that a closure chooses from would be in local memory.
        let pages = [k_pages, v_pages];
        wait_for_dependencies();
        let shared = shared.add(stream_bytes(thread::block_dim_x() / 32, depth));
        inputs.multiply(weights, eps, shared, |tile, i, r, low, high| {
            let of_pair = if MANY == 1 && tile != own { Finish::new(&a, tile, i, r) } else { ahead };
            let Finish { part, head, pair, add, rotate: [cos, sin], slot } = of_pair;
            let (low, high) = (low + add[0], high + add[1]);
            let (low, high) = (low.mul_add(cos, -(high * sin)), high.mul_add(cos, low * sin));
            let half = half as usize;
            if part == Part::Q {
                let to = q.add(offset(i, num_attention_heads * head_dim, head * head_dim + pair));
                *to = low;
                *to.add(half) = high;
            } else {
                let place = place(slot, head, num_key_value_heads, head_dim);
                let [k_pages, v_pages] = pages;
                let pages = if part == Part::K { k_pages } else { v_pages };
                let to = pages.add(place + pair as usize);
                *to = f16::round(low);
                *to.add(half) = f16::round(high);
            }
        });
    }
}
