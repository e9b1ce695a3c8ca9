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

/// Pairs of values that are rotated together, of one head, that a block computes: the tile's first eight rows are their first values,
/// the others their second ones: a span of half a head.
pub const PAIRS_PER_BLOCK: u32 = 8;

/// At most `N` rows, as `G` second operands. The weights lead to units of one format.
///
/// Grid `[(num_attention_heads + 2 num_key_value_heads) * head_dim / 2 / PAIRS_PER_BLOCK, 1, 1]`, `head_dim` a multiple of
/// 16; block `[32 * warps, 1, 1]`, no more warps than a row has units; dynamic shared memory [`ring_bytes`](super::ring_bytes) and
/// [`shared_bytes`](super::shared_bytes).
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`NormQkvRope`], matrices and `x` aligned to 16 bytes; positions and
/// slots are in range; what is written overlaps nothing. Of what the kernels before this one write, only `x` is read.
#[kernel(
    W = [q4_0::q4_0, q4_k::q4_k, q5_0::q5_0, q5_k::q5_k, q6_k::q6_k, q8_0::q8_0],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_qkv_rope_{W}_units_{N}",
    max_threads = 512,
    requires = "sm_90",
)]
pub unsafe fn units<W: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    launch_dependents();
    // SAFETY: the grid has a block for each eight pairs of each head.
    unsafe { project::<W, N, G>(a, Place::new(&a)) }
}

/// As [`units`], with V in another format than Q and K: shared memory is for either.
///
/// # Safety
/// As [`units`].
#[kernel(
    (W, V) = [(q4_k::q4_k, q6_k::q6_k), (q5_0::q5_0, q8_0::q8_0), (q5_k::q5_k, q6_k::q6_k)],
    (N, G) = [one: (1, 1), few: (4, 1), eight: (8, 2)],
    name = "norm_qkv_rope_{W}_{V}_units_{N}",
    max_threads = 512,
    requires = "sm_90",
)]
pub unsafe fn mixed<W: Unit, V: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>) {
    launch_dependents();
    let place = Place::new(&a);
    // SAFETY: as in `units`; the whole block takes one way.
    unsafe {
        if place.part == Part::V {
            project::<V, N, G>(a, place);
        } else {
            project::<W, N, G>(a, place);
        }
    }
}

/// What a block computes: a projection, a head of it, and its first pair.
#[device]
#[derive(Clone, Copy)]
struct Place {
    part: Part,
    head: u32,
    first: u32,
}

#[device]
impl Place {
    #[inline(always)]
    fn new(a: &NormQkvRope<f16>) -> Self {
        let (head, first) = divide(thread::block_idx_x(), a.head_dim / 2 / PAIRS_PER_BLOCK);
        let (part, head) = a.part(head);
        Self { part, head, first: first * PAIRS_PER_BLOCK }
    }
}

/// # Safety
/// As [`units`].
#[device]
#[inline(always)]
unsafe fn project<W: Unit, const N: usize, const G: usize>(a: NormQkvRope<f16>, place: Place) {
    let NormQkvRope { n, hidden_size, num_attention_heads, num_key_value_heads, head_dim, depth, .. } = a;
    let NormQkvRope { x, norm, eps, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, .. } = a;
    let NormQkvRope { positions, slots, cos, sin, q, k_pages, v_pages, .. } = a;
    let Place { part, head, first } = place;
    let half = head_dim / 2;
    let (weight, bias) = if part == Part::Q {
        (q_weight, q_bias)
    } else if part == Part::K {
        (k_weight, k_bias)
    } else {
        (v_weight, v_bias)
    };
    // SAFETY: the caller's promise.
    unsafe {
        let tiles_of_head = half / PAIRS_PER_BLOCK;
        let units = divide(hidden_size, W::COLS).0;
        let tile = head * tiles_of_head + first / PAIRS_PER_BLOCK;
        let product =
            Product::<W, N, G>::begin(Tiles::share(weight.cast(), tile + 1, units, tile, tile + 1), depth);
        let mut inputs = Normed::new(x, norm, hidden_size);
        product.prepare(&mut inputs);

        // What the lane that finishes a pair needs besides, fetched while the kernel before this one runs.
        let (r, row) = (warp::lane_id() / 4, if N == 1 { 0 } else { warp::lane_id() % 4 });
        let column = (head * head_dim + first + r) as usize;
        let mut add = [0.0f32; 2];
        if !bias.is_null() {
            add = [*bias.add(column), *bias.add(column + half as usize)];
        }
        let (mut rotate, mut slot) = ([[1.0f32, 0.0]; G], [0; G]);
        repeat(G, |g| {
            let i = (4 * g as u32 + row).min(n - 1) as usize;
            if part != Part::V {
                let angle = offset(*positions.add(i), half, first + r);
                rotate[g] = [*cos.add(angle), *sin.add(angle)];
            }
            slot[g] = *slots.add(i);
        });

        wait_for_dependencies();
        let scale = |squares| crate::rms_norm::scale(squares, hidden_size, eps);
        product.multiply(n, inputs, scale, |_, g, i, r, a, b| {
            let (a, b) = (a + add[0], b + add[1]);
            let [cos, sin] = rotate[g];
            let (a, b) = (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
            let half = half as usize;
            if part == Part::Q {
                let to = q.add(offset(i, num_attention_heads * head_dim, head * head_dim + first + r));
                *to = a;
                *to.add(half) = b;
            } else {
                let place = place_in_pages(slot[g], head, num_key_value_heads, head_dim);
                let pages = if part == Part::K { k_pages } else { v_pages };
                let to = pages.add(place + (first + r) as usize);
                *to = f16::round(a);
                *to.add(half) = f16::round(b);
            }
        });
    }
}
