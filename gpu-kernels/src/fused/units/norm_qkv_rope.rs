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
    grid::{divide, offset, repeat},
    units::*,
    vector::Saturate,
};

/// Pairs of values that are rotated together, of one head, in a tile: its first eight rows are their first values, the others their second ones, a
/// span of half a head.
pub const PAIRS_PER_TILE: u32 = 8;

/// At most `N` rows, as `G` second operands. `q_weight` leads to the units of Q, K and V, one behind the other, of one format; the other two
/// to nothing.
///
/// Grid `[blocks, 1, 1]`, any number of them from 1 to the tiles, `(num_attention_heads + 2 num_key_value_heads) * head_dim / 2 / PAIRS_PER_TILE`; `head_dim` a
/// multiple of 16; block `[32 * warps, 1, 1]`, no more warps than a block has units; dynamic shared memory [`ring_bytes`](super::ring_bytes) and
/// [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    W = [unit_formats!],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "norm_qkv_rope_{W}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    let heads = a.num_attention_heads + 2 * a.num_key_value_heads;
    let share = [thread::block_idx_x(), thread::grid_dim_x()];
    // SAFETY: the caller's promise.
    unsafe { project::<W, N, G>(a, a.q_weight.cast(), [0, heads], share) }
}

/// As [`units`], with V in another format than Q and K, and in blocks of its own: `q_weight` leads to Q and K, `v_weight` to V; shared memory is for either.
///
/// # Safety
/// As [`units`]; there are more blocks than `v_blocks`, which is not 0.
#[kernel(
    (W, V) = [ (q2_k::q2_k, q4_k::q4_k), (q3_k::q3_k, q4_k::q4_k), (q3_k::q3_k, q5_k::q5_k), (q4_k::q4_k, q6_k::q6_k),
        (q5_0::q5_0, q8_0::q8_0), (q5_k::q5_k, q6_k::q6_k), (iq4_xs::iq4_xs, q5_k::q5_k)
    ],
    (N, G, BLOCKS) = [one: (1, 1, 2), few: (4, 1, 1), eight: (8, 2, 1)],
    name = "norm_qkv_rope_{W}_{V}_units_{N}",
    max_threads = 384,
    min_blocks = BLOCKS,
    requires = "sm_90",
)]
pub unsafe fn mixed<W: Unit, V: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    let NormQkvRope { num_attention_heads, num_key_value_heads, v_blocks, q_weight, v_weight, .. } = a;
    let (block, others) = (thread::block_idx_x(), thread::grid_dim_x() - v_blocks);
    let heads = num_attention_heads + num_key_value_heads;
    // SAFETY: the caller's promise; the whole block takes one way.
    unsafe {
        if block < others {
            project::<W, N, G>(a, q_weight.cast(), [0, heads], [block, others]);
        } else {
            project::<V, N, G>(a, v_weight.cast(), [heads, num_key_value_heads], [block - others, v_blocks]);
        }
    }
}

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
}

#[device]
impl Finish {
    /// Of pair `r` of a tile, counted from the first head of Q.
    ///
    /// # Safety
    /// As [`units`].
    #[inline(always)]
    unsafe fn new(a: &NormQkvRope<f16>, tile: u32, r: u32) -> Self {
        let half = a.head_dim / 2;
        let (head, pair) = divide(tile * PAIRS_PER_TILE + r, half);
        let (part, head) = a.part(head);
        let bias = if part == Part::Q {
            a.q_bias
        } else if part == Part::K {
            a.k_bias
        } else {
            a.v_bias
        };
        let mut add = [0.0f32; 2];
        if !bias.is_null() {
            let bias = bias.wrapping_add((head * a.head_dim + pair) as usize);
            // SAFETY: there is a value for each row of the part.
            add = unsafe { [*bias, *bias.add(half as usize)] };
        }
        Self { part, head, pair, add }
    }

    /// Cosine and sine for a row in this position.
    ///
    /// # Safety
    /// As [`units`].
    #[inline(always)]
    unsafe fn rotation(self, a: &NormQkvRope<f16>, position: u32) -> [f32; 2] {
        if self.part == Part::V {
            return [1.0, 0.0];
        }
        let angle = offset(position, a.head_dim / 2, self.pair);
        // SAFETY: the position is in range.
        unsafe { [*a.cos.add(angle), *a.sin.add(angle)] }
    }
}

/// A block's share of the tiles of heads `first` to `first + count`, counted from the first head of Q, whose weights are at `weights`.
///
/// # Safety
/// As [`units`].
#[device]
#[inline(always)]
unsafe fn project<W: Unit, const N: usize, const G: usize>(
    a: NormQkvRope<f16>,
    weights: *const u8,
    [first, count]: [u32; 2],
    [block, blocks]: [u32; 2],
) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, depth, .. } = a;
    let NormQkvRope { x, norm, eps, positions, slots, q, k_pages, v_pages, .. } = a;
    let tiles_of_head = head_dim / 2 / PAIRS_PER_TILE;
    let first_tile = first * tiles_of_head;
    // SAFETY: the caller's promise.
    unsafe {
        let units = divide(hidden_size, W::COLS).0;
        let tiles = Tiles::share(weights, count * tiles_of_head, units, block, blocks);
        let product = Product::<W, N, G>::begin(tiles, depth);

        // What this lane needs to finish the tile that its warp most likely does, fetched while the kernel before this one runs.
        let (r, row) = (warp::lane_id() / 4, if N == 1 { 0 } else { warp::lane_id() % 4 });
        let last = product.last_tile();
        let ahead = Finish::new(&a, first_tile + last, r);
        let (mut position, mut slot, mut rotation) = ([0; G], [0; G], [[1.0f32, 0.0]; G]);
        repeat(G, |g| {
            let i = (4 * g as u32 + row).min(n - 1) as usize;
            (position[g], slot[g]) = (*positions.add(i), *slots.add(i));
            rotation[g] = ahead.rotation(&a, position[g]);
        });

        wait_for_dependencies();
        launch_dependents();
        let scale = |squares| crate::norm::scale(squares, hidden_size, eps);
        let inputs = Normed { x, norm, cols: hidden_size };
        product.multiply(n, inputs, scale, |tile, g, i, r, low, high| {
            let (mut finish, mut rotation) = (ahead, rotation[g]);
            if tile != last {
                finish = Finish::new(&a, first_tile + tile, r);
                rotation = finish.rotation(&a, position[g]);
            }
            let Finish { part, head, pair, add } = finish;
            let (low, high) = (low + add[0], high + add[1]);
            let [cos, sin] = rotation;
            let (low, high) = (low.mul_add(cos, -(high * sin)), high.mul_add(cos, low * sin));
            let half = (head_dim / 2) as usize;
            if part == Part::Q {
                let to = q.add(offset(i, num_attention_heads * head_dim, head * head_dim + pair));
                *to = low;
                *to.add(half) = high;
            } else {
                let place = place_in_pages(slot[g], head, num_key_value_heads, head_dim);
                let pages = if part == Part::K { k_pages } else { v_pages };
                let to = pages.add(place + pair as usize);
                *to = f16::round(low);
                *to.add(half) = f16::round(high);
            }
        });
    }
}
