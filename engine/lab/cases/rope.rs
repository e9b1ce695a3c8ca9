//! Rotary position embedding, at the first and at the last positions of a long context.

use super::batch_of;
use crate::batch::BatchLimits;
use crate::cuda::{CudaBatch, CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::pages_for;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig};

pub const CASES: Cases = Cases { op: "rope", checks, timings };

/// Rows, and the position of the first of them, of each sequence.
type Sequences = Vec<(usize, usize)>;

fn checks() -> Vec<Case> {
    const CONTEXT: usize = 32_768;
    let heads = [(14, 64), (2, 64), (28, 128), (1, 128)];
    // One row at position 0, 19 in the middle, 111 that end with position 32,767.
    heads.map(|heads| case(heads, 1e6, CONTEXT, vec![(1, 0), (19, 1000), (111, CONTEXT - 111)])).into()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let heads = (config.num_attention_heads, config.head_dim);
    let of = |&n: &usize| case(heads, config.rope_theta, n, vec![(n, 0)]);
    workload.rows.iter().map(of).collect()
}

fn case((heads, head_dim): (usize, usize), theta: f32, context: usize, sequences: Sequences) -> Case {
    let n: usize = sequences.iter().map(|s| s.0).sum();
    let values = n * heads * head_dim;
    let limits = BatchLimits {
        max_num_tokens: n,
        max_num_sequences: sequences.len(),
        max_num_logits: sequences.len(),
        max_blocks: pages_for(context),
    };
    let config = OpsConfig {
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        rope_theta: theta,
        max_model_len: context,
        limits,
    };
    Case {
        dtype: Dtype::F32,
        shape: format!("[{n}, {heads} heads of {head_dim}], positions below {context}"),
        work: values,
        // x is read and written; a row of the tables and a position are read once a row.
        cost: Cost { bytes: (values * 8 + n * (head_dim + 1) * 4) as f64, flops: 3.0 * values as f64 },
        config: config.clone(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Rope::new(ops, seed, &config, &sequences)?))),
    }
}

struct Rope {
    heads: usize,
    head_dim: usize,
    batch: CudaBatch,
    input: Vec<f32>,
    expected: Vec<f64>,
    x: Tensor,
}

impl Rope {
    fn new(ops: &mut CudaOps, seed: u64, config: &OpsConfig, sequences: &Sequences) -> Result<Self> {
        let &OpsConfig { num_attention_heads: heads, head_dim, rope_theta: theta, ref limits, .. } = config;
        let pages: Vec<u32> = (0..limits.max_blocks as u32).collect();
        let rows: Vec<_> = sequences.iter().map(|&(rows, position)| (rows, position, &pages[..])).collect();
        let (host, batch) = batch_of(ops, limits, &rows)?;
        let (n, cols) = (host.num_tokens(), heads * head_dim);
        let input = random(seed, &format!("rope, {heads} heads of {head_dim}"), n * cols);
        let expected = reference(&input, &host.positions, theta, heads, head_dim);
        let x = tensor(ops, n, cols, &input)?;
        Ok(Self { heads, head_dim, batch, input, expected, x })
    }
}

impl Instance for Rope {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.rope(&self.batch, &mut self.x, self.heads)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let (half, x) = (self.head_dim / 2, &self.input);
        // Cosine and sine are rounded once, then a product and a fused multiply-add round once each: three units of
        // roundoff of the two terms, |a| + |b|.
        let tolerance = |i: usize, _| {
            let partner = if i % self.head_dim < half { i + half } else { i - half };
            3.0 * unit(Dtype::F32) * f64::from(x[i].abs() + x[partner].abs())
        };
        findings.close("x", &self.x.to_host()?, &self.expected, tolerance);
        Ok(())
    }
}

/// The rotation in f64, from exact angles.
fn reference(x: &[f32], positions: &[u32], theta: f32, heads: usize, head_dim: usize) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
    rotate(&x, positions, theta, heads, head_dim)
}

/// As [`reference`], of values in f64.
pub(super) fn rotate(x: &[f64], positions: &[u32], theta: f32, heads: usize, head_dim: usize) -> Vec<f64> {
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
