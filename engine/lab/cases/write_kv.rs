//! Writing K and V into pages.

use super::ragged;
use crate::batch::{Batch, BatchLimits, SequenceRows, WantedLogits};
use crate::cuda::{CudaBatch, CudaOps, KvCache, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig};

pub const CASES: Cases = Cases { op: "write_kv", checks, timings };

/// The layer that is written, of three where others must stay as they are.
const LAYER: usize = 1;
const LAYERS: usize = 3;
/// NaN in every format.
const POISON: u8 = 0xFF;

fn checks() -> Vec<Case> {
    let heads = [(1, 64), (2, 64), (4, 128), (7, 128)];
    let of = |dtype| heads.map(|heads| case(dtype, heads, 131, 9, Box::new(|seed| ragged(seed, 10, 9))));
    Dtype::ALL.into_iter().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let heads = (workload.config.num_key_value_heads, workload.config.head_dim);
    let of = |&n: &usize| {
        let num_pages = pages_for(n);
        let host = move |seed| {
            let pages = shuffled(seed, "pages", num_pages);
            let tokens = vec![0; n];
            Batch::new(&[SequenceRows {
                tokens: &tokens,
                position: 0,
                pages: &pages,
                logits: WantedLogits::None,
            }])
        };
        case(workload.dtype, heads, n, num_pages, Box::new(host))
    };
    workload.rows.iter().map(of).collect()
}

fn case(
    dtype: Dtype,
    (heads, head_dim): (usize, usize),
    n: usize,
    num_pages: usize,
    host: Box<dyn Fn(u64) -> Batch>,
) -> Case {
    let values = n * heads * head_dim;
    let limits = BatchLimits {
        max_num_tokens: n.max(256),
        max_num_sequences: 4,
        max_num_logits: n.max(256),
        max_blocks: num_pages.max(8),
    };
    let config = OpsConfig {
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        rope_theta: 1e6,
        max_model_len: 256,
        limits,
    };
    Case {
        dtype,
        shape: format!("{n} rows of {heads} heads of {head_dim}"),
        work: 2 * values,
        cost: Cost { bytes: (2 * values * (4 + dtype.size()) + 4 * n) as f64, flops: 0.0 },
        config,
        prepare: Box::new(move |ops, seed| {
            let layout =
                KvLayout { dtype, num_layers: LAYERS, num_pages, num_key_value_heads: heads, head_dim };
            let host = host(seed);
            let cols = heads * head_dim;
            let name = format!("write_kv [{n}, {cols}]");
            let values = ["k", "v"].map(|which| random(seed, &format!("{name}: {which}"), n * cols));
            let mut batch = ops.new_batch(&limits)?;
            ops.upload(&host, &mut batch)?;
            Ok(Box::new(WriteKv {
                expected: [0, 1].map(|i| expected(&layout, &host, &values[i])),
                cache: ops.new_kv_cache(&layout)?,
                k: tensor(ops, n, cols, &values[0])?,
                v: tensor(ops, n, cols, &values[1])?,
                batch,
            }))
        }),
    }
}

struct WriteKv {
    batch: CudaBatch,
    /// All pages of K and of V of the layer.
    expected: [Vec<f32>; 2],
    cache: KvCache,
    k: Tensor,
    v: Tensor,
}

/// What the pages of a layer hold: the rows in their slots, NaN elsewhere.
fn expected(layout: &KvLayout, host: &Batch, values: &[f32]) -> Vec<f32> {
    let (heads, head_dim) = (layout.num_key_value_heads, layout.head_dim);
    let mut expected = vec![f32::NAN; layout.num_pages * layout.page_elements()];
    for (row, &slot) in host.slots.iter().enumerate() {
        let (page, place) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
        for head in 0..heads {
            let to = ((page * heads + head) * PAGE_SIZE + place) * head_dim;
            let from = (row * heads + head) * head_dim;
            let rounded = rounded(layout.dtype, values[from..][..head_dim].to_vec());
            expected[to..][..head_dim].copy_from_slice(&rounded);
        }
    }
    expected
}

impl Instance for WriteKv {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        self.cache.fill(POISON)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.write_kv(&self.batch, LAYER, &self.k, &self.v, &mut self.cache)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let (k, v) = self.cache.read(LAYER)?;
        for (name, found, expected) in [("k", k, &self.expected[0]), ("v", v, &self.expected[1])] {
            findings.compared += expected.len();
            let differs = |(a, b): (&f32, &f32)| a != b && !(a.is_nan() && b.is_nan());
            let at = found.iter().zip(expected).position(differs);
            findings.expect(at.is_none(), || {
                let at = at.unwrap_or_default();
                format!(
                    "{name}: at {at} of the layer's pages: found {}, expected {}",
                    found[at], expected[at]
                )
            });
        }
        for layer in (0..LAYERS).filter(|&layer| layer != LAYER) {
            let (k, v) = self.cache.read(layer)?;
            let untouched = k.iter().chain(&v).all(|value| value.is_nan());
            findings.expect(untouched, || format!("layer {layer} was written instead of {LAYER} alone"));
        }
        let refused = ops.write_kv(&self.batch, LAYERS, &self.k, &self.v, &mut self.cache).is_err();
        findings.expect(refused, || format!("layer {LAYERS} of {LAYERS} was not refused"));
        Ok(())
    }
}
