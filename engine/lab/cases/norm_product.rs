//! A norm and products behind it in one kernel: what `norm_gate_up` and `norm_matmul` have in common.

use super::fused::{
    DTYPES, EPS, few_rows, matrix_of, normed, products, require_units, shapes, timed_formats, unit_formats,
};
use super::matmul::places;
use crate::cuda::{Activation, CudaOps, Tensor, Weight, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::ops::parts::RmsNorm;
use qernel_core::formats::MatrixFormat;
use rayon::prelude::*;

/// What gate and up are multiplied with.
const SCALES: [f32; 2] = [2.0, 0.5];

/// What stands behind a norm.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    GateUp,
    Head,
}

/// `[n, rows, cols]`.
type Shape = [usize; 3];

pub(super) fn checks(kind: Kind) -> Vec<Case> {
    const SHAPES: [Shape; 12] = [
        [1, 1, 8],
        [1, 19, 64],
        [2, 111, 104],
        [3, 37, 896],
        [4, 19, 1000],
        [1, 16, 3584],
        [1, 4864, 896],
        [4, 4864, 896],
        [5, 37, 896],
        [6, 19, 1000],
        [8, 1, 400],
        [8, 4864, 896],
    ];
    // Rows, and units of a row: one, several for a warp, more tiles than warps.
    const UNITS: [Shape; 6] = [[1, 16, 1], [2, 48, 3], [4, 16, 7], [8, 32, 4], [5, 16, 17], [1, 304, 1]];
    let of =
        |dtype: Dtype| shapes(&SHAPES, dtype).map(move |shape| case(kind, [dtype.into(); 2], shape, 1.0));
    let mut cases: Vec<Case> = DTYPES.into_iter().flat_map(of).collect();
    if kind == Kind::GateUp {
        // Most results are beyond the range of f16.
        cases.extend(DTYPES.map(|dtype| case(kind, [dtype.into(); 2], [2, 111, 104], 1000.0)));
    }
    cases.extend(unit_formats().flat_map(|(format, cols)| {
        UNITS.map(|[n, rows, units]| case(kind, [format; 2], [n, rows, units * cols], 1.0))
    }));
    if kind == Kind::Head {
        // Rows of two formats, as those of Q, K and V.
        for of in [MatrixFormat::Q4_K, MatrixFormat::Q5_K] {
            let shapes = [[1, 48, 1], [1, 1024, 3], [3, 96, 7], [8, 160, 4]];
            cases.extend(
                shapes.map(|[n, rows, units]| {
                    case(kind, [of, MatrixFormat::Q6_K], [n, rows, 256 * units], 1.0)
                }),
            );
        }
    }
    cases
}

/// How many of `rows` rows have the second of two formats.
fn rows_of_last([format, last]: [MatrixFormat; 2], rows: usize) -> usize {
    if format == last { 0 } else { rows / 3 / 16 * 16 }
}

pub(super) fn timings(kind: Kind, workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let rows = if kind == Kind::Head { config.vocab_size } else { config.intermediate_size };
    let of =
        |format| few_rows(workload).map(move |n| case(kind, [format; 2], [n, rows, config.hidden_size], 1.0));
    timed_formats(workload, config.hidden_size).flat_map(of).collect()
}

/// `scale` is that of the norm's weight; the last [`rows_of_last`] are of the second format.
fn case(kind: Kind, formats: [MatrixFormat; 2], shape: Shape, scale: f32) -> Case {
    let ([n, rows, cols], [format, last]) = (shape, formats);
    let dtype = format.float().unwrap_or(Dtype::F16);
    let mut name = if format.float().is_some() { String::new() } else { format!("{format} ") };
    if format != last {
        name = format!("{format} and {last} ");
    }
    let large = if scale > 1.0 { ", large" } else { "" };
    let matrices = if kind == Kind::GateUp { 2 } else { 1 };
    let out_size = if kind == Kind::GateUp { precise_dtype(dtype).size() } else { 4 };
    Case {
        dtype,
        shape: format!("x [{n}, {cols}], weight {name}[{rows}, {cols}]{large}"),
        work: matrices * n * rows * cols / 8,
        cost: Cost {
            bytes: (matrices * rows * format.row_bytes(cols).unwrap_or(0) + n * (4 * cols + rows * out_size))
                as f64,
            flops: 2.0 * (matrices * n * rows) as f64 * cols as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            require_units(ops, if kind == Kind::GateUp { "norm_gate_up" } else { "norm_matmul" }, format)?;
            Ok(Box::new(Normed::new(ops, seed, kind, formats, shape, scale)?))
        }),
    }
}

/// `norm_gate_up` or `norm_matmul`.
struct Normed {
    kind: Kind,
    shape: Shape,
    host_x: Vec<f32>,
    /// Indices of the results that are compared, ascending.
    places: Vec<usize>,
    /// For each place the result in f64, and its tolerance but for the last rounding.
    expected: Vec<(f64, f64)>,
    x: Tensor,
    norm: RmsNorm<crate::cuda::DeviceBuffer<f32>>,
    /// One, or gate and up.
    weights: Vec<Weight>,
    out: Tensor,
    gated: Activation,
}

