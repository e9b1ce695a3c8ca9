//! Rows of K and V to pages in their formats.

use super::ragged;
use crate::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use crate::cuda::{CudaBatch, CudaOps, KvCache};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_format::{BLOCK_VALUES, KvFormat, KvFormats};
use crate::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig};

pub const CASES: Cases = Cases { op: "quantise_kv", checks, timings };

const LAYERS: usize = 2;
/// Of them, the one that is written.
const LAYER: usize = 1;
/// NaN in every format.
const POISON: u8 = 0xFF;

/// `[rows, num_key_value_heads, head_dim]`
type Shape = [usize; 3];

/// A batch of `rows` rows on as many pages.
struct Rows {
    rows: usize,
    num_pages: usize,
    host: fn(u64, usize) -> Batch,
}

fn checks() -> Vec<Case> {
    let float = |dtype| KvFormat::Float(dtype);
    let blocks = KvFormats::both(KvFormat::Q8_0);
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for [heads, head_dim] in [[2, 64], [1, 128], [3, 32], [2, 256]] {
            cases.push(case(dtype, blocks, [131, heads, head_dim]));
        }
        cases.push(case(dtype, KvFormats { k: float(dtype), v: KvFormat::Q8_0 }, [131, 2, 64]));
        cases.push(case(dtype, KvFormats { k: KvFormat::Q8_0, v: float(dtype) }, [131, 1, 128]));
    }
    cases
}

fn timings(workload: &Workload) -> Vec<Case> {
    let c = &workload.config;
    if !c.head_dim.is_multiple_of(BLOCK_VALUES) {
        return Vec::new();
    }
    let of = |&n: &usize| {
        let host = |_, n| {
            let pages: Vec<u32> = (0..pages_for(n) as u32).collect();
            let rows =
                SequenceRows { tokens: &vec![0; n], position: 0, pages: &pages, logits: LogitRows::None };
            Batch::new(&[rows])
        };
        let rows = Rows { rows: n, num_pages: pages_for(n), host };
        let shape = [n, c.num_key_value_heads, c.head_dim];
        case_of(Dtype::F16, KvFormats::both(KvFormat::Q8_0), shape, rows)
    };
    workload.rows.iter().map(of).collect()
}

/// Rows of `dtype` of several sequences.
fn case(dtype: Dtype, formats: KvFormats, shape: Shape) -> Case {
    case_of(dtype, formats, shape, Rows { rows: shape[0], num_pages: 9, host: |seed, _| ragged(seed, 10, 9) })
}

fn case_of(dtype: Dtype, formats: KvFormats, shape: Shape, rows: Rows) -> Case {
    let [n, num_key_value_heads, head_dim] = shape;
    let values = n * num_key_value_heads * head_dim;
    let bytes = 2 * values * dtype.size() + formats.k.bytes(values) + formats.v.bytes(values);
    let limits = BatchLimits {
        max_num_tokens: rows.rows.max(256),
        max_num_sequences: 4,
        max_num_logits: rows.rows.max(256),
        max_blocks: rows.num_pages.max(8),
    };
    let config = OpsConfig {
        num_attention_heads: num_key_value_heads,
        num_key_value_heads,
        head_dim,
        max_model_len: 32 * limits.max_blocks,
        limits,
        ..plain_config()
    };
    let Rows { num_pages, host, .. } = rows;
    Case {
        dtype,
        shape: format!("{n} rows, {num_key_value_heads} heads of {head_dim} to {formats}"),
        work: 2 * values,
        cost: Cost { bytes: bytes as f64, flops: 4.0 * values as f64 },
        config,
        prepare: Box::new(move |ops, seed| {
            let layout = KvLayout { formats, num_layers: LAYERS, num_pages, num_key_value_heads, head_dim };
            Ok(Box::new(QuantiseKv::new(ops, seed, layout, &limits, host(seed, n))?))
        }),
    }
}

