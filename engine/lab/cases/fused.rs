//! The fused operations of a decode step.

use super::matmul::{SCALE, places};
use crate::cuda::{
    Activation, CudaOps, Tensor, Weight, fused_max_rows, ineligible, precise_dtype, unit_cols,
};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::ops::parts::RmsNorm;
use crate::testing::blocks;
use crate::weights::Matrix;
use qernel_core::formats::MatrixFormat;
use rayon::prelude::*;

pub const MATMUL_ADD: Cases =
    Cases { op: "matmul_add", checks: matmul_add_checks, timings: matmul_add_timings };
pub const NORM_GATE_UP: Cases =
    Cases { op: "norm_gate_up", checks: || checks(Kind::GateUp), timings: |w| timings(Kind::GateUp, w) };
pub const NORM_MATMUL: Cases =
    Cases { op: "norm_matmul", checks: || checks(Kind::Head), timings: |w| timings(Kind::Head, w) };

/// Of weights: there are no kernels of f32.
pub(super) const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::Bf16];
pub(super) const EPS: f32 = 1e-6;

/// What a product of `cols` terms may be off, of the sum of its terms' magnitudes: as for `matmul`, and sixteen roundings
/// of a norm before it.
pub(super) fn relative(cols: usize) -> f64 {
    ((cols as f64).sqrt() + 24.0) * 2.0 * unit(Dtype::F32)
}

/// A row times the rows of a matrix, in f64: sums, and what they may be off where weights have this format.
pub(super) fn products(x: &[f64], weight: &[f32], format: MatrixFormat) -> Vec<(f64, f64)> {
    // What is multiplied with blocks has 16 bits of the largest value near it.
    let step = match format.float() {
        Some(_) => 0.0,
        None => x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs())) / 65024.0,
    };
    let row = |w: &[f32]| {
        let (mut sum, mut magnitude, mut weights) = (0.0, 0.0, 0.0);
        for (&x, &w) in x.iter().zip(w) {
            let term = x * f64::from(w);
            (sum, magnitude, weights) = (sum + term, magnitude + term.abs(), weights + f64::from(w).abs());
        }
        (sum, magnitude * relative(x.len()) + weights * step)
    };
    weight.par_chunks(x.len()).map(row).collect()
}

/// A matrix of a format as a file would have it, and its values.
pub(super) fn matrix_of(
    format: MatrixFormat,
    seed: u64,
    name: &str,
    [rows, cols]: [usize; 2],
    values: &[f32],
) -> (Matrix, Vec<f32>) {
    let data = blocks(format, seed, name, values);
    let mut exact = vec![0.0; values.len()];
    format.decode(&data, &mut exact);
    (Matrix { name: "weight".into(), format, rows, cols, scale: 1.0, data: data.into() }, exact)
}

/// A case of matrices in `format` is none for a device that does not repack them.
pub(super) fn require_units(ops: &CudaOps, op: &str, format: MatrixFormat) -> Result<()> {
    if format.float().is_some() || ops.device().has_bulk_copies() {
        return Ok(());
    }
    Err(ineligible(op, "the device has no bulk copies, for which matrices are repacked"))
}

/// The formats that are repacked, with the columns of a unit.
pub(super) fn unit_formats() -> impl Iterator<Item = (MatrixFormat, usize)> {
    MatrixFormat::ALL.iter().filter_map(|&format| Some((format, unit_cols(format)?)))
}

/// The norm of a row in f64.
pub(super) fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

/// What gate and up are multiplied with.
const SCALES: [f32; 2] = [2.0, 0.5];

/// What stands behind a norm.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    GateUp,
    Head,
}

/// `[n, rows, cols]`.
type Shape = [usize; 3];

fn checks(kind: Kind) -> Vec<Case> {
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
        |dtype: Dtype| shapes(&SHAPES, dtype).map(move |shape| normed_case(kind, dtype.into(), shape, 1.0));
    let mut cases: Vec<Case> = DTYPES.into_iter().flat_map(of).collect();
    if kind == Kind::GateUp {
        // Most results are beyond the range of f16.
        cases.extend(DTYPES.map(|dtype| normed_case(kind, dtype.into(), [2, 111, 104], 1000.0)));
    }
    cases.extend(unit_formats().flat_map(|(format, cols)| {
        UNITS.map(|[n, rows, units]| normed_case(kind, format, [n, rows, units * cols], 1.0))
    }));
    cases
}

