//! Causal grouped-query attention of every row over the pages of its sequence.
//!
//! A row's head goes through the pages in order with the online softmax of Milakov and Gimelshein (2018): scores of a page, new maximum, rescale
//! what was summed so far, add. The order depends on the row's position alone, so a row has the same bits in a whole prefill, in a chunk and in a
//! decode step. One task is one head of one row, or, of a prompt, all heads that read the same keys and values of some neighbouring rows: they
//! widen a page to f32 once.

mod stored;

use super::exp::exp;
use super::expect_below;
use super::kv::{Kind, KvCache};
use super::simd::{F32, Isa, Kernel, Lanes, widen, with_element};
use super::team;
use super::tensor::{OutPtr, Tensor};
use crate::batch::Batch;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_format::KvFormat;
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use std::mem::MaybeUninit;
use std::slice;
use stored::{AT_ONCE, Stored, with_stored};

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
    let stride = num_heads * head_dim;
    let to = OutPtr(out.first_mut(n).as_mut_ptr());
    let of = |row: usize, key_value_head: usize| {
        let [k, v] = [Kind::K, Kind::V].map(|kind| {
            let format = cache.format(kind);
            let row_bytes = format.bytes(head_dim);
            let offset = key_value_head * PAGE_SIZE * row_bytes;
            let bytes = cache.first_page_on(layer, kind);
            Pages { bytes, format, stride: cache.stride(), offset, row_bytes }
        });
        let pages = &batch.block_table[batch.sequence_of_token[row] as usize * batch.max_blocks..];
        Sequence { k, v, pages, head_dim, visible: batch.positions[row] as usize + 1 }
    };
    let run = |task: &Task| match *task {
        Task::Head { row, head } => {
            let sequence = of(row, head / group);
            // SAFETY: this head of this row is this task's own.
            let out = unsafe { to.values(row * stride + head * head_dim, head_dim) };
            let q = &q.row(row)[head * head_dim..][..head_dim];
            // SAFETY: the kernel demands nothing else; its slices are checked.
            unsafe { isa.run(Head { q, sequence, out }) }
        }
        Task::Rows { first, count, key_value_head, dtypes } => {
            let heads = key_value_head * group..(key_value_head + 1) * group;
            let sequence = of(first, key_value_head);
            // SAFETY: these heads of these rows are this task's own, and the kernel's slices are checked.
            unsafe { isa.run(Rows { q, first, count, heads, sequence, dtypes, out: to, stride }) }
        }
    };
    let formats = [cache.format(Kind::K), cache.format(Kind::V)].map(KvFormat::float);
    let dtypes = match formats {
        [Some(k), Some(v)] if head_dim <= WIDEST_HEAD => Some([k, v]),
        _ => None,
    };
    let tasks = tasks(batch, num_heads, num_key_value_heads, dtypes);
    /// Multiplications below which one core is done before another has started.
    const WORTH_WAKING: usize = 1 << 19;
    let visible: usize = batch.positions.iter().map(|&position| position as usize + 1).sum();
    if visible * num_heads * head_dim * 2 < WORTH_WAKING {
        tasks.iter().for_each(run);
    } else {
        team::for_each(tasks.len(), |i| run(&tasks[i]));
    }
    Ok(())
}

/// Neighbouring rows of a sequence that share a task at most.
const MOST_ROWS: usize = 8;
/// Values of a head that [`Rows`] has room for.
const WIDEST_HEAD: usize = 256;

/// What is computed at once.
enum Task {
    Head {
        row: usize,
        head: usize,
    },
    /// All heads that read `key_value_head`, whose pages are of `dtypes`, of `count` rows from `first`: one sequence's, one position after the other.
    Rows {
        first: usize,
        count: usize,
        key_value_head: usize,
        dtypes: [Dtype; 2],
    },
}