struct QuantiseKv {
    dtype: Dtype,
    batch: CudaBatch,
    cache: KvCache,
    /// Of K and V, as pages have them: the value and how far off it may be; `None` where none is written.
    expected: [Vec<Option<(f64, f64)>>; 2],
}

impl QuantiseKv {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        layout: KvLayout,
        limits: &BatchLimits,
        host: Batch,
    ) -> Result<Self> {
        let dtype = ops.dtype();
        let (n, row) = (host.num_tokens(), layout.num_key_value_heads * layout.head_dim);
        let values = ["k", "v"].map(|name| {
            let mut values = random(seed, name, n * row);
            // Blocks of zeros, of small and of large values.
            for (i, block) in values.chunks_mut(BLOCK_VALUES).enumerate() {
                let scale = [1.0, 0.0, 1e-3, 300.0][i % 4];
                block.iter_mut().for_each(|value| *value *= scale);
            }
            rounded(dtype, values)
        });
        let mut cache = ops.new_kv_cache(&layout)?;
        cache.stage(dtype, &values[0], &values[1])?;
        let mut batch = ops.new_batch(limits)?;
        ops.upload(&host, &mut batch)?;
        let expected = [(layout.formats.k, &values[0]), (layout.formats.v, &values[1])]
            .map(|(format, values)| expected(&layout, format, &host, values));
        Ok(Self { dtype, batch, cache, expected })
    }
}

/// What pages of `format` hold of rows `[num_tokens, num_key_value_heads * head_dim]`.
fn expected(layout: &KvLayout, format: KvFormat, host: &Batch, values: &[f32]) -> Vec<Option<(f64, f64)>> {
    let &KvLayout { num_key_value_heads: heads, head_dim, .. } = layout;
    let mut pages = vec![None; layout.num_pages * layout.page_elements()];
    for (i, block) in values.chunks(BLOCK_VALUES).enumerate() {
        let first = i * BLOCK_VALUES;
        let (row, column) = (first / (heads * head_dim), first % (heads * head_dim));
        let (head, d) = (column / head_dim, column % head_dim);
        let (page, place) = (host.slots[row] as usize / PAGE_SIZE, host.slots[row] as usize % PAGE_SIZE);
        let to = ((page * heads + head) * PAGE_SIZE + place) * head_dim + d;
        let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (value, to) in block.iter().zip(&mut pages[to..]) {
            let tolerance = match format {
                KvFormat::Float(_) => 0.0,
                // Half a step; a scale is off by 2^-11, or by 2^-25 where it is very small, and so the largest value by 127 times that.
                KvFormat::Q8_0 => {
                    f64::from(largest) * (0.5 / 127.0 + 2f64.powi(-11)) + 127.0 * 2f64.powi(-25)
                }
            };
            *to = Some((f64::from(*value), tolerance));
        }
    }
    pages
}

impl Instance for QuantiseKv {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        self.cache.fill(POISON)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.quantise_kv(&self.batch, LAYER, self.dtype, &mut self.cache)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let (k, v) = self.cache.read(LAYER)?;
        for ((name, found), expected) in [("k", k), ("v", v)].into_iter().zip(&self.expected) {
            let written = found.iter().enumerate().filter(|(i, _)| expected[*i].is_some());
            findings.places(name, written.map(|(i, value)| (i, *value)), |i| expected[i].unwrap_or_default());
            let untouched = found.iter().zip(expected).all(|(value, e)| e.is_some() || value.is_nan());
            findings.expect(untouched, || format!("{name}: wrote outside of its slots"));
        }
        let (k, v) = self.cache.read(0)?;
        findings.expect(k.iter().chain(&v).all(|value| value.is_nan()), || "layer 0 was written".into());
        let refused = ops.quantise_kv(&self.batch, LAYERS, self.dtype, &mut self.cache);
        findings.expect(refused.is_err(), || format!("layer {LAYERS} of {LAYERS} was not refused"));
        Ok(())
    }
}
