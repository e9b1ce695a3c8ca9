//! The norms of the heads of Q and K.

use crate::cuda::{CudaOps, DeviceBuffer, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::parts::QkNorm;
use crate::ops::{Ops, OpsConfig};
use crate::rope::Rotation;

pub const CASES: Cases = Cases { op: "qk_norm", checks, timings };

const EPS: f32 = 1e-6;

/// `[n, q_heads, k_heads, head_dim]`
type Shape = [usize; 4];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 5] =
        [[1, 1, 1, 64], [19, 3, 1, 64], [5, 14, 2, 64], [111, 4, 2, 128], [3, 8, 8, 128]];
    SHAPES.into_iter().flat_map(|shape| [false, true].map(|bias| case(shape, bias))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let c = &workload.config;
    let shape = |&n: &usize| [n, c.num_attention_heads, c.num_key_value_heads, c.head_dim];
    workload.rows.iter().map(|n| case(shape(n), false)).collect()
}

fn case(shape: Shape, bias: bool) -> Case {
    let [n, q_heads, k_heads, head_dim] = shape;
    let values = n * (q_heads + k_heads) * head_dim;
    let biases = if bias { ", biases" } else { "" };
    Case {
        dtype: Dtype::F32,
        shape: format!("{n} rows, {q_heads} and {k_heads} heads of {head_dim}{biases}"),
        work: values,
        cost: Cost { bytes: (8 * values) as f64, flops: 4.0 * values as f64 },
        config: OpsConfig {
            num_attention_heads: q_heads,
            num_key_value_heads: k_heads,
            head_dim,
            rotation: Rotation::new(1e6, head_dim),
            ..plain_config()
        },
        prepare: Box::new(move |ops, seed| Ok(Box::new(Normed::new(ops, seed, shape, bias)?))),
    }
}

struct Normed {
    n: usize,
    input: Vec<f32>,
    expected: Vec<f64>,
    head_dim: usize,
    qkv: Tensor,
    norm: QkNorm<DeviceBuffer<f32>>,
    bias: [Option<DeviceBuffer<f32>>; 2],
}

impl Normed {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape, bias: bool) -> Result<Self> {
        let [n, q_heads, k_heads, head_dim] = shape;
        let (name, heads) = (format!("qk_norm {shape:?}"), q_heads + 2 * k_heads);
        let input = random(seed, &name, n * heads * head_dim);
        let weights = ["q", "k"].map(|of| random(seed, &format!("{name}: {of}"), head_dim));
        let biases = [("q bias", q_heads), ("k bias", k_heads)]
            .map(|(of, heads)| random(seed, &format!("{name}: {of}"), heads * head_dim));
        let mut expected = Vec::new();
        for (i, head) in input.chunks(head_dim).enumerate() {
            let i = i % heads;
            let (part, first) = if i < q_heads { (0, i) } else { (1, i.saturating_sub(q_heads)) };
            if i >= q_heads + k_heads {
                expected.extend(head.iter().map(|&x| f64::from(x)));
                continue;
            }
            // The sum is rounded to f32 once, as it is stored.
            let added = |d: usize| if bias { head[d] + biases[part][first * head_dim + d] } else { head[d] };
            let squares: f64 = (0..head_dim).map(|d| f64::from(added(d)).powi(2)).sum();
            let scale = 1.0 / (squares / head_dim as f64 + f64::from(EPS)).sqrt();
            expected.extend((0..head_dim).map(|d| f64::from(added(d)) * scale * f64::from(weights[part][d])));
        }
        let [q, k] = &weights;
        let mut load = |values: &Vec<f32>| ops.load_vector(values);
        let norm = QkNorm { q: load(q)?, k: load(k)?, eps: EPS };
        let [q, k] = &biases;
        let bias = if bias { [Some(load(q)?), Some(load(k)?)] } else { [None, None] };
        Ok(Self { n, expected, head_dim, qkv: tensor(ops, n, heads * head_dim, &input)?, input, norm, bias })
    }
}

impl Instance for Normed {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.qkv, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.qk_norm(self.n, &mut self.qkv, &self.norm, self.bias.each_ref().map(Option::as_ref))
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // Half of the error of a sum of squares in which each lane adds `head_dim / 32` terms and five butterfly steps follow, and
        // six roundings of mean, root, quotient and products.
        let roundings = (self.head_dim as f64 / 32.0 + 5.0) / 2.0 + 6.0;
        findings.close("qkv", &self.qkv.to_host()?, &self.expected, |_, expected| {
            expected.abs() * roundings * unit(Dtype::F32) + smallest(Dtype::F32)
        });
        Ok(())
    }

    fn repeats(&self) -> bool {
        self.bias[0].is_none()
    }
}