/// The tasks of a batch: rows by themselves where they have no neighbours or pages are of no `dtypes`.
fn tasks(
    batch: &Batch,
    num_heads: usize,
    num_key_value_heads: usize,
    dtypes: Option<[Dtype; 2]>,
) -> Vec<Task> {
    let (positions, sequences) = (&batch.positions, &batch.sequence_of_token);
    let follows = |row: usize| {
        row < positions.len()
            && sequences[row] == sequences[row - 1]
            && positions[row] == positions[row - 1] + 1
    };
    let mut tasks = Vec::new();
    let mut first = 0;
    while first < positions.len() {
        let count = (1..MOST_ROWS).find(|&i| !follows(first + i)).unwrap_or(MOST_ROWS);
        match dtypes.filter(|_| count > 1) {
            Some(dtypes) => tasks.extend((0..num_key_value_heads).map(|key_value_head| Task::Rows {
                first,
                count,
                key_value_head,
                dtypes,
            })),
            None => tasks.extend(
                (first..first + count)
                    .flat_map(|row| (0..num_heads).map(move |head| Task::Head { row, head })),
            ),
        }
        first += count;
    }
    tasks
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

/// What a row attends to.
struct Sequence<'a> {
    k: Pages<'a>,
    v: Pages<'a>,
    /// Pages of the sequence, in order.
    pages: &'a [u32],
    head_dim: usize,
    /// Positions that the row, or the first of several, attends to.
    visible: usize,
}

/// What was summed so far of a head of a row.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    const NONE: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Makes the scores of the first `tokens` keys of a page weights; answers what has to be rescaled by.
    #[inline(always)]
    fn weights(&mut self, scores: &mut [f32; PAGE_SIZE], tokens: usize) -> f32 {
        scores[tokens..].fill(f32::NEG_INFINITY);
        // NaN is larger than nothing; its weight is NaN.
        let max = fold(scores, |a, b| if b > a { b } else { a });
        let max = if max > self.max { max } else { self.max };
        let rescale = (self.max - max).exp();
        self.max = max;
        scores.iter_mut().for_each(|score| *score = exp(*score - max));
        scores[tokens..].fill(0.0);
        self.sum = self.sum * rescale + fold(scores, |a, b| a + b);
        rescale
    }
}

/// All values by `f`, as lanes do it.
#[inline(always)]
fn fold(values: &[f32; PAGE_SIZE], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut values = *values;
    let mut len = PAGE_SIZE;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            values[i] = f(values[i], values[i + len]);
        }
    }
    values[0]
}

/// `q · k / sqrt(head_dim)` of each of the keys, one behind the other in `row_bytes` each.
///
/// # Safety
/// The processor has the instructions of `L`; keys have as many values as `q`.
#[inline(always)]
unsafe fn score<L: Lanes, S: Stored>(q: &[f32], keys: &[u8], row_bytes: usize, scores: &mut [f32]) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let (fours, ones) = scores.as_chunks_mut::<AT_ONCE>();
    let (keys, rest) = keys.split_at(fours.len() * AT_ONCE * row_bytes);
    for (scores, keys) in fours.iter_mut().zip(keys.chunks_exact(AT_ONCE * row_bytes)) {
        let (ab, cd) = keys.split_at(2 * row_bytes);
        let ((a, b), (c, d)) = (ab.split_at(row_bytes), cd.split_at(row_bytes));
        // SAFETY: the caller's.
        *scores = unsafe { S::dots::<L>(q, [a, b, c, d]) };
    }
    for (score, key) in ones.iter_mut().zip(rest.chunks_exact(row_bytes)) {
        // SAFETY: the caller's.
        *score = unsafe { S::dot::<L>(q, key) };
    }
    scores.iter_mut().for_each(|score| *score *= scale);
}

/// One head of one row.
struct Head<'a> {
    /// `[head_dim]`
    q: &'a [f32],
    sequence: Sequence<'a>,
    /// `[head_dim]`
    out: &'a mut [f32],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { q, sequence: Sequence { k, v, pages, visible, .. }, out } = self;
        let mut softmax = Softmax::NONE;
        let mut scores = [0f32; PAGE_SIZE];
        out.fill(0.0);
        for (first, &page) in (0..visible).step_by(PAGE_SIZE).zip(pages) {
            let tokens = (visible - first).min(PAGE_SIZE);
            let (keys, values) = (k.rows(page, tokens), v.rows(page, tokens));
            // SAFETY: the caller's instructions; keys are head_dim values each.
            with_stored!(k.format, S => unsafe { score::<L, S>(q, keys, k.row_bytes, &mut scores[..tokens]) });
            let rescale = softmax.weights(&mut scores, tokens);
            let weights = &scores[..tokens];
            // SAFETY: the caller's instructions; values are [tokens, head_dim].
            with_stored!(v.format, S => unsafe { S::add_weighted::<L>(weights, values, rescale, out) });
        }
        out.iter_mut().for_each(|out| *out /= softmax.sum);
    }
}

