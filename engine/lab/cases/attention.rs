//! Attention of ragged batches over shuffled pages, short and as long as the context.

use super::batch_of;
use crate::batch::BatchLimits;
use crate::cuda::{Activation, CudaBatch, CudaOps, KvCache, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_format::{BLOCK_VALUES, KvFormat, KvFormats};
use crate::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig};
use crate::rope::Rotation;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

pub const CASES: Cases = Cases { op: "attention", checks, timings };

/// Of two layers, the one that is used.
const LAYER: usize = 1;
/// NaN in every format.
const POISON: u8 = 0xFF;

/// Rows up to which a timing is of that many sequences with a row each; more are one sequence's prefill.
const DECODE_ROWS: usize = 64;

/// A reference of more products of q with k than this is computed for some of the rows only.
const WHOLE_REFERENCE: usize = 1 << 28;
/// For how many, then.
const SOME_ROWS: usize = 32;

/// Tokens in the cache, and how many of them are rows of the batch.
type Sequence = (usize, usize);

/// Heads, key-value heads, head_dim.
type Heads = (usize, usize, usize);

fn checks() -> Vec<Case> {
    let all_heads = [(14, 2, 64), (28, 4, 128), (7, 1, 64), (12, 1, 64), (4, 4, 128)];
    // Whole prompts, chunks behind a prefix, single rows between them; lengths around the ends of pages.
    let ragged =
        [(1, 1), (19, 19), (111, 1), (PAGE_SIZE, 1), (111, 19), (PAGE_SIZE + 1, 2), (989, 1), (64, 64)];
    let decode = [1, 2, 31, 33, 64, 65, 127, 500, 989, 2049].map(|kv_len| (kv_len, 1));
    // The same, small enough for an emulator; with all heads and numbers of rounds, to see a race.
    let small = [(1, 1), (19, 19), (111, 1), (PAGE_SIZE, 1), (71, 6), (PAGE_SIZE + 1, 2), (389, 1)];
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for heads in all_heads {
            cases.extend([1.0, 8.0].map(|sharpness| case(dtype, heads, &ragged, sharpness, "")));
        }
        cases.extend(
            [((1, 1, 64), 1.0), ((1, 1, 128), 8.0)].map(|(heads, s)| case(dtype, heads, &small, s, "")),
        );
        for heads in [(12, 1, 64), (4, 4, 128)] {
            cases.push(case(dtype, heads, &small[if dtype == Dtype::F16 { 0 } else { 3 }..6], 1.0, ""));
        }
        cases.extend([6, 10].map(|count| case(dtype, (14, 2, 64), &decode[..count], 2.0, "")));
        // Tiles of 64 keys and of 64 or 128 queries: ends on, before and behind them, a prompt of several tiles.
        let tiles = [(64, 64), (65, 65), (127, 127), (128, 64), (193, 130), (300, 300), (2, 2)];
        for heads in [(7, 1, 64), (9, 1, 64), (2, 1, 128), (14, 2, 64), (28, 4, 128)] {
            cases.push(case(dtype, heads, &tiles, 4.0, ""));
        }
        // Some that an emulator can be given, with few heads and with more than a group has anywhere.
        for (heads, rows) in [((3, 1, 64), 20), ((17, 1, 64), 5), ((2, 1, 128), 20)] {
            cases.push(case(dtype, heads, &[(70, rows), (33, 3), (9, 9), (40, 1)], 4.0, ""));
        }
        cases.push(case(dtype, (7, 1, 64), &[(160, 37)], 1.0, ""));
        cases.extend(
            [(64, 21), (128, 17)]
                .map(|(head_dim, rows)| case(dtype, (1, 1, head_dim), &[(330, rows)], 1.0, "")),
        );
        // Heads that there are fewer kernels for.
        cases.push(case(dtype, (4, 1, 256), &[(160, 37), (65, 65)], 4.0, ""));
        for heads in [(4, 2, 32), (2, 1, 256)] {
            cases.push(case(dtype, heads, &[(70, 5), (33, 3), (9, 9), (130, 1)], 4.0, ""));
        }
        cases.push(case(dtype, (16, 2, 256), &[(33, 1), (9, 2)], 4.0, ""));
        // The last positions of a long context.
        let long = [(32_768, 1), (32_767, 3), (20_000, 1)];
        cases.extend([(2, 1, 64), (4, 2, 128)].map(|heads| case(dtype, heads, &long, 2.0, "")));
        cases.extend(of_blocks(dtype, &ragged, &small, &tiles));
    }
    let eight = |heads| case_of(BLOCKS, Dtype::F16, heads, &[(32_768, 1), (32_767, 3), (20_000, 1)], 2.0, "");
    cases.extend([(2, 1, 64), (4, 2, 128)].map(eight));
    cases
}

