//! Biases, norms of heads, rotation and the pages of K and V, against the same in f64.

use super::ragged;
use crate::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use crate::cuda::{CudaBatch, CudaOps, DeviceBuffer, KvCache, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::parts::QkNorm;
use crate::ops::{Ops, OpsConfig};
use crate::rope::Rotation;

pub const CASES: Cases = Cases { op: "bias_rope_kv", checks, timings };

/// The layer that is written, of two where the other must stay as it is.
const LAYER: usize = 1;
const LAYERS: usize = 2;
/// NaN in every format.
const POISON: u8 = 0xFF;

/// Heads of Q, heads of K and of V, values of each.
type Heads = (usize, usize, usize);

/// What Q, K and V get before they are rotated.
#[derive(Clone, Copy, PartialEq)]
enum With {
    Nothing,
    Biases,
    /// Norms of the heads of Q and K.
    Norms,
    BiasesAndNorms,
}

impl With {
    fn has_biases(self) -> bool {
        matches!(self, Self::Biases | Self::BiasesAndNorms)
    }

    fn has_norms(self) -> bool {
        matches!(self, Self::Norms | Self::BiasesAndNorms)
    }

    fn of(has_biases: bool, has_norms: bool) -> Self {
        match (has_biases, has_norms) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Biases,
            (false, true) => Self::Norms,
            (true, true) => Self::BiasesAndNorms,
        }
    }
}

const EPS: f32 = 1e-6;

fn checks() -> Vec<Case> {
    let shapes = [
        ((14, 2, 64), With::Biases),
        ((3, 1, 64), With::Nothing),
        ((2, 2, 128), With::Biases),
        ((3, 1, 64), With::BiasesAndNorms),
        ((2, 1, 128), With::Norms),
        ((1, 1, 256), With::Norms),
    ];
    let of = |dtype| {
        let ragged =
            |(heads, with)| case(dtype, heads, with, Size::new(131, 9), Box::new(|seed| ragged(seed, 10, 9)));
        shapes.map(ragged).into_iter().chain([last_positions(dtype)])
    };
    Dtype::ALL.into_iter().flat_map(of).collect()
}

/// The last rows of a long context, whose angles are large. Its other pages are never read: a few stand for all.
fn last_positions(dtype: Dtype) -> Case {
    const CONTEXT: usize = 32_768;
    const ROWS: usize = 19;
    let size = Size { context: CONTEXT, ..Size::new(ROWS, 3) };
    let host = |_| {
        let pages: Vec<u32> = (0..pages_for(CONTEXT) as u32).map(|page| page % 3).collect();
        let position = CONTEXT - ROWS;
        let rows = SequenceRows { tokens: &[0; ROWS], position, pages: &pages, logits: LogitRows::None };
        Batch::new(&[rows])
    };
    case(dtype, (3, 1, 64), With::Biases, size, Box::new(host))
}

fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let of = |&n: &usize| {
        let num_pages = pages_for(n);
        let host = move |seed| {
            let pages = shuffled(seed, "pages", num_pages);
            let tokens = vec![0; n];
            let rows = SequenceRows { tokens: &tokens, position: 0, pages: &pages, logits: LogitRows::None };
            Batch::new(&[rows])
        };
        let with = With::of(config.attention_bias, !config.attention_bias);
        case(workload.dtype, heads, with, Size::new(n, num_pages), Box::new(host))
    };
    workload.rows.iter().map(of).collect()
}

/// Of a batch and its cache.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    num_pages: usize,
    /// One beyond the last position.
    context: usize,
}

impl Size {
    /// Positions are below the number of rows, or 256.
    fn new(rows: usize, num_pages: usize) -> Self {
        Self { rows, num_pages, context: rows.max(256) }
    }
}

