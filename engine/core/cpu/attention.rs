//! Causal grouped-query attention of every row over the pages of its sequence.
//!
//! One task is one head of one row. It goes through the pages in order with the online softmax of Milakov and
//! Gimelshein (2018): scores of a page, new maximum, rescale what was summed so far, add. The order depends on the
//! row's position alone, so a row has the same bits in a whole prefill, in a chunk and in a decode step.

use super::expect_below;
use super::kv::{Kind, KvCache};
use super::simd::{Element, Isa, Kernel, LANES, Lanes, with_element};
use super::team;
use super::tensor::Tensor;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::kv_format::{BLOCK_BYTES, BLOCK_VALUES, KvFormat};
use crate::kv_layout::{KvLayout, PAGE_SIZE};

/// Runs `$body` with the type `$stored` that stands for `$format`.
macro_rules! with_stored {
    ($format:expr, $stored:ident => $body:expr) => {
        match $format {
            KvFormat::Float(dtype) => with_element!(dtype, $stored => $body),
            KvFormat::Q8_0 => {
                type $stored = Blocks;
                $body
            }
        }
    };
}

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
    let KvLayout { num_pages, num_key_value_heads, head_dim, .. } = layout;
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
    let head = |i: usize, out: &mut [f32]| {
        let (row, head) = (i / num_heads, i % num_heads);
        let pages = &batch.block_table[batch.sequence_of_token[row] as usize * batch.max_blocks..];
        let [k, v] = [Kind::K, Kind::V].map(|kind| {
            let format = cache.format(kind);
            let row_bytes = format.bytes(head_dim);
            let offset = head / group * PAGE_SIZE * row_bytes;
            Pages {
                bytes: cache.first_page_on(layer, kind),
                format,
                stride: cache.stride(),
                offset,
                row_bytes,
            }
        });
        let q = &q.row(row)[head * head_dim..][..head_dim];
        let head = Head { q, k, v, pages, visible: batch.positions[row] as usize + 1, out };
        // SAFETY: the kernel demands nothing else; its slices are checked.
        unsafe { isa.run(head) }
    };
    /// Multiplications below which one core is done before another has started.
    const WORTH_WAKING: usize = 1 << 19;
    let visible: usize = batch.positions.iter().map(|&position| position as usize + 1).sum();
    let out = out.first_mut(n);
    if visible * num_heads * head_dim * 2 < WORTH_WAKING {
        out.chunks_exact_mut(head_dim).enumerate().for_each(|(i, out)| head(i, out));
    } else {
        team::for_each_chunk(out, head_dim, head);
    }
    Ok(())
}

/// K or V of one head.
struct Pages<'a> {
    /// From the layer's K (or V) in the first page on.
    bytes: &'a [u8],
    format: KvFormat,
    /// Bytes from page to page.
    stride: usize,
    /// Bytes from there to this head's.
    offset: usize,
    /// Bytes of a token.
    row_bytes: usize,
}

impl Pages<'_> {
    /// The first `tokens` tokens of a page.
    #[inline(always)]
    fn rows(&self, page: u32, tokens: usize) -> &[u8] {
        &self.bytes[page as usize * self.stride + self.offset..][..tokens * self.row_bytes]
    }
}

/// One head of one row.
struct Head<'a> {
    /// `[head_dim]`
    q: &'a [f32],
    k: Pages<'a>,
    v: Pages<'a>,
    /// Pages of the sequence, in order.
    pages: &'a [u32],
    /// Positions it attends to.
    visible: usize,
    /// `[head_dim]`
    out: &'a mut [f32],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let scale = 1.0 / (self.q.len() as f32).sqrt();
        let mut max = f32::NEG_INFINITY;
        let mut sum = 0.0;
        self.out.fill(0.0);
        for first in (0..self.visible).step_by(PAGE_SIZE) {
            let tokens = (self.visible - first).min(PAGE_SIZE);
            let page = self.pages[first / PAGE_SIZE];
            let (k, v) = (self.k.rows(page, tokens), self.v.rows(page, tokens));

            let mut scores = [0f32; PAGE_SIZE];
            let scores = &mut scores[..tokens];
            with_stored!(self.k.format, S => {
                for (score, k) in scores.iter_mut().zip(k.chunks_exact(self.k.row_bytes)) {
                    // SAFETY: the caller's instructions; k is head_dim values.
                    *score = unsafe { S::dot::<L>(self.q, k) } * scale;
                }
            });
            let page_max = scores.iter().copied().fold(max, f32::max);
            let rescale = (max - page_max).exp();
            max = page_max;
            sum *= rescale;
            for score in scores.iter_mut() {
                *score = (*score - max).exp();
                sum += *score;
            }
            // SAFETY: the caller's instructions; v is [tokens, head_dim].
            with_stored!(self.v.format, S => unsafe { S::add_weighted::<L>(scores, v, rescale, self.out) });
        }
        for out in self.out.iter_mut() {
            *out /= sum;
        }
    }
}