/// K and V in eight bits.
const BLOCKS: KvFormats = KvFormats::both(KvFormat::Q8_0);

/// Pages of eight bits, and of eight bits and floats, where the rest is `dtype`.
fn of_blocks(dtype: Dtype, ragged: &[Sequence], small: &[Sequence], tiles: &[Sequence]) -> Vec<Case> {
    let eight = |heads, sequences: &[Sequence]| case_of(BLOCKS, dtype, heads, sequences, 2.0, "");
    let mut cases = vec![eight((1, 1, 64), small), eight((1, 1, 128), &small[..6])];
    // Heads that there are fewer kernels for, and more of them than a group has anywhere.
    for heads in [(4, 2, 32), (2, 1, 256), (9, 1, 64)] {
        cases.push(eight(heads, &[(70, 5), (33, 3), (9, 9), (130, 1)]));
    }
    if dtype == Dtype::F16 {
        cases.extend([(14, 2, 64), (28, 4, 128)].map(|heads| eight(heads, ragged)));
        cases.extend([(7, 1, 64), (2, 1, 128), (16, 2, 256)].map(|heads| eight(heads, tiles)));
        cases.push(eight((3, 1, 64), &[(70, 20), (33, 3), (9, 9), (40, 1)]));
        cases.push(eight((7, 1, 64), &[(160, 37)]));
        cases.push(eight((1, 1, 128), &[(330, 17)]));
    }
    let float = KvFormat::Float(dtype);
    for formats in [KvFormats { k: float, v: KvFormat::Q8_0 }, KvFormats { k: KvFormat::Q8_0, v: float }] {
        cases.push(case_of(formats, dtype, (3, 1, 64), &[(70, 5), (33, 3), (9, 9), (130, 1)], 2.0, ""));
        cases.push(case_of(formats, dtype, (4, 2, 128), &[(70, 2), (33, 1)], 2.0, ""));
    }
    cases
}

/// Decode steps of a few sequences, prefill of many rows of one.
fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let mut cases = Vec::new();
    for &context in &workload.contexts {
        for &rows in workload.rows.iter().filter(|&&rows| rows <= context.max(DECODE_ROWS)) {
            let sequences =
                if rows <= DECODE_ROWS { vec![(context, 1); rows] } else { vec![(context, rows)] };
            let name = if rows <= DECODE_ROWS { "decode" } else { "prefill" };
            let blocks = heads.2.is_multiple_of(BLOCK_VALUES).then_some(BLOCKS);
            let formats = [workload.dtype.into()].into_iter().chain(blocks);
            cases.extend(
                formats.map(|formats| case_of(formats, workload.dtype, heads, &sequences, 2.0, name)),
            );
        }
    }
    cases
}

/// `sharpness` is the standard deviation of the scores, about.
fn case(dtype: Dtype, heads: Heads, sequences: &[Sequence], sharpness: f32, name: &str) -> Case {
    case_of(dtype.into(), dtype, heads, sequences, sharpness, name)
}