fn case(
    dtype: Dtype,
    heads: Heads,
    with: With,
    Size { rows: n, num_pages, context }: Size,
    host: Box<dyn Fn(u64) -> Batch>,
) -> Case {
    let (q_heads, kv_heads, head_dim) = heads;
    let (q_size, kv_size) = (q_heads * head_dim, kv_heads * head_dim);
    let values = n * (q_size + 2 * kv_size);
    let limits = BatchLimits {
        max_num_tokens: n.max(256),
        max_num_sequences: 4,
        max_num_logits: n.max(256),
        max_blocks: num_pages.max(pages_for(context)),
    };
    let config = OpsConfig {
        num_attention_heads: q_heads,
        num_key_value_heads: kv_heads,
        head_dim,
        rotation: Rotation::new(1e6, head_dim),
        experts: None,
        linear: None,
        max_model_len: context,
        limits,
    };
    let (bias, normed) = (with.has_biases(), with.has_norms());
    let bias = if bias { "" } else { ", no bias" };
    let normed = if normed { ", normed" } else { "" };
    let bytes = values * 4 + n * (q_size * 4 + 2 * kv_size * dtype.size() + head_dim * 4 + 8);
    Case {
        dtype,
        shape: format!("{n} rows, {q_heads}:{kv_heads} heads of {head_dim}{bias}{normed}"),
        work: values,
        cost: Cost { bytes: bytes as f64, flops: 4.0 * values as f64 },
        config: config.clone(),
        prepare: Box::new(move |ops, seed| {
            let layout = KvLayout {
                formats: dtype.into(),
                num_layers: LAYERS,
                num_pages,
                num_key_value_heads: kv_heads,
                head_dim,
            };
            let setup = Setup { heads, with, layout, host: host(seed) };
            Ok(Box::new(BiasRopeKv::new(ops, seed, &config, setup)?))
        }),
    }
}

/// What a case is made of.
struct Setup {
    heads: Heads,
    with: With,
    layout: KvLayout,
    host: Batch,
}

struct BiasRopeKv {
    dtype: Dtype,
    batch: CudaBatch,
    qkv: Tensor,
    /// Of Q, K and V.
    bias: [Option<DeviceBuffer<f32>>; 3],
    norm: Option<QkNorm<DeviceBuffer<f32>>>,
    q: Tensor,
    cache: KvCache,
    /// Exact values, and the tolerance of each in units of roundoff of f32.
    expected_q: Vec<(f64, f64)>,
    /// All pages of K and of V of the layer; `None` where nothing is written.
    expected_pages: [Vec<Option<(f64, f64)>>; 2],
}

impl BiasRopeKv {
    fn new(ops: &mut CudaOps, seed: u64, config: &OpsConfig, setup: Setup) -> Result<Self> {
        let Setup { heads: (q_heads, kv_heads, head_dim), with, layout, host } = setup;
        let (n, q_size, kv_size) = (host.num_tokens(), q_heads * head_dim, kv_heads * head_dim);
        let cols = q_size + 2 * kv_size;
        let name = format!("bias_rope_kv [{n}, {cols}]");
        let input = random(seed, &name, n * cols);
        let biases: Vec<f32> = match with.has_biases() {
            true => random(seed, &format!("{name}: bias"), cols).iter().map(|bias| 10.0 * bias).collect(),
            false => vec![0.0; cols],
        };
        let mut sums: Vec<f64> =
            input.iter().enumerate().map(|(i, x)| f64::from(*x) + f64::from(biases[i % cols])).collect();
        let weights = ["q", "k"].map(|of| random(seed, &format!("{name}: {of} norm"), head_dim));
        // The root of the mean of squares that are added one by one, and roundings of quotient, root and products.
        let mut roundings = 0.0;
        if with.has_norms() {
            roundings = head_dim as f64 / 2.0 + 6.0;
            for (i, head) in sums.chunks_mut(head_dim).enumerate() {
                let weight = match i % (q_heads + 2 * kv_heads) {
                    i if i < q_heads => &weights[0],
                    i if i < q_heads + kv_heads => &weights[1],
                    _ => continue,
                };
                let squares: f64 = head.iter().map(|x| x * x).sum();
                let scale = 1.0 / (squares / head_dim as f64 + f64::from(EPS)).sqrt();
                head.iter_mut().zip(weight).for_each(|(x, weight)| *x *= scale * f64::from(*weight));
            }
        }
        // Q and K are rotated, all heads of a row alike; V is not.
        let rotated = rotate(&sums, &host.positions, config.rotation.theta, q_heads + 2 * kv_heads, head_dim);
        let half = head_dim / 2;
        // The sum with the bias rounds once, which the rotation passes on; cosine and sine are rounded once, and a product and a
        // fused multiply-add round once each: four units of roundoff of the two terms.
        let exact = |row: usize, column: usize| {
            let i = row * cols + column;
            if column >= q_size + kv_size {
                return (sums[i], sums[i].abs());
            }
            let partner = if column % head_dim < half { i + half } else { i - half };
            (rotated[i], (4.0 + roundings) * (sums[i].abs() + sums[partner].abs()))
        };
        let expected_q = (0..n * q_size).map(|i| exact(i / q_size, i % q_size)).collect();
        let pages = |first: usize| {
            let mut pages = vec![None; layout.num_pages * layout.page_elements()];
            for (row, &slot) in host.slots.iter().enumerate() {
                let (page, place) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
                for column in 0..kv_size {
                    let (head, d) = (column / head_dim, column % head_dim);
                    let to = ((page * kv_heads + head) * PAGE_SIZE + place) * head_dim + d;
                    pages[to] = Some(exact(row, first + column));
                }
            }
            pages
        };
        let expected_pages = [pages(q_size), pages(q_size + kv_size)];
        let mut bias = [None, None, None];
        for (bias, range) in
            bias.iter_mut().zip([0..q_size, q_size..q_size + kv_size, q_size + kv_size..cols])
        {
            *bias = with.has_biases().then(|| ops.load_vector(&biases[range])).transpose()?;
        }
        let [q_norm, k_norm] = &weights;
        let norm = match with.has_norms() {
            true => Some(QkNorm { q: ops.load_vector(q_norm)?, k: ops.load_vector(k_norm)?, eps: EPS }),
            false => None,
        };
        let mut batch = ops.new_batch(&config.limits)?;
        ops.upload(&host, &mut batch)?;
        Ok(Self {
            dtype: ops.dtype(),
            batch,
            qkv: tensor(ops, n, cols, &input)?,
            bias,
            norm,
            q: poisoned(ops, n, q_size)?,
            cache: ops.new_kv_cache(&layout)?,
            expected_q,
            expected_pages,
        })
    }
}

