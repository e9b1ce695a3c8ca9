//! Matrices in blocks, repacked: what was repacked has the same values.

use super::fused::{matrix_of, require_units, timed_formats, unit_formats};
use crate::cuda::{Activation, CudaOps, DeviceBuffer, Weight};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "repack", checks, timings };

/// Rows, and units of a row.
fn checks() -> Vec<Case> {
    let of = |(format, cols)| [[16, 1], [48, 3]].map(|[rows, units]| case(format, [rows, units * cols]));
    unit_formats().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let shape = [workload.config.intermediate_size, workload.config.hidden_size];
    let repacked = timed_formats(workload, shape[1]).filter(|format| format.float().is_none());
    repacked.map(|format| case(format, shape)).collect()
}

fn case(format: MatrixFormat, [rows, cols]: [usize; 2]) -> Case {
    Case {
        dtype: Dtype::F16,
        shape: format!("{format} [{rows}, {cols}]"),
        work: rows * cols,
        cost: Cost { bytes: (2 * rows * format.row_bytes(cols).unwrap_or(0)) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            require_units(ops, CASES.op, format)?;
            let (matrix, expected) =
                matrix_of(format, seed, "repack", [rows, cols], &random(seed, "repack", rows * cols));
            let blocks = DeviceBuffer::from_slice(ops.device(), &matrix.data)?;
            // Of other values, so that it shows if nothing is repacked.
            let (other, _) =
                matrix_of(format, seed, "other", [rows, cols], &random(seed, "other", rows * cols));
            let (weight, out) = (ops.load_matrix(&other)?, ops.new_product(rows, cols)?);
            Ok(Box::new(Repack { weight, blocks, expected, out }))
        }),
    }
}

struct Repack {
    weight: Weight,
    blocks: DeviceBuffer<u8>,
    expected: Vec<f32>,
    /// f32
    out: Activation,
}

impl Instance for Repack {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        Ok(())
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.repack(&self.blocks, &mut self.weight)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        ops.decode(&self.weight, &mut self.out)?;
        findings.same_bits("values", &self.out.to_host()?, &self.expected);
        Ok(())
    }
}