/// As [`case`], with pages of `formats`.
fn case_of(
    formats: KvFormats,
    dtype: Dtype,
    heads: Heads,
    sequences: &[Sequence],
    sharpness: f32,
    name: &str,
) -> Case {
    let (num_attention_heads, num_key_value_heads, head_dim) = heads;
    let longest = sequences.iter().map(|s| s.0).max().unwrap_or(1);
    let total: usize = sequences.iter().map(|s| s.0).sum();
    let rows: usize = sequences.iter().map(|s| s.1).sum();
    let limits = BatchLimits {
        max_num_tokens: total,
        max_num_sequences: sequences.len(),
        max_num_logits: sequences.len(),
        max_blocks: pages_for(longest),
    };
    let config = OpsConfig {
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rotation: Rotation::new(1e6, head_dim),
        experts: None,
        linear: None,
        max_model_len: longest,
        limits,
    };
    let scores: usize = sequences.iter().map(|&(kv_len, rows)| visible(kv_len, rows)).sum();
    let products = scores * num_attention_heads * head_dim;
    let kv_values = total * num_key_value_heads * head_dim;
    let kv_bytes = formats.k.bytes(kv_values) + formats.v.bytes(kv_values);
    let row_bytes = rows * num_attention_heads * head_dim * (4 + dtype.size());
    let lengths = match sequences {
        [(kv_len, 1)] => format!("1 x {kv_len}"),
        [(kv_len, rows)] => format!("{rows} rows of {kv_len}"),
        [first, rest @ ..] if rest.iter().all(|s| s == first) => format!("{} x {}", sequences.len(), first.0),
        _ => format!("{sequences:?}"),
    };
    let space = if name.is_empty() { "" } else { " " };
    let pages = if formats.float().is_some() { String::new() } else { format!(", pages of {formats}") };
    let owned = sequences.to_vec();
    Case {
        dtype,
        shape: format!(
            "{name}{space}{lengths}, {num_attention_heads}:{num_key_value_heads} heads of {head_dim}{pages}, sharpness {sharpness}"
        ),
        // A multiply-add is one of many in a thread, and there are two for each product.
        work: products / 16,
        cost: Cost { bytes: (kv_bytes + row_bytes) as f64, flops: 4.0 * products as f64 },
        config: config.clone(),
        prepare: Box::new(move |ops, seed| {
            Ok(Box::new(Attention::new(ops, seed, &config, formats, owned.clone(), sharpness)?))
        }),
    }
}

/// Keys that the last `rows` rows of `kv_len` tokens see in all.
fn visible(kv_len: usize, rows: usize) -> usize {
    (0..rows).map(|row| kv_len - rows + row + 1).sum()
}

/// What rounds in a kernel, beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Arithmetic {
    /// Nothing: sums of f32.
    Plain,
    /// Factors of tensor cores: scaled queries, and weights.
    TensorCores,
    /// As these, in steps of a page.
    TensorCoresByPage,
    /// Factors of tensor cores in two parts each, which are nearly as good as f32.
    TensorCoresInParts,
}

impl Arithmetic {
    /// Of a variant's kernel for a sequence of `rows` rows, where `group` query heads of `head_dim` values share a key.
    fn of(variant: &str, formats: KvFormats, rows: usize, group: usize, head_dim: usize) -> Self {
        // What tensor cores multiply.
        let factors = if formats == BLOCKS { Some(Dtype::F16) } else { formats.float() };
        match variant {
            _ if !matches!(head_dim, 64 | 128 | 256) => Self::Plain,
            // Heads that kernels of single rows, and of pages in blocks, round nothing of.
            "auto" if head_dim == 256 && (rows == 1 || formats == BLOCKS) => Self::Plain,
            "decode_mma" => Self::TensorCoresInParts,
            "auto" if rows == 1 && factors == Some(Dtype::F16) && group <= 8 => Self::TensorCoresInParts,
            "mma16" | "mma32" => Self::TensorCores,
            "mma32p" => Self::TensorCoresByPage,
            "auto" if rows > 1 && factors.is_some_and(|dtype| dtype != Dtype::F32) => Self::TensorCores,
            _ => Self::Plain,
        }
    }
}

/// A row as it should be.
struct Expected {
    row_of_batch: usize,
    /// Its sequence and how many keys it sees.
    sequence: usize,
    visible: usize,
    plain: RowReference,
    /// With the queries that tensor cores are given.
    rounded: RowReference,
}

/// A cache that holds random K and V of some sequences on shuffled pages, NaN elsewhere.
struct Attention {
    heads: Heads,
    sharpness: f32,
    formats: KvFormats,
    dtype: Dtype,
    limits: BatchLimits,
    sequences: Vec<Sequence>,
    /// Pages of each sequence.
    pages: Vec<Vec<u32>>,
    /// For each sequence `[rows, num_attention_heads * head_dim]`
    host_q: Vec<Vec<f32>>,
    /// Rows of the batch that are compared, and what they should be.
    expected: Vec<Expected>,
    cache: KvCache,
    batch: CudaBatch,
    q: Tensor,
    out: Activation,
    /// For each arithmetic and sequence the first variant that was right, and its results.
    first: HashMap<(Arithmetic, usize), (String, Vec<f32>)>,
}