impl Normed {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        kind: Kind,
        formats: [MatrixFormat; 2],
        shape: Shape,
        scale: f32,
    ) -> Result<Self> {
        let ([n, rows, cols], [format, last]) = (shape, formats);
        let others = rows - rows_of_last(formats, rows);
        let name = format!("fused {shape:?}");
        let host_x = random(seed, &name, n * cols);
        let host_norm: Vec<f32> =
            random(seed, &format!("{name}: norm"), cols).iter().map(|w| w * scale).collect();
        let gated = ops.new_precise_activation(n + GUARD_ROWS, rows)?;
        let largest = if gated.dtype() == Dtype::F16 { 65504.0 } else { f64::INFINITY };
        let matrix = |(what, format, rows): (&str, MatrixFormat, usize)| {
            let name = format!("{name}: {what}");
            let values: Vec<f32> = random(seed, &name, rows * cols).iter().map(|w| w / 8.0).collect();
            matrix_of(format, seed, &name, [rows, cols], &values)
        };
        let whats = match kind {
            Kind::GateUp => vec![("gate", format, rows), ("up", format, rows)],
            Kind::Head if others == rows => vec![("head", format, rows)],
            Kind::Head => vec![("head", format, others), ("last", last, rows - others)],
        };
        let (matrices, mut hosts): (Vec<_>, Vec<_>) = whats.into_iter().map(matrix).unzip();
        if kind == Kind::Head {
            hosts = vec![hosts.concat()];
        }
        let places = places(seed, n * rows, cols);
        let rows_of_x: Vec<Vec<f64>> = host_x.chunks(cols).map(|x| normed(x, &host_norm)).collect();
        let expected = places
            .par_iter()
            .map(|&place| {
                let at = |host: &[f32], scale: f32| {
                    let scale = if kind == Kind::Head { 1.0 } else { f64::from(scale) };
                    let row = place % rows;
                    let format = if row < others { format } else { last };
                    let row = &host[row * cols..][..cols];
                    let (sum, tolerance) = products(&rows_of_x[place / rows], row, format)[0];
                    (sum * scale, tolerance * scale)
                };
                let (sum, tolerance) = at(&hosts[0], SCALES[0]);
                let Some(up) = hosts.get(1) else { return (sum, tolerance) };
                let (up, up_tolerance) = at(up, SCALES[1]);
                let silu = sum / (1.0 + (-sum).exp());
                // The derivative of SiLU is below 1.1; its exponential and quotient cost 2^-20.
                let error = 1.1 * tolerance * (up.abs() + up_tolerance) + silu.abs() * up_tolerance;
                ((silu * up).clamp(-largest, largest), error + (silu * up).abs() * 2f64.powi(-20))
            })
            .collect();
        let mut weights = match &matrices[..] {
            [head] => vec![ops.load_matrix(head)?],
            parts if kind == Kind::Head => vec![ops.load_stacked(parts, 8)?.whole],
            gate_up => ops.load_stacked(gate_up, rows)?.matrices,
        };
        if kind == Kind::GateUp {
            weights.iter_mut().zip(SCALES).for_each(|(weight, scale)| weight.set_scale(scale));
        }
        Ok(Self {
            kind,
            shape,
            places,
            expected,
            x: tensor(ops, n, cols, &host_x)?,
            host_x,
            norm: RmsNorm { weight: ops.load_vector(&host_norm)?, eps: EPS },
            weights,
            out: poisoned(ops, n, rows)?,
            gated,
        })
    }

    fn run(&mut self, ops: &mut CudaOps, n: usize) -> Result<()> {
        let Self { x, norm, weights, out, gated, .. } = self;
        match self.kind {
            Kind::Head => ops.fused_norm_matmul(n, x, norm, &weights[0], out),
            Kind::GateUp => ops.fused_norm_gate_up(n, x, norm, [&weights[0], &weights[1]], gated),
        }
    }

    fn found(&self) -> Result<Vec<f32>> {
        if self.kind == Kind::Head { self.out.to_host() } else { self.gated.to_host() }
    }
}

impl Instance for Normed {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.host_x)?;
        fill_tensor(&mut self.out, &[])?;
        fill_activation(&mut self.gated, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.run(ops, self.shape[0])
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, cols] = self.shape;
        let found = self.found()?;
        let dtype = if self.kind == Kind::Head { Dtype::F32 } else { self.gated.dtype() };
        let values = self.places.iter().map(|&place| (place, found[place]));
        findings.places("out", values, |place| {
            let (expected, tolerance) =
                self.expected[self.places.binary_search(&place).expect("one of them")];
            (expected, tolerance + expected.abs() * unit(dtype) + smallest(dtype))
        });
        findings.guard_intact("out", &found[n * rows..]);
        // Rows have the same bits alone and in a batch.
        for row in (0..n).filter(|_| n > 1) {
            self.reset(ops)?;
            let alone = self.host_x[row * cols..][..cols].to_vec();
            fill_tensor(&mut self.x, &alone)?;
            self.run(ops, 1)?;
            findings.same_alone(&self.found()?, &found, row, rows);
        }
        Ok(())
    }
}
