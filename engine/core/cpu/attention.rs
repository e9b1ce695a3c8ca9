//! Causal grouped-query attention of every row over the pages of its sequence.
//!
//! One task is one head of one row. It goes through the pages in order with the online softmax of Milakov and
//! Gimelshein (2018): scores of a page, new maximum, rescale what was summed so far, add. The order depends on the
//! row's position alone, so a row has the same bits in a whole prefill, in a chunk and in a decode step.

use super::expect_below;
use super::kv::{Kind, KvCache};
use super::simd::{Element, Isa, Kernel, LANES, Lanes, with_element};
use super::tensor::Tensor;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use rayon::prelude::*;
use std::marker::PhantomData;

/// `softmax(q · kᵀ / sqrt(head_dim)) · v` over the positions up to each row's own;
/// `q` and `out` are `[num_tokens, num_heads * head_dim]`, head `h` reads the key-value head
/// `h / (num_heads / num_key_value_heads)`.
///
/// # Errors
/// [`Error::Request`] if a sequence, a page or the layer does not exist or the shapes do not fit.
pub fn attention(
    isa: Isa,
    batch: &Batch,
    layer: usize,
    num_heads: usize,
    q: &Tensor,
    cache: &KvCache,
    out: &mut Tensor,
) -> Result<()> {
    let layout = *cache.layout();
    let KvLayout { dtype, num_pages, num_key_value_heads, head_dim, .. } = layout;
    let n = batch.positions.len();
    cache.expect_layer("attention", layer)?;
    q.expect("attention", "q", n, num_heads * head_dim)?;
    out.expect("attention", "out", n, num_heads * head_dim)?;
    expect_below("attention", "page", &batch.block_table, num_pages)?;
    expect_below("attention", "position", &batch.positions, batch.max_blocks * PAGE_SIZE)?;
    expect_below("attention", "sequence", &batch.sequence_of_token, batch.num_sequences())?;
    let sequences = batch.sequence_of_token.len();
    if sequences != n || batch.block_table.len() != batch.num_sequences() * batch.max_blocks {
        return Err(Error::Request("attention: the arrays of the batch do not fit each other".into()));
    }

    let group = num_heads / num_key_value_heads;
    let [k, v] = [Kind::K, Kind::V].map(|kind| cache.first_page_on(layer, kind));
    let head = |i: usize, out: &mut [f32]| {
        let (row, head) = (i / num_heads, i % num_heads);
        let pages = &batch.block_table[batch.sequence_of_token[row] as usize * batch.max_blocks..];
        with_element!(dtype, E => {
            let head = Head::<E> {
                q: &q.row(row)[head * head_dim..][..head_dim],
                k,
                v,
                pages,
                stride: cache.stride(),
                offset: head / group * PAGE_SIZE * head_dim * E::SIZE,
                visible: batch.positions[row] as usize + 1,
                out,
                element: PhantomData,
            };
            // SAFETY: the kernel demands nothing else; its slices are checked.
            unsafe { isa.run(head) }
        });
    };
    /// Multiplications below which one core is done before another has started.
    const WORTH_WAKING: usize = 1 << 19;
    let visible: usize = batch.positions.iter().map(|&position| position as usize + 1).sum();
    let out = out.first_mut(n);
    if visible * num_heads * head_dim * 2 < WORTH_WAKING {
        out.chunks_exact_mut(head_dim).enumerate().for_each(|(i, out)| head(i, out));
    } else {
        out.par_chunks_exact_mut(head_dim).enumerate().for_each(|(i, out)| head(i, out));
    }
    Ok(())
}

/// One head of one row.
struct Head<'a, E> {
    /// `[head_dim]`
    q: &'a [f32],
    /// From the layer's K and V in the first page on.
    k: &'a [u8],
    v: &'a [u8],
    /// Pages of the sequence, in order.
    pages: &'a [u32],
    /// Bytes from page to page.
    stride: usize,
    /// Bytes from there to this head's.
    offset: usize,
    /// Positions it attends to.
    visible: usize,
    /// `[head_dim]`
    out: &'a mut [f32],
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let head_dim = self.q.len();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut max = f32::NEG_INFINITY;
        let mut sum = 0.0;
        self.out.fill(0.0);
        for first in (0..self.visible).step_by(PAGE_SIZE) {
            let tokens = (self.visible - first).min(PAGE_SIZE);
            let at = self.pages[first / PAGE_SIZE] as usize * self.stride + self.offset;
            let range = at..at + tokens * head_dim * E::SIZE;
            let (k, v) = (&self.k[range.clone()], &self.v[range]);

            let mut scores = [0f32; PAGE_SIZE];
            let scores = &mut scores[..tokens];
            for (score, k) in scores.iter_mut().zip(k.chunks_exact(head_dim * E::SIZE)) {
                // SAFETY: the caller's instructions; k is head_dim values.
                *score = unsafe { dot::<L, E>(self.q, k) } * scale;
            }
            let page_max = scores.iter().copied().fold(max, f32::max);
            let rescale = (max - page_max).exp();
            max = page_max;
            sum *= rescale;
            for score in scores.iter_mut() {
                *score = (*score - max).exp();
                sum += *score;
            }
            // SAFETY: the caller's instructions; v is [tokens, head_dim].
            unsafe { add_weighted::<L, E>(scores, v, rescale, self.out) };
        }
        for out in self.out.iter_mut() {
            *out /= sum;
        }
    }
}

/// `q · k`, both `[head_dim]`.
#[inline(always)]
unsafe fn dot<L: Lanes, E: Element>(q: &[f32], k: &[u8]) -> f32 {
    let whole = q.len() / LANES * LANES;
    // SAFETY: i + 16 <= head_dim; k has as many values as q.
    unsafe {
        let mut sums = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let q = L::load_f32(q.as_ptr().add(i).cast());
            sums = q.mul_add(E::load(k.as_ptr().add(i * E::SIZE)), sums);
        }
        let mut sum = sums.sum();
        for (i, q) in q.iter().enumerate().skip(whole) {
            sum += q * E::get(k.as_ptr().add(i * E::SIZE));
        }
        sum
    }
}

/// `out = out * rescale + Σ weights[t] * v[t]`, with `v` `[weights.len(), head_dim]`.
#[inline(always)]
unsafe fn add_weighted<L: Lanes, E: Element>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]) {
    let head_dim = out.len();
    let whole = head_dim / LANES * LANES;
    // SAFETY: i + 16 <= head_dim; v has weights.len() rows of head_dim values.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            let to = out.as_mut_ptr().add(i);
            let mut sums = L::load_f32(to.cast()).mul_add(L::splat(rescale), L::splat(0.0));
            for (t, &weight) in weights.iter().enumerate() {
                let v = E::load::<L>(v.as_ptr().add((t * head_dim + i) * E::SIZE));
                sums = v.mul_add(L::splat(weight), sums);
            }
            sums.store(to);
        }
        for (i, out) in out.iter_mut().enumerate().skip(whole) {
            *out *= rescale;
            for (t, weight) in weights.iter().enumerate() {
                *out += weight * E::get(v.as_ptr().add((t * head_dim + i) * E::SIZE));
            }
        }
    }
}