impl Attention {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        config: &OpsConfig,
        formats: KvFormats,
        sequences: Vec<Sequence>,
        sharpness: f32,
    ) -> Result<Self> {
        let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (dtype, limits) = (ops.dtype(), config.limits);
        let (q_size, kv_size) = (heads.0 * heads.2, heads.1 * heads.2);
        let num_pages = sequences.iter().map(|s| pages_for(s.0)).sum::<usize>() + 3;
        let mut free = shuffled(seed, "pages", num_pages);
        let pages: Vec<_> = sequences.iter().map(|s| free.split_off(free.len() - pages_for(s.0))).collect();
        let values = |name: &str, format| -> Vec<Vec<f32>> {
            let of = |(i, s): (usize, &Sequence)| {
                stored(format, random(seed, &format!("{name} of sequence {i}"), s.0 * kv_size))
            };
            sequences.iter().enumerate().map(of).collect()
        };
        let (k, v) = (values("k", formats.k), values("v", formats.v));
        let q = |(i, s): (usize, &Sequence)| -> Vec<f32> {
            let values = random(seed, &format!("q of sequence {i}"), s.1 * q_size);
            values.iter().map(|value| value * sharpness).collect()
        };
        let host_q: Vec<Vec<f32>> = sequences.iter().enumerate().map(q).collect();

        let layout =
            KvLayout { formats, num_layers: 2, num_pages, num_key_value_heads: heads.1, head_dim: heads.2 };
        let mut cache = ops.new_kv_cache(&layout)?;
        cache.fill(POISON)?;
        cache.write(LAYER, &in_pages(&layout, &pages, &k), &in_pages(&layout, &pages, &v))?;

        let last: Vec<_> =
            sequences.iter().zip(&pages).map(|(s, pages)| (s.1, s.0 - s.1, &pages[..])).collect();
        let (host, batch) = batch_of(ops, &limits, &last)?;
        let n = host.num_tokens();
        let scores: usize = sequences.iter().map(|s| visible(s.0, s.1)).sum();
        let every = if scores * q_size <= WHOLE_REFERENCE { 1 } else { n.div_ceil(SOME_ROWS) };
        let mut compared = Vec::new();
        let mut row_of_batch = 0;
        for (s, &(kv_len, rows)) in sequences.iter().enumerate() {
            for row in 0..rows {
                if row_of_batch % every == 0 || row_of_batch == n - 1 {
                    compared.push((row_of_batch, s, row, kv_len - rows + row + 1));
                }
                row_of_batch += 1;
            }
        }
        let expected = compared
            .into_par_iter()
            .map(|(row_of_batch, sequence, row, visible)| {
                let q = &host_q[sequence][row * q_size..][..q_size];
                let of = |q: Vec<f64>| reference(heads, &q, &k[sequence], &v[sequence], visible);
                let scale = std::f64::consts::LOG2_E / (heads.2 as f64).sqrt();
                let plain = of(q.iter().map(|&q| f64::from(q) * scale).collect());
                let scaled: Vec<f32> = q.iter().map(|&q| q * scale as f32).collect();
                let rounded =
                    of(rounded(factors(formats, dtype), scaled).into_iter().map(f64::from).collect());
                Expected { row_of_batch, sequence, visible, plain, rounded }
            })
            .collect();
        let q = tensor(ops, n, q_size, &host_q.concat())?;
        let out = poisoned_activation(ops, n, q_size)?;
        Ok(Self {
            heads,
            sharpness,
            formats,
            dtype,
            limits,
            sequences,
            pages,
            host_q,
            expected,
            cache,
            batch,
            q,
            out,
            first: HashMap::new(),
        })
    }

    /// The attention of some of the rows of one sequence as a batch of its own: a chunk of its prompt.
    fn alone(&self, ops: &mut CudaOps, s: usize, chunk: Range<usize>) -> Result<Vec<f32>> {
        let (kv_len, rows) = self.sequences[s];
        let first = kv_len - rows + chunk.start;
        let pages = &self.pages[s][..pages_for(first + chunk.len())];
        let (_, batch) = batch_of(ops, &self.limits, &[(chunk.len(), first, pages)])?;
        let q_size = self.heads.0 * self.heads.2;
        let values = &self.host_q[s][chunk.start * q_size..chunk.end * q_size];
        let q = tensor(ops, chunk.len(), q_size, values)?;
        let mut out = poisoned_activation(ops, chunk.len(), q_size)?;
        ops.attention(&batch, LAYER, &q, &self.cache, &mut out)?;
        out.to_host()
    }

    /// How far off the results of a row may be: of dimension `i` of it.
    fn tolerance(&self, expected: &Expected, arithmetic: Arithmetic, i: usize) -> f64 {
        let (dtype, sharpness) = (self.dtype, f64::from(self.sharpness.max(1.0)));
        let factors = factors(self.formats, dtype);
        let last = |value: f64| value.abs() * unit(dtype) + smallest(dtype);
        match arithmetic {
            // A score of magnitude up to 6 * sharpness is off by a few units of roundoff of that, and the weights by as much
            // relatively: outputs, averages of values up to 4, by 2^-18 for each unit of sharpness. Then the last rounding.
            Arithmetic::Plain | Arithmetic::TensorCoresInParts => {
                last(expected.plain.out[i]) + 2f64.powi(-18) * 4.0 * sharpness
            }
            // Each weight is rounded once more, relatively or, where it is very small, by an absolute amount beside the
            // largest, which is 1 at least. Tensor cores cut sums off instead of rounding them: scores are worse by three
            // bits, and each addition of 16 keys takes up to 2^-21 of the sum.
            Arithmetic::TensorCores | Arithmetic::TensorCoresByPage => {
                let RowReference { out, magnitude, all } = &expected.rounded;
                let cut_off = expected.visible.div_ceil(16) as f64 * 2f64.powi(-21);
                last(out[i])
                    + magnitude[i] * (unit(factors) + cut_off)
                    + all[i] * smallest(factors)
                    + 2f64.powi(-15) * 4.0 * sharpness
            }
        }
    }

    /// Where the rows of a sequence are among the results.
    fn places(&self, s: usize) -> Range<usize> {
        let q_size = self.heads.0 * self.heads.2;
        let before: usize = self.sequences[..s].iter().map(|s| s.1).sum();
        before * q_size..(before + self.sequences[s].1) * q_size
    }
}

