//! Normalisation by mean and variance.

use crate::cuda::{Activation, CudaOps, DeviceBuffer, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, parts};

pub const CASES: Cases = Cases { op: "layer_norm", checks, timings };

const EPS: f32 = 1e-5;

fn checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for n in [1, 19, 111] {
            cases.extend(COLUMNS.map(|cols| case(dtype, n, cols, n != 19)));
        }
    }
    cases
}

fn timings(workload: &Workload) -> Vec<Case> {
    workload.rows.iter().map(|&n| case(workload.dtype, n, workload.config.hidden_size, true)).collect()
}

fn case(dtype: Dtype, n: usize, cols: usize, bias: bool) -> Case {
    let values = n * cols;
    // Weight and bias are read once for all rows.
    let bytes = values * (4 + dtype.size()) + cols * 8;
    Case {
        dtype,
        shape: format!("[{n}, {cols}]{}", if bias { "" } else { " without bias" }),
        work: values,
        cost: Cost { bytes: bytes as f64, flops: 7.0 * values as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Norm::new(ops, seed, n, cols, bias)?))),
    }
}

struct Norm {
    n: usize,
    dtype: Dtype,
    input: Vec<f32>,
    /// For each value what it should be and what it may be off.
    expected: Vec<(f64, f64)>,
    x: Tensor,
    norm: parts::LayerNorm<DeviceBuffer<f32>>,
    out: Activation,
}

impl Norm {
    fn new(ops: &mut CudaOps, seed: u64, n: usize, cols: usize, bias: bool) -> Result<Self> {
        let name = format!("layer norm of [{n}, {cols}]");
        let input = rows(seed, &name, n, cols);
        let weight = random(seed, &format!("{name}: weight"), cols);
        let host_bias = bias.then(|| random(seed, &format!("{name}: bias"), cols));
        let of_row = |row: &[f32]| reference(ops.dtype(), row, &weight, host_bias.as_deref());
        Ok(Self {
            n,
            dtype: ops.dtype(),
            expected: input.chunks(cols).flat_map(of_row).collect(),
            x: tensor(ops, n, cols, &input)?,
            input,
            norm: parts::LayerNorm {
                weight: ops.load_vector(&weight)?,
                bias: host_bias.as_ref().map(|bias| ops.load_vector(bias)).transpose()?,
                eps: EPS,
            },
            out: poisoned_activation(ops, n, cols)?,
        })
    }
}

impl Instance for Norm {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.layer_norm(self.n, &self.x, &self.norm, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        let (values, guard) = found.split_at(self.expected.len());
        let (dtype, expected) = (self.dtype, &self.expected);
        findings.places("out", values.iter().copied().enumerate(), |i| {
            let (value, off) = expected[i];
            (value, off + value.abs() * unit(dtype) + smallest(dtype))
        });
        findings.guard_intact("out", guard);
        findings.same_bits("x, which is only read", &self.x.to_host()?, &self.input);
        Ok(())
    }
}

/// Every kind of row: ordinary, tiny (where eps counts), with a mean far from 0.
fn rows(seed: u64, name: &str, n: usize, cols: usize) -> Vec<f32> {
    let mut x = random(seed, name, n * cols);
    for (i, row) in x.chunks_mut(cols).enumerate() {
        let (scale, mean) = [(1.0, 0.0), (1e-3, 0.0), (30.0, 100.0)][i % 3];
        row.iter_mut().for_each(|x| *x = *x * scale + mean);
    }
    x
}

/// The norm of a row in f64, and what f32 may be off before the last rounding.
fn reference(dtype: Dtype, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let count = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
    let magnitude = x.iter().map(|&x| f64::from(x).abs()).sum::<f64>() / count;
    // Each thread adds `cols / 256` terms and ten butterfly steps follow: what the mean is off, in units of the values' magnitude,
    // and it shifts every value. The sum of squares is off by half as much, and six roundings follow it.
    let sum = (count / 256.0 + 12.0) * unit(Dtype::F32);
    let of = |(i, &x): (usize, &f32)| {
        let normed = (f64::from(x) - mean) * scale * f64::from(weight[i]);
        let shifted = (magnitude * sum + f64::from(x).abs() * unit(Dtype::F32)) * scale;
        let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
        let value = normed + bias;
        let value = if dtype == Dtype::F16 { value.clamp(-65504.0, 65504.0) } else { value };
        let last = (normed.abs() + bias.abs()) * unit(Dtype::F32);
        // Where all values are one, the difference from their mean is only rounding, and so is its square.
        let squares = (magnitude * sum * scale).powi(2);
        (value, shifted * f64::from(weight[i]).abs() + normed.abs() * (sum + squares) + last)
    };
    x.iter().enumerate().map(of).collect()
}
