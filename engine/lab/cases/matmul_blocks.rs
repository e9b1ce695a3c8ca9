//! Products with matrices in blocks.

use super::blocks::{formats, matrix, scale_of};
use super::matmul::{SCALE, places};
use crate::cuda::{Activation, CudaOps, Tensor, Weight, unit_cols};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "matmul_blocks", checks, timings };

/// `[n, rows, blocks of a row]`.
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
    const SHAPES: [(Shape, bool); 5] = [
        ([1, 1, 1], true),
        ([1, 19, 3], false),
        ([5, 37, 2], true),
        ([19, 9, 3], false),
        ([9, 111, 1], false),
    ];
    // Large blocks are much work for the emulator.
    const LARGE: [(Shape, bool); 3] = [([1, 1, 1], true), ([1, 9, 3], false), ([5, 10, 2], true)];
    // Repacked: units of a row; one, several for a warp, more tiles than warps, columns that are sliced.
    const UNITS: [(Shape, bool); 7] = [
        ([1, 16, 1], true),
        ([2, 48, 3], false),
        ([8, 16, 21], true),
        ([1, 304, 1], false),
        ([11, 16, 4], true),
        // Decoded in registers: a group of tiles and one tile more, of which each block has a part.
        ([18, 272, 3], true),
        ([70, 32, 1], false),
    ];
    let of = |format: MatrixFormat| {
        let shapes: &[_] = if format.block_values() > 64 { &LARGE } else { &SHAPES };
        let of = move |dtype| {
            let in_blocks = move |&([n, rows, blocks], add): &(Shape, bool)| {
                case(format, dtype, [n, rows, blocks * format.block_values()], add)
            };
            let in_units = unit_cols(format).into_iter().flat_map(move |cols| {
                UNITS.map(|([n, rows, units], add)| case(format, dtype, [n, rows, units * cols], add))
            });
            shapes.iter().map(in_blocks).chain(in_units)
        };
        Dtype::ALL.into_iter().flat_map(of)
    };
    formats().flat_map(of).collect()
}

/// The projections of a layer.
fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let shapes = [
        [2 * config.intermediate_size, config.hidden_size],
        [config.hidden_size, config.intermediate_size],
        [config.vocab_size, config.hidden_size],
    ];
    let of = |format: MatrixFormat| {
        let shapes = shapes.into_iter().filter(move |shape| format.row_bytes(shape[1]).is_some());
        shapes.flat_map(move |[rows, cols]| {
            workload.rows.iter().map(move |&n| case(format, workload.dtype, [n, rows, cols], false))
        })
    };
    formats().flat_map(of).collect()
}

fn case(format: MatrixFormat, dtype: Dtype, shape: Shape, add: bool) -> Case {
    let [n, rows, cols] = shape;
    let added = if add { ", added" } else { "" };
    let bytes = rows * format.row_bytes(cols).unwrap_or(0) + n * (cols * dtype.size() + rows * 4);
    Case {
        dtype,
        shape: format!("x [{n}, {cols}], weight {format} [{rows}, {cols}]{added}"),
        work: n * rows * cols / 4,
        cost: Cost { bytes: bytes as f64, flops: 2.0 * (n * rows) as f64 * cols as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Matmul::new(ops, format, seed, shape, add)?))),
    }
}

struct Matmul {
    shape: Shape,
    host_x: Vec<f32>,
    /// Indices of the results that are compared, ascending.
    places: Vec<usize>,
    /// For each place the sum in f64 and its tolerance.
    expected: Vec<(f64, f64)>,
    x: Activation,
    weight: Weight,
    out: Tensor,
    /// What is in `out` before, where products are added.
    before: Option<Vec<f32>>,
    is_repacked: bool,
}

impl Matmul {
    fn new(ops: &mut CudaOps, format: MatrixFormat, seed: u64, shape: Shape, add: bool) -> Result<Self> {
        let [n, rows, cols] = shape;
        let name = format!("matmul_blocks {shape:?}");
        let host_x = rounded(ops.dtype(), random(seed, &name, n * cols));
        let (mut weight, values) =
            matrix(ops, format, &format!("{name}: weight"), seed, [rows, cols], scale_of(format))?;
        weight.set_scale(SCALE);
        let before = add.then(|| random(seed, &format!("{name}: before"), n * rows));
        let is_repacked = ops.device().has_bulk_copies()
            && ops.dtype() == Dtype::F16
            && rows % 16 == 0
            && unit_cols(format).is_some_and(|unit| cols % unit == 0);
        // The library gets weights that are rounded to the format of x; so are, where they are decoded in registers, scales and minima, which
        // may be larger.
        let rounding = if is_repacked && n > 8 { 4.0 } else { 1.0 } * unit(ops.dtype());
        let sums = ((cols as f64).sqrt() + 8.0) * 2.0 * unit(Dtype::F32);
        let places = places(seed, n * rows, cols);
        let expected = places.iter().map(|place| {
            let (x, w) = (&host_x[place / rows * cols..][..cols], &values[place % rows * cols..][..cols]);
            let before = before.as_ref().map_or(0.0, |before| f64::from(before[*place]));
            let terms = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w * SCALE));
            let (sum, magnitude) = terms
                .fold((before, before.abs()), |(sum, magnitude), term| (sum + term, magnitude + term.abs()));
            (sum, magnitude * (sums + rounding))
        });
        Ok(Self {
            shape,
            expected: expected.collect(),
            places,
            x: activation(ops, n, cols, &host_x)?,
            host_x,
            weight,
            out: poisoned(ops, n, rows)?,
            before,
            is_repacked,
        })
    }

    fn run(&mut self, ops: &mut CudaOps, n: usize) -> Result<()> {
        match self.before {
            Some(_) => ops.matmul_accumulate(n, &self.x, &self.weight, &mut self.out),
            None => ops.matmul(n, &self.x, &self.weight, &mut self.out),
        }
    }
}

impl Instance for Matmul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.x, &self.host_x)?;
        fill_tensor(&mut self.out, self.before.as_deref().unwrap_or_default())
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.run(ops, self.shape[0])
    }

    fn compare(&mut self, ops: &mut CudaOps, variant: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, cols] = self.shape;
        let found = self.out.to_host()?;
        let values = self.places.iter().map(|&place| (place, found[place]));
        findings.places("out", values, |place| {
            self.expected[self.places.binary_search(&place).expect("one of the places")]
        });
        findings.guard_intact("out", &found[n * rows..]);
        // Rows have the same bits alone and in a batch, but from the library.
        let alone = n > 1 && variant != "cublas" && self.before.is_none();
        for row in (0..n).filter(|_| alone) {
            fill_activation(&mut self.x, &self.host_x[row * cols..][..cols])?;
            self.run(ops, 1)?;
            let alone = self.out.to_host()?;
            findings.same_alone(&alone, &found, row, rows);
        }
        Ok(())
    }

    fn default_variant(&self) -> Option<&'static str> {
        match (self.is_repacked, self.shape[0]) {
            (false, 0..=8) if self.x.dtype() == Dtype::F16 => Some("mma"),
            (false, 0..=8) => Some("eights"),
            (true, 0..=8) => Some("units"),
            (true, 9..=256) => Some("wgmma"),
            _ => None,
        }
    }
}