/// What tensor cores are given of pages of `formats`, where what they write is `dtype`.
fn factors(formats: KvFormats, dtype: Dtype) -> Dtype {
    if formats == BLOCKS { Dtype::F16 } else { dtype }
}

/// `values` as near as pages of `format` have them, of which f16 has the same.
fn stored(format: KvFormat, mut values: Vec<f32>) -> Vec<f32> {
    let KvFormat::Float(dtype) = format else {
        for (i, block) in values.chunks_mut(BLOCK_VALUES).enumerate() {
            // A power of two as the scale, and a value that makes it that.
            let scale = 2f32.powi(-(i as i32 % 3) - 5);
            block.iter_mut().for_each(|value| *value = (*value / scale).round().clamp(-127.0, 127.0) * scale);
            let largest = &mut block[i % BLOCK_VALUES];
            *largest = 127.0f32.copysign(*largest) * scale;
        }
        return values;
    };
    rounded(dtype, values)
}

/// The pages of a layer that hold the rows of each sequence, `[tokens, num_key_value_heads * head_dim]`, in its pages; NaN
/// elsewhere.
fn in_pages(layout: &KvLayout, pages: &[Vec<u32>], values: &[Vec<f32>]) -> Vec<f32> {
    let &KvLayout { num_pages, num_key_value_heads: heads, head_dim, .. } = layout;
    let mut layer = vec![f32::NAN; num_pages * layout.page_elements()];
    for (pages, values) in pages.iter().zip(values) {
        for (token, row) in values.chunks_exact(heads * head_dim).enumerate() {
            let (page, place) = (pages[token / PAGE_SIZE] as usize, token % PAGE_SIZE);
            for (head, row) in row.chunks_exact(head_dim).enumerate() {
                let to = ((page * heads + head) * PAGE_SIZE + place) * head_dim;
                layer[to..][..head_dim].copy_from_slice(row);
            }
        }
    }
    layer
}

