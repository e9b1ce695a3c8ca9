//! Norms of the rows of a matrix.

use crate::cuda::{CudaOps, DeviceBuffer, Weight, unit_cols};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::testing::blocks;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "row_norms", checks, timings };

/// Values behind the results, which stay NaN.
const GUARD: usize = 5;

fn checks() -> Vec<Case> {
    let of = |&format: &MatrixFormat| {
        let block = format.block_values();
        // Large blocks are much work for the emulator.
        let shapes: &[[usize; 2]] = &[[1, 1], [19, 3], [9, 64], [111, 11], [3, 989]];
        let shapes = &shapes[..if block > 32 { 2 } else { shapes.len() }];
        // Repacked.
        let units = unit_cols(format).map(|cols| case(format, 32, 3 * cols));
        shapes.iter().map(move |&[rows, blocks]| case(format, rows, blocks * block)).chain(units)
    };
    MatrixFormat::ALL.iter().flat_map(of).collect()
}

/// A matrix of the MLP, in all formats.
fn timings(workload: &Workload) -> Vec<Case> {
    let (rows, cols) = (workload.config.intermediate_size, workload.config.hidden_size);
    let fits = |format: &&MatrixFormat| {
        format.row_bytes(cols).is_some() && format.float().is_none_or(|dtype| dtype == workload.dtype)
    };
    MatrixFormat::ALL.iter().filter(fits).map(|&format| case(format, rows, cols)).collect()
}

fn case(format: MatrixFormat, rows: usize, cols: usize) -> Case {
    let bytes = rows * format.row_bytes(cols).unwrap_or(0) + 4 * (rows + cols);
    Case {
        dtype: format.float().unwrap_or(Dtype::F16),
        shape: format!("{format} [{rows}, {cols}]"),
        work: rows * cols,
        cost: Cost { bytes: bytes as f64, flops: 3.0 * (rows * cols) as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(RowNorms::new(ops, seed, format, rows, cols)?))),
    }
}

struct RowNorms {
    cols: usize,
    expected: Vec<f64>,
    weight: Weight,
    scale: DeviceBuffer<f32>,
    out: DeviceBuffer<f32>,
}

impl RowNorms {
    fn new(ops: &mut CudaOps, seed: u64, format: MatrixFormat, rows: usize, cols: usize) -> Result<Self> {
        let name = format!("row norms of [{rows}, {cols}]");
        let data = blocks(format, seed, &name, &random(seed, &name, rows * cols));
        let mut values = vec![0.0; rows * cols];
        format.decode(&data, &mut values);
        let scale = random(seed, &format!("{name}: scale"), cols);
        let norm = |row: &[f32]| {
            let squares = row.iter().zip(&scale).map(|(&w, &s)| (f64::from(w) * f64::from(s)).powi(2));
            squares.sum::<f64>().sqrt()
        };
        Ok(Self {
            cols,
            expected: values.chunks(cols).map(norm).collect(),
            weight: block_weight(ops, format, rows, cols, 1.0, data)?,
            scale: DeviceBuffer::from_slice(ops.device(), &scale)?,
            out: DeviceBuffer::zeroed(ops.device(), rows + GUARD)?,
        })
    }
}

impl Instance for RowNorms {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        self.out.write(0, &vec![f32::NAN; self.expected.len() + GUARD])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.row_norms(&self.weight, &self.scale, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.read(0, self.out.len())?;
        // A sum of squares, each rounded: all terms are positive, so that its relative error grows with the columns of a lane; half of it
        // is left in the root.
        let relative = (self.cols.div_ceil(32) as f64 + 8.0) * unit(Dtype::F32);
        findings.close("out", &found, &self.expected, |_, expected| expected * relative);
        Ok(())
    }
}
