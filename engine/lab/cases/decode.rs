//! Decoding matrices in blocks.

use super::blocks::{formats, matrix};
use crate::cuda::{Activation, CudaOps, Weight, unit_cols};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "decode", checks, timings };

/// `[rows, cols]`, rows of one block and of many.
fn checks() -> Vec<Case> {
    let of = |format: MatrixFormat| {
        let shapes = [[1, 1], [19, 3], [3, 11]].map(|[rows, blocks]| [rows, blocks * format.block_values()]);
        // Repacked.
        let units = unit_cols(format).map(|cols| [[16, cols], [48, 3 * cols]]);
        let shapes: Vec<_> = shapes.into_iter().chain(units.into_iter().flatten()).collect();
        Dtype::ALL
            .into_iter()
            .flat_map(move |dtype| shapes.clone().into_iter().map(move |shape| case(format, dtype, shape)))
    };
    formats().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let shape = [workload.config.intermediate_size, workload.config.hidden_size];
    formats()
        .filter(|format| format.row_bytes(shape[1]).is_some())
        .map(|format| case(format, workload.dtype, shape))
        .collect()
}

fn case(format: MatrixFormat, dtype: Dtype, shape: [usize; 2]) -> Case {
    let [rows, cols] = shape;
    let bytes = format.row_bytes(cols).unwrap_or(0) + cols * dtype.size();
    Case {
        dtype,
        shape: format!("{format} [{rows}, {cols}]"),
        work: rows * cols,
        cost: Cost { bytes: (rows * bytes) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let (weight, values) = matrix(ops, format, "decode", seed, [rows, cols], 1.0)?;
            let out = poisoned_activation(ops, rows, cols)?;
            Ok(Box::new(Decode { weight, expected: rounded(dtype, values), out }))
        }),
    }
}

struct Decode {
    weight: Weight,
    expected: Vec<f32>,
    out: Activation,
}

impl Instance for Decode {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.decode(&self.weight, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        findings.same_bits("out", &found[..self.expected.len()], &self.expected);
        findings.guard_intact("out", &found[self.expected.len()..]);
        Ok(())
    }
}