impl Instance for Attention {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.attention(&self.batch, LAYER, &self.q, &self.cache, &mut self.out)
    }

    fn compare(&mut self, ops: &mut CudaOps, variant: &str, findings: &mut Findings) -> Result<()> {
        let q_size = self.heads.0 * self.heads.2;
        let n: usize = self.sequences.iter().map(|s| s.1).sum();
        let found = self.out.to_host()?;
        let group = self.heads.0 / self.heads.1;
        let arithmetic =
            |s: usize| Arithmetic::of(variant, self.formats, self.sequences[s].1, group, self.heads.2);
        for expected in &self.expected {
            let first = expected.row_of_batch * q_size;
            let values = found[first..][..q_size].iter().copied();
            let values = values.enumerate().map(|(i, value)| (first + i, value));
            let arithmetic = arithmetic(expected.sequence);
            let row = match arithmetic {
                Arithmetic::Plain | Arithmetic::TensorCoresInParts => &expected.plain,
                Arithmetic::TensorCores | Arithmetic::TensorCoresByPage => &expected.rounded,
            };
            findings.places("out", values, |i| {
                (row.out[i - first], self.tolerance(expected, arithmetic, i - first))
            });
        }
        findings.guard_intact("out", &found[n * q_size..]);
        let poison = found[..n * q_size].iter().position(|value| value.is_nan());
        findings.expect(poison.is_none(), || format!("out: not a number at {}", poison.unwrap_or_default()));

        // The same bits from all kernels of one arithmetic.
        for s in 0..self.sequences.len() {
            let values = &found[self.places(s)];
            match self.first.get(&(arithmetic(s), s)) {
                Some((name, first)) if name != variant => {
                    findings.same_bits("a sequence, against another variant", values, first);
                }
                None if findings.passed() => {
                    self.first.insert((arithmetic(s), s), (variant.to_owned(), values.to_vec()));
                }
                _ => {}
            }
        }
        let all_alike = self.sequences.len() > 1 && self.sequences.iter().all(|s| *s == self.sequences[0]);
        let some = if all_alike { 1 } else { self.sequences.len() };
        for s in (0..some).filter(|_| self.sequences.len() > 1) {
            let alone = self.alone(ops, s, 0..self.sequences[s].1)?;
            findings.same_bits("a sequence alone, against the batch", &alone, &found[self.places(s)]);
        }
        // Two chunks of several rows each, at an odd place.
        for (s, &(_, rows)) in self.sequences.iter().enumerate().take(some).filter(|(_, s)| s.1 >= 4) {
            let cut = ((rows / 2) | 1).min(rows - 2);
            let mut chunks = self.alone(ops, s, 0..cut)?;
            chunks.truncate(cut * q_size);
            chunks.extend(self.alone(ops, s, cut..rows)?);
            findings.same_bits("two chunks, against the whole", &chunks, &found[self.places(s)]);
        }
        Ok(())
    }
}

/// One row in f64, each `[heads * head_dim]`.
struct RowReference {
    out: Vec<f64>,
    /// The output if no value were negative: what a relative error of the weights makes of itself at most.
    magnitude: Vec<f64>,
    /// The sum of the values' magnitudes, with the weights 1, over the sum of weights of which the largest is 1.
    all: Vec<f64>,
}

/// One row of attention in f64, from the definition: q `[heads * head_dim]`, multiplied with `log2(e) / sqrt(head_dim)`, k and v
/// `[kv_len, kv_heads * head_dim]`, of which the row sees the first `visible`.
fn reference(
    (heads, kv_heads, head_dim): Heads,
    q: &[f64],
    k: &[f32],
    v: &[f32],
    visible: usize,
) -> RowReference {
    let zeros = vec![0.0; heads * head_dim];
    let (mut out, mut magnitude, mut all) = (zeros.clone(), zeros.clone(), zeros);
    for head in 0..heads {
        let dims = head * head_dim..(head + 1) * head_dim;
        let (out, magnitude, all) =
            (&mut out[dims.clone()], &mut magnitude[dims.clone()], &mut all[dims.clone()]);
        let kv_head = head / (heads / kv_heads);
        let q = &q[head * head_dim..][..head_dim];
        let at = |t: usize| (t * kv_heads + kv_head) * head_dim;
        let score = |t: usize| q.iter().zip(&k[at(t)..]).map(|(&q, &k)| q * f64::from(k)).sum::<f64>();
        let scores: Vec<f64> = (0..visible).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp2()).sum();
        for (t, score) in scores.iter().enumerate() {
            let weight = (score - max).exp2() / sum;
            for (i, &v) in v[at(t)..][..head_dim].iter().enumerate() {
                out[i] += weight * f64::from(v);
                magnitude[i] += weight * f64::from(v).abs();
                all[i] += f64::from(v).abs() / sum;
            }
        }
    }
    RowReference { out, magnitude, all }
}
