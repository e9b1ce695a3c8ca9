//! The norm of heads with a gate, behind the gated delta rule.

use crate::cuda::{Activation, CudaOps, DeviceBuffer, Tensor, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::ops::parts::RmsNorm;

pub const CASES: Cases = Cases { op: "gated_norm", checks, timings };

const EPS: f32 = 1e-6;
/// Columns of the tensor with the gates that stand before and behind them.
const AROUND: [usize; 2] = [12, 8];
/// What results are multiplied with.
const SCALE: f32 = 0.5;

/// `[n, heads, head_dim]`
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 5] = [[1, 1, 1], [1, 16, 128], [19, 3, 32], [5, 4, 111], [111, 2, 128]];
    [Dtype::F32, Dtype::F16].into_iter().flat_map(|dtype| SHAPES.map(|shape| case(dtype, shape))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let Some(sizes) = workload.config.linear else { return Vec::new() };
    let dtype = precise_dtype(workload.dtype);
    let shape = |&n: &usize| [n, sizes.linear_num_value_heads, sizes.linear_value_head_dim];
    workload.rows.iter().map(|n| case(dtype, shape(n))).collect()
}

fn case(dtype: Dtype, shape: Shape) -> Case {
    let [n, heads, head_dim] = shape;
    let values = n * heads * head_dim;
    Case {
        dtype,
        shape: format!("{n} rows, {heads} heads of {head_dim}"),
        work: values,
        cost: Cost { bytes: (values * (8 + dtype.size())) as f64, flops: 8.0 * values as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(GatedNorm::new(ops, seed, dtype, shape)?))),
    }
}

struct GatedNorm {
    n: usize,
    dtype: Dtype,
    head_dim: usize,
    expected: Vec<f64>,
    x: Tensor,
    norm: RmsNorm<DeviceBuffer<f32>>,
    gate: Tensor,
    out: Activation,
}

impl GatedNorm {
    fn new(ops: &mut CudaOps, seed: u64, dtype: Dtype, shape: Shape) -> Result<Self> {
        let [n, heads, head_dim] = shape;
        let (name, cols) = (format!("gated_norm {shape:?}"), heads * head_dim);
        let [before, behind] = AROUND;
        let gate_cols = before + cols + behind;
        let x = random(seed, &name, n * cols);
        let weight = random(seed, &format!("{name}: weight"), head_dim);
        let gate: Vec<f32> =
            random(seed, &format!("{name}: gate"), n * gate_cols).into_iter().map(|g| 3.0 * g).collect();
        let mut expected = Vec::with_capacity(n * cols);
        for (i, head) in x.chunks(head_dim).enumerate() {
            let squares: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
            let scale = 1.0 / (squares / head_dim as f64 + f64::from(EPS)).sqrt();
            let gates = &gate[i / heads * gate_cols + before + i % heads * head_dim..];
            expected.extend((0..head_dim).map(|d| {
                let g = f64::from(gates[d]);
                f64::from(head[d]) * scale * f64::from(weight[d]) * g / (1.0 + (-g).exp()) * f64::from(SCALE)
            }));
        }
        Ok(Self {
            n,
            dtype,
            head_dim,
            expected,
            x: tensor(ops, n, cols, &x)?,
            norm: RmsNorm { weight: ops.load_vector(&weight)?, eps: EPS },
            gate: tensor(ops, n, gate_cols, &gate)?,
            out: poisoned_activation(ops, n, cols)?,
        })
    }
}

impl Instance for GatedNorm {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let Self { n, x, norm, gate, out, .. } = self;
        ops.scaled_gated_norm(*n, x, norm, gate, AROUND[0], SCALE, out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let dtype = self.dtype;
        // Half of the error of a sum of squares in which each lane adds `head_dim / 32` terms and five butterfly steps follow, and
        // twelve roundings of mean, root, exponential, quotients and products.
        let roundings = (self.head_dim as f64 / 32.0 + 5.0) / 2.0 + 12.0;
        findings.close("out", &self.out.to_host()?, &self.expected, |_, expected| {
            expected.abs() * (roundings * unit(Dtype::F32) + unit(dtype)) + smallest(dtype)
        });
        Ok(())
    }
}
