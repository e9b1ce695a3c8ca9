//! Rows that are scaled by a gate of their own.

use crate::cuda::{Activation, CudaOps, DeviceBuffer, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "gate_rows", checks, timings };

/// `[n, hidden_size, cols]`
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 5] = [[1, 1, 1], [1, 64, 111], [19, 111, 64], [3, 989, 300], [5, 256, 1408]];
    [Dtype::F32, Dtype::F16].into_iter().flat_map(|dtype| SHAPES.map(|shape| case(dtype, shape))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let dtype = precise_dtype(workload.dtype);
    let of = |&n: &usize| case(dtype, [n, config.hidden_size, config.intermediate_size]);
    workload.rows.iter().map(of).collect()
}

fn case(dtype: Dtype, shape: Shape) -> Case {
    let [n, hidden_size, cols] = shape;
    let values = n * (hidden_size + 2 * cols);
    Case {
        dtype,
        shape: format!("[{n}, {cols}] by [{n}, {hidden_size}]"),
        work: values,
        cost: Cost {
            bytes: (values * dtype.size() + 4 * hidden_size) as f64,
            flops: (n * (2 * hidden_size + cols)) as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(GateRows::new(ops, seed, shape)?))),
    }
}

struct GateRows {
    n: usize,
    dtype: Dtype,
    input: Vec<f32>,
    /// For each value what it should be and what it may be off before the last rounding.
    expected: Vec<(f64, f64)>,
    x: Activation,
    gate: DeviceBuffer<f32>,
    rows: Activation,
}

impl GateRows {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape) -> Result<Self> {
        let [n, hidden_size, cols] = shape;
        let (name, dtype) = (format!("gate_rows {shape:?}"), ops.dtype());
        let x = rounded(dtype, random(seed, &name, n * hidden_size));
        let input = rounded(dtype, random(seed, &format!("{name}: rows"), n * cols));
        let scale = 2.0 / (hidden_size as f32).sqrt();
        let gate: Vec<f32> =
            random(seed, &format!("{name}: gate"), hidden_size).iter().map(|value| value * scale).collect();
        let row = |(x, row): (&[f32], &[f32])| {
            let terms = || x.iter().zip(&gate).map(|(&x, &g)| f64::from(x) * f64::from(g));
            let (sum, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let share = 1.0 / (1.0 + (-sum).exp());
            // Each thread adds `hidden_size / 256` terms and ten butterfly steps follow; eight roundings of exponential, quotient and
            // products.
            let off =
                magnitude * (hidden_size as f64 / 256.0 + 10.0) * unit(Dtype::F32) + 8.0 * unit(Dtype::F32);
            let of = |&value: &f32| (f64::from(value) * share, f64::from(value).abs() * share * off);
            row.iter().map(of).collect::<Vec<_>>()
        };
        Ok(Self {
            n,
            dtype,
            expected: x.chunks(hidden_size).zip(input.chunks(cols)).flat_map(row).collect(),
            x: activation(ops, n, hidden_size, &x)?,
            gate: ops.load_vector(&gate)?,
            rows: activation(ops, n, cols, &input)?,
            input,
        })
    }
}

impl Instance for GateRows {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.rows, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.gate_rows(self.n, &self.x, &self.gate, &mut self.rows)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.rows.to_host()?;
        let (values, guard) = found.split_at(self.expected.len());
        let (dtype, expected) = (self.dtype, &self.expected);
        findings.places("rows", values.iter().copied().enumerate(), |i| {
            let (value, off) = expected[i];
            (value, off + value.abs() * unit(dtype) + smallest(dtype))
        });
        findings.guard_intact("rows", guard);
        Ok(())
    }
}