fn timings(kind: Kind, workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let rows = if kind == Kind::Head { config.vocab_size } else { config.intermediate_size };
    let of = |format| {
        few_rows(workload).map(move |n| normed_case(kind, format, [n, rows, config.hidden_size], 1.0))
    };
    timed_formats(workload, config.hidden_size).flat_map(of).collect()
}

/// The workload's float format, and those that are repacked where rows have so many columns.
pub(super) fn timed_formats(workload: &Workload, cols: usize) -> impl Iterator<Item = MatrixFormat> {
    let units = unit_formats().filter(move |&(_, unit)| cols.is_multiple_of(unit)).map(|(format, _)| format);
    [MatrixFormat::from(workload.dtype)].into_iter().chain(units)
}

/// Those shapes, beginning with the number of rows, that there are kernels for.
pub(super) fn shapes<const N: usize>(all: &[[usize; N]], dtype: Dtype) -> impl Iterator<Item = [usize; N]> {
    all.iter().copied().filter(move |shape| shape[0] <= fused_max_rows(dtype))
}

/// Those numbers of rows of the workload that the kernels take.
pub(super) fn few_rows(workload: &Workload) -> impl Iterator<Item = usize> {
    let most = fused_max_rows(workload.dtype);
    workload.rows.iter().copied().filter(move |&n| n <= most)
}

