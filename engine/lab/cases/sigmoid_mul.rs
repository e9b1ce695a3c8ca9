//! The gate of attention.

use crate::cuda::{Activation, CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::hybrid::HybridOps;

pub const CASES: Cases = Cases { op: "sigmoid_mul", checks, timings };

fn checks() -> Vec<Case> {
    let shapes = [1, 19, 111].into_iter().flat_map(|n| COLUMNS.map(|cols| (n, cols)));
    shapes.flat_map(|(n, cols)| Dtype::ALL.map(|dtype| case(dtype, n, cols))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let cols = workload.config.q_size();
    workload.rows.iter().map(|&n| case(workload.dtype, n, cols)).collect()
}

fn case(dtype: Dtype, n: usize, cols: usize) -> Case {
    let values = (n * cols) as f64;
    Case {
        dtype,
        shape: format!("[{n}, {cols}]"),
        work: n * cols,
        // An exponential and a quotient count as one each.
        cost: Cost { bytes: values * (4 + 2 * dtype.size()) as f64, flops: 3.0 * values },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(SigmoidMul::new(ops, seed, dtype, n, cols)?))),
    }
}

struct SigmoidMul {
    n: usize,
    dtype: Dtype,
    input: Vec<f32>,
    expected: Vec<f64>,
    gate: Tensor,
    rows: Activation,
}

impl SigmoidMul {
    fn new(ops: &mut CudaOps, seed: u64, dtype: Dtype, n: usize, cols: usize) -> Result<Self> {
        let name = format!("sigmoid_mul [{n}, {cols}]");
        // Some far out, where the sigmoid is 0 or 1.
        let gate: Vec<f32> =
            random(seed, &format!("{name}: gate"), n * cols).into_iter().map(|g| g * g * g * 8.0).collect();
        let input = rounded(dtype, random(seed, &name, n * cols));
        let of = |(x, g): (&f32, &f32)| f64::from(*x) / (1.0 + (-f64::from(*g)).exp());
        Ok(Self {
            n,
            dtype,
            expected: input.iter().zip(&gate).map(of).collect(),
            gate: tensor(ops, n, cols, &gate)?,
            rows: activation(ops, n, cols, &input)?,
            input,
        })
    }
}

impl Instance for SigmoidMul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.rows, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.sigmoid_mul(self.n, &self.gate, &mut self.rows)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let dtype = self.dtype;
        // Five roundings of exponential, sum and quotient, then the last one. Where the exponential overflows, zero stands for what is
        // smaller than any normal number.
        findings.close("rows", &self.rows.to_host()?, &self.expected, |_, expected| {
            expected.abs() * (5.0 * unit(Dtype::F32) + unit(dtype)) + smallest(dtype).max(2f64.powi(-124))
        });
        Ok(())
    }
}