impl Instance for BiasRopeKv {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.q, &[])?;
        self.cache.fill(POISON)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let bias = self.bias.each_ref().map(Option::as_ref);
        let Self { batch, qkv, norm, cache, .. } = self;
        ops.bias_rope_kv(batch, LAYER, qkv, bias, norm.as_ref(), &mut self.q, cache)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let f32_unit = unit(Dtype::F32);
        let expected: Vec<f64> = self.expected_q.iter().map(|place| place.0).collect();
        findings.close("q", &self.q.to_host()?, &expected, |i, _| self.expected_q[i].1 * f32_unit);
        let (k, v) = self.cache.read(LAYER)?;
        for (name, found, expected) in [("k", k, &self.expected_pages[0]), ("v", v, &self.expected_pages[1])]
        {
            let written = found.iter().enumerate().filter(|(i, _)| expected[*i].is_some());
            findings.places(name, written.map(|(i, value)| (i, *value)), |i| {
                let (exact, tolerance) = expected[i].unwrap_or_default();
                (exact, tolerance * f32_unit + exact.abs() * unit(self.dtype) + smallest(self.dtype))
            });
            let untouched = found.iter().zip(expected).all(|(value, e)| e.is_some() || value.is_nan());
            findings.expect(untouched, || format!("{name}: wrote outside of its slots"));
        }
        let (k, v) = self.cache.read(0)?;
        findings.expect(k.iter().chain(&v).all(|value| value.is_nan()), || "layer 0 was written".into());
        let bias = self.bias.each_ref().map(Option::as_ref);
        let Self { batch, qkv, norm, cache, .. } = self;
        let refused = ops.bias_rope_kv(batch, LAYERS, qkv, bias, norm.as_ref(), &mut self.q, cache);
        findings.expect(refused.is_err(), || format!("layer {LAYERS} of {LAYERS} was not refused"));
        Ok(())
    }
}

/// The rotation of `heads` heads a row by the row's position, in f64, from exact angles.
fn rotate(x: &[f64], positions: &[u32], theta: f32, heads: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let mut out = vec![0.0; x.len()];
    for (row, &position) in positions.iter().enumerate() {
        for j in 0..half {
            let frequency = f64::from(theta).powf(-2.0 * j as f64 / head_dim as f64);
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            for head in 0..heads {
                let first = (row * heads + head) * head_dim;
                let (a, b) = (x[first + j], x[first + j + half]);
                out[first + j] = a * cos - b * sin;
                out[first + j + half] = b * cos + a * sin;
            }
        }
    }
    out
}
