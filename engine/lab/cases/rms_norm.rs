//! The norm.

use crate::cuda::{Activation, CudaOps, DeviceBuffer, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, parts};

pub const CASES: Cases = Cases { op: "rms_norm", checks, timings };

const EPS: f32 = 1e-6;

/// Rows of more than one group of 4 columns a thread: 3588 fills some of the last threads, 4096 all.
const LONG_COLUMNS: [usize; 2] = [3588, 4096];

fn checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for n in [1, 19, 111] {
            cases.extend(COLUMNS.map(|cols| case(dtype, n, cols)));
            cases.extend(LONG_COLUMNS.map(|cols| case(dtype, n, cols)));
        }
    }
    cases
}

fn timings(workload: &Workload) -> Vec<Case> {
    workload.rows.iter().map(|&n| case(workload.dtype, n, workload.config.hidden_size)).collect()
}

fn case(dtype: Dtype, n: usize, cols: usize) -> Case {
    let values = n * cols;
    // The weight is read once for all rows.
    let bytes = values * (4 + dtype.size()) + cols * 4;
    Case {
        dtype,
        shape: format!("[{n}, {cols}]"),
        work: values,
        cost: Cost { bytes: bytes as f64, flops: 4.0 * values as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Norm::new(ops, seed, n, cols)?))),
    }
}

struct Norm {
    n: usize,
    cols: usize,
    dtype: Dtype,
    input: Vec<f32>,
    expected: Vec<f64>,
    x: Tensor,
    norm: parts::RmsNorm<DeviceBuffer<f32>>,
    out: Activation,
}

impl Norm {
    fn new(ops: &mut CudaOps, seed: u64, n: usize, cols: usize) -> Result<Self> {
        let name = format!("norm of [{n}, {cols}]");
        let input = rows(seed, &name, n, cols);
        let weight = random(seed, &format!("{name}: weight"), cols);
        Ok(Self {
            n,
            cols,
            dtype: ops.dtype(),
            expected: reference(&input, &weight),
            x: tensor(ops, n, cols, &input)?,
            input,
            norm: parts::RmsNorm { weight: ops.load_vector(&weight)?, eps: EPS },
            out: poisoned_activation(ops, n, cols)?,
        })
    }
}

impl Instance for Norm {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.rms_norm(self.n, &self.x, &self.norm, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        findings.close("out", &found, &self.expected, tolerance(self.dtype, self.cols));
        findings.same_bits("x, which is only read", &self.x.to_host()?, &self.input);
        Ok(())
    }
}

/// Every kind of row: ordinary, tiny (where eps counts), large.
fn rows(seed: u64, name: &str, n: usize, cols: usize) -> Vec<f32> {
    let mut x = random(seed, name, n * cols);
    for (i, row) in x.chunks_mut(cols).enumerate() {
        let scale = [1.0, 1e-4, 300.0][i % 3];
        row.iter_mut().for_each(|x| *x *= scale);
    }
    x
}

/// The norm of each row in f64.
fn reference(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / (squares / row.len() as f64 + f64::from(EPS)).sqrt();
        row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

/// The last rounding, and before it: half of the error of a sum of squares in which each thread adds `cols / 256`
/// terms and ten butterfly steps follow, and six roundings of mean, root, quotient and products.
fn tolerance(dtype: Dtype, cols: usize) -> impl Fn(usize, f64) -> f64 {
    let sum = (cols as f64 / 256.0 + 10.0) / 2.0 + 6.0;
    move |_, expected| expected.abs() * (unit(dtype) + sum * unit(Dtype::F32)) + smallest(dtype)
}
