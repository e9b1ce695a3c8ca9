//! Attention of ragged batches over shuffled pages, short and as long as the context.

use super::batch_of;
use crate::batch::BatchLimits;
use crate::cuda::{Activation, CudaBatch, CudaOps, KvCache, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_format::{KvFormat, KvFormats};
use crate::kv_layout::{KvLayout, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig};
use crate::rope::Rotation;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

mod cache;
mod reference;
mod shapes;

use cache::{factors, in_pages, stored};
use reference::{RowReference, reference};
use shapes::{checks, timings};

pub const CASES: Cases = Cases { op: "attention", checks, timings };

/// Of two layers, the one that is used.
const LAYER: usize = 1;
/// K and V in eight bits.
const BLOCKS: KvFormats = KvFormats::both(KvFormat::Q8_0);
/// NaN in every format.
const POISON: u8 = 0xFF;

/// A reference of more products of q with k than this is computed for some of the rows only.
const WHOLE_REFERENCE: usize = 1 << 28;
/// For how many, then.
const SOME_ROWS: usize = 32;

/// Tokens in the cache, and how many of them are rows of the batch.
type Sequence = (usize, usize);

/// Heads, key-value heads, head_dim.
type Heads = (usize, usize, usize);

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
            "auto" if head_dim == 256 && formats == BLOCKS => Self::Plain,
            "decode_mma" | "decode_staged" => Self::TensorCoresInParts,
            "auto" if rows == 1 && factors == Some(Dtype::F16) && group <= 8 => Self::TensorCoresInParts,
            "mma16" | "mma32" | "wgmma" => Self::TensorCores,
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