/// `scale` is that of the norm's weight.
fn normed_case(kind: Kind, format: MatrixFormat, shape: Shape, scale: f32) -> Case {
    let [n, rows, cols] = shape;
    let dtype = format.float().unwrap_or(Dtype::F16);
    let name = if format.float().is_some() { String::new() } else { format!("{format} ") };
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
            Ok(Box::new(Normed::new(ops, seed, kind, format, shape, scale)?))
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
        format: MatrixFormat,
        shape: Shape,
        scale: f32,
    ) -> Result<Self> {
        let [n, rows, cols] = shape;
        let name = format!("fused {shape:?}");
        let host_x = random(seed, &name, n * cols);
        let host_norm: Vec<f32> =
            random(seed, &format!("{name}: norm"), cols).iter().map(|w| w * scale).collect();
        let gated = ops.new_precise_activation(n + GUARD_ROWS, rows)?;
        let largest = if gated.dtype() == Dtype::F16 { 65504.0 } else { f64::INFINITY };
        let matrix = |what: &str| {
            let name = format!("{name}: {what}");
            let values: Vec<f32> = random(seed, &name, rows * cols).iter().map(|w| w / 8.0).collect();
            matrix_of(format, seed, &name, [rows, cols], &values)
        };
        let whats: &[&str] = if kind == Kind::GateUp { &["gate", "up"] } else { &["head"] };
        let (matrices, hosts): (Vec<_>, Vec<_>) = whats.iter().map(|what| matrix(what)).unzip();
        let places = places(seed, n * rows, cols);
        let rows_of_x: Vec<Vec<f64>> = host_x.chunks(cols).map(|x| normed(x, &host_norm)).collect();
        let expected = places
            .par_iter()
            .map(|&place| {
                let at = |host: &[f32], scale: f32| {
                    let scale = if kind == Kind::Head { 1.0 } else { f64::from(scale) };
                    let row = &host[place % rows * cols..][..cols];
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
            gate_up => ops.load_stacked(gate_up, rows)?.parts,
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
        findings.untouched("out", &found[n * rows..]);
        // Rows have the same bits alone and in a batch.
        for row in (0..n).filter(|_| n > 1) {
            self.reset(ops)?;
            let alone = self.host_x[row * cols..][..cols].to_vec();
            fill_tensor(&mut self.x, &alone)?;
            self.run(ops, 1)?;
            findings.same_bits(
                "a row alone, against the batch",
                &self.found()?[..rows],
                &found[row * rows..][..rows],
            );
        }
        Ok(())
    }
}

fn matmul_add_checks() -> Vec<Case> {
    const SHAPES: [Shape; 11] = [
        [1, 1, 8],
        [1, 19, 64],
        [2, 111, 104],
        [3, 37, 896],
        [1, 19, 4864],
        [4, 9, 4864],
        [1, 896, 896],
        [4, 896, 4864],
        [5, 19, 104],
        [7, 37, 896],
        [8, 896, 4864],
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for shape in shapes(&SHAPES, dtype) {
            cases.push(matmul_add_case(dtype, dtype, shape, ""));
            if precise_dtype(dtype) != dtype {
                cases.push(matmul_add_case(dtype, precise_dtype(dtype), shape, ""));
            }
        }
    }
    cases
}

fn matmul_add_timings(workload: &Workload) -> Vec<Case> {
    let (config, dtype) = (&workload.config, workload.dtype);
    let q_size = config.num_attention_heads * config.head_dim;
    let projections =
        [("o_proj", q_size, dtype), ("down_proj", config.intermediate_size, precise_dtype(dtype))];
    let of =
        |n| projections.map(|(name, cols, x)| matmul_add_case(dtype, x, [n, config.hidden_size, cols], name));
    few_rows(workload).flat_map(of).collect()
}

fn matmul_add_case(dtype: Dtype, x_dtype: Dtype, shape: Shape, name: &'static str) -> Case {
    let [n, rows, cols] = shape;
    let space = if name.is_empty() { "" } else { " " };
    Case {
        dtype,
        shape: format!("{name}{space}x {x_dtype} [{n}, {cols}], weight [{rows}, {cols}]"),
        work: n * rows * cols / 8,
        cost: Cost {
            bytes: (rows * cols * dtype.size() + n * cols * x_dtype.size() + 8 * n * rows) as f64,
            flops: 2.0 * (n * rows) as f64 * cols as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(MatmulAdd::new(ops, seed, x_dtype, shape)?))),
    }
}

struct MatmulAdd {
    shape: Shape,
    host_x: Vec<f32>,
    residual: Vec<f32>,
    expected: Vec<(f64, f64)>,
    x: Activation,
    weight: Weight,
    out: Tensor,
}

impl MatmulAdd {
    fn new(ops: &mut CudaOps, seed: u64, x_dtype: Dtype, shape: Shape) -> Result<Self> {
        let [n, rows, cols] = shape;
        let (dtype, name) = (ops.dtype(), format!("matmul_add {shape:?}"));
        let host_x = rounded(x_dtype, random(seed, &name, n * cols));
        let host_weight = rounded(dtype, random(seed, &format!("{name}: weight"), rows * cols));
        let residual = random(seed, &format!("{name}: residual"), n * rows);
        let mut expected = Vec::new();
        for (x, residual) in host_x.chunks(cols).zip(residual.chunks(rows)) {
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            expected.extend(products(&x, &host_weight, dtype.into()).into_iter().zip(residual).map(
                |((sum, tolerance), &r)| {
                    let sum = sum * f64::from(SCALE) + f64::from(r);
                    (sum, tolerance * f64::from(SCALE) + sum.abs() * unit(Dtype::F32))
                },
            ));
        }
        let x = if x_dtype == dtype {
            activation(ops, n, cols, &host_x)?
        } else {
            ops.new_precise_activation(n + GUARD_ROWS, cols)?
        };
        let (mut weight, out) = (weight(ops, dtype, rows, cols, &host_weight)?, poisoned(ops, n, rows)?);
        weight.set_scale(SCALE);
        Ok(Self { shape, host_x, residual, expected, x, weight, out })
    }
}

impl Instance for MatmulAdd {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.x, &self.host_x)?;
        fill_tensor(&mut self.out, &self.residual)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.fused_matmul_add(self.shape[0], &self.x, &self.weight, &mut self.out)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, cols] = self.shape;
        let found = self.out.to_host()?;
        findings.places("out", found.iter().copied().enumerate().take(n * rows), |i| self.expected[i]);
        findings.untouched("out", &found[n * rows..]);
        for row in (0..n).filter(|_| n > 1) {
            fill_activation(&mut self.x, &self.host_x[row * cols..][..cols])?;
            fill_tensor(&mut self.out, &self.residual[row * rows..][..rows])?;
            ops.fused_matmul_add(1, &self.x, &self.weight, &mut self.out)?;
            let alone = self.out.to_host()?;
            findings.same_bits(
                "a row alone, against the batch",
                &alone[..rows],
                &found[row * rows..][..rows],
            );
        }
        Ok(())
    }
}