/// All heads that read one head of K and V, of neighbouring rows of a sequence.
struct Rows<'a> {
    /// `[num_tokens, num_heads * head_dim]`
    q: &'a Tensor,
    /// Rows of `q` and `out`.
    first: usize,
    count: usize,
    /// Heads of a row.
    heads: std::ops::Range<usize>,
    sequence: Sequence<'a>,
    /// Of K and V.
    dtypes: [Dtype; 2],
    /// As `q`.
    out: OutPtr,
    /// From row to row of `out`, in values.
    stride: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    /// # Safety
    /// These heads of these rows of `out` are the caller's, and have at most [`WIDEST_HEAD`] values.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's.
        unsafe {
            match self.sequence.head_dim {
                64 => self.of_width::<L>(64),
                128 => self.of_width::<L>(128),
                head_dim => self.of_width::<L>(head_dim),
            }
        }
    }
}

impl Rows<'_> {
    /// [`Kernel::run`], with loops for the usual widths, which are known to the compiler.
    #[inline(always)]
    unsafe fn of_width<L: Lanes>(self, head_dim: usize) {
        let Self { q, first, count, heads, sequence, dtypes, out, stride } = self;
        let Sequence { k, v, pages, visible, .. } = sequence;
        // SAFETY: the caller's.
        let out_of = |row: usize, head: usize| unsafe {
            out.values((first + row) * stride + head * head_dim, head_dim)
        };
        let mut softmax = vec![[Softmax::NONE; MOST_ROWS]; heads.len()];
        for (row, head) in (0..count).flat_map(|row| heads.clone().map(move |head| (row, head))) {
            out_of(row, head).fill(0.0);
        }
        let mut scores = [0f32; PAGE_SIZE];
        let mut room = MaybeUninit::<[[f32; PAGE_SIZE * WIDEST_HEAD]; 2]>::uninit();
        let last = visible + count - 1;
        for (before, &page) in (0..last).step_by(PAGE_SIZE).zip(pages) {
            let tokens = (last - before).min(PAGE_SIZE);
            let widened =
                [0, 1].map(|i| room.as_mut_ptr().cast::<f32>().wrapping_add(i * PAGE_SIZE * WIDEST_HEAD));
            for ((&to, pages), dtype) in widened.iter().zip([&k, &v]).zip(dtypes) {
                let from = pages.rows(page, tokens);
                // SAFETY: the caller's instructions; there is room for a page's rows.
                with_element!(dtype, E => unsafe { widen::<L, E>(from, to, tokens * head_dim) });
            }
            // SAFETY: so many values were written, and any f32 is four bytes.
            let [keys, values] = widened.map(|from| unsafe {
                slice::from_raw_parts(from.cast::<u8>(), tokens * head_dim * size_of::<f32>())
            });
            let row_bytes = head_dim * size_of::<f32>();
            for row in 0..count {
                let tokens = (visible + row).saturating_sub(before).min(PAGE_SIZE);
                let (keys, values) = (&keys[..tokens * row_bytes], &values[..tokens * row_bytes]);
                for (head, softmax) in heads.clone().zip(&mut softmax).filter(|_| tokens > 0) {
                    let q = &q.row(first + row)[head * head_dim..][..head_dim];
                    // SAFETY: the caller's instructions; keys are head_dim values each, values are [tokens, head_dim].
                    unsafe {
                        score::<L, F32>(q, keys, row_bytes, &mut scores[..tokens]);
                        let rescale = softmax[row].weights(&mut scores, tokens);
                        F32::add_weighted::<L>(&scores[..tokens], values, rescale, out_of(row, head));
                    }
                }
            }
        }
        for row in 0..count {
            for (head, softmax) in heads.clone().zip(&softmax) {
                out_of(row, head).iter_mut().for_each(|out| *out /= softmax[row].sum);
            }
        }
    }
}