/// How values of a format are used where they lie.
///
/// # Safety
/// All functions: the processor has the instructions of `L`, slices are as long as they say.
#[allow(clippy::missing_safety_doc, reason = "one contract, stated above, for all of them")]
trait Stored {
    /// `q · k`, both `[head_dim]`.
    unsafe fn dot<L: Lanes>(q: &[f32], k: &[u8]) -> f32;

    /// `out = out * rescale + Σ weights[t] * v[t]`, with `v` `[weights.len(), head_dim]` and `out` `[head_dim]`.
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]);
}

impl<E: Element> Stored for E {
    #[inline(always)]
    unsafe fn dot<L: Lanes>(q: &[f32], k: &[u8]) -> f32 {
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

    #[inline(always)]
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]) {
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
}

/// [`KvFormat::Q8_0`]: blocks of [`BLOCK_VALUES`] values, twice [`LANES`].
struct Blocks;

const _: () = assert!(BLOCK_VALUES == 2 * LANES);

/// The scale of a block, to f32 without a call.
#[inline(always)]
fn scale_of(block: &[u8]) -> f32 {
    const TO_F32: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes([block[0], block[1]]));
    // Not negative; the exponent of all ones is that of NaN.
    if bits & 0x7c00 == 0x7c00 { f32::NAN } else { f32::from_bits(bits << 13) * TO_F32 }
}

impl Stored for Blocks {
    #[inline(always)]
    unsafe fn dot<L: Lanes>(q: &[f32], k: &[u8]) -> f32 {
        let (q, k) = (q.as_chunks::<BLOCK_VALUES>().0, k.as_chunks::<BLOCK_BYTES>().0);
        // SAFETY: a block has 32 values behind its scale.
        unsafe {
            let mut sums = L::splat(0.0);
            for (q, block) in q.iter().zip(k) {
                let (q, codes) = (q.as_ptr(), block.as_ptr().add(2));
                let low = L::load_f32(q.cast()).mul(L::load_i8(codes));
                let both = L::load_f32(q.add(LANES).cast()).mul_add(L::load_i8(codes.add(LANES)), low);
                sums = both.mul_add(L::splat(scale_of(block)), sums);
            }
            sums.sum()
        }
    }

    #[inline(always)]
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]) {
        let blocks = out.len() / BLOCK_VALUES;
        let v = v.as_chunks::<BLOCK_BYTES>().0;
        // SAFETY: a block has 32 values behind its scale, and there are as many of `out`.
        unsafe {
            for (i, out) in out.as_chunks_mut::<BLOCK_VALUES>().0.iter_mut().enumerate() {
                let (to, rescale) = (out.as_mut_ptr(), L::splat(rescale));
                let mut low = L::load_f32(to.cast()).mul(rescale);
                let mut high = L::load_f32(to.add(LANES).cast()).mul(rescale);
                for (block, &weight) in v.iter().skip(i).step_by(blocks).zip(weights) {
                    let (weight, codes) = (L::splat(weight * scale_of(block)), block.as_ptr().add(2));
                    low = L::load_i8(codes).mul_add(weight, low);
                    high = L::load_i8(codes.add(LANES)).mul_add(weight, high);
                }
                low.store(to);
                high.store(to.add(LANES));
            }
        }
    }
}
