//! Both halves of the experts that rows go to.

use crate::config::ExpertSizes;
use crate::cuda::{Activation, CudaOps, Tensor, Weight, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::testing::{Random, blocks};
use qernel_core::formats::MatrixFormat;

pub const IN: Cases = Cases { op: "experts_in", checks: in_checks, timings: in_timings };
pub const OUT: Cases = Cases { op: "experts_out", checks: out_checks, timings: out_timings };

/// Rows and the sizes of the experts that each goes to some of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    num_experts: usize,
    chosen: usize,
    hidden_size: usize,
    intermediate_size: usize,
}

/// One row and more, one expert a row and all, sizes that are whole blocks of 32 values.
const SHAPES: [Shape; 4] = [
    Shape { n: 1, num_experts: 4, chosen: 2, hidden_size: 64, intermediate_size: 32 },
    Shape { n: 5, num_experts: 3, chosen: 3, hidden_size: 96, intermediate_size: 64 },
    Shape { n: 19, num_experts: 8, chosen: 1, hidden_size: 32, intermediate_size: 96 },
    Shape { n: 1, num_experts: 1, chosen: 1, hidden_size: 32, intermediate_size: 32 },
];

/// For matrices in larger blocks, but for their columns: few rows, since that is much work for the emulator.
const LARGE: Shape = Shape { n: 3, num_experts: 4, chosen: 2, hidden_size: 10, intermediate_size: 10 };

/// Shapes for a format; `large` has whole blocks of every format.
fn shapes(format: MatrixFormat, large: Shape) -> Vec<Shape> {
    if format.block_values() > 32 { vec![large] } else { SHAPES.to_vec() }
}

/// Ragged ones, for floats.
const RAGGED: Shape = Shape { n: 3, num_experts: 5, chosen: 2, hidden_size: 37, intermediate_size: 19 };

/// The formats of a model on a device that computes with `dtype`.
fn formats(dtype: Dtype) -> impl Iterator<Item = MatrixFormat> {
    let blocks = MatrixFormat::ALL.iter().copied().filter(|format| format.float().is_none());
    std::iter::once(dtype.into()).chain(blocks)
}

fn of_model(workload: &Workload, n: usize) -> Shape {
    const USUAL: ExpertSizes = ExpertSizes {
        num_experts: 128,
        num_experts_per_tok: 8,
        moe_intermediate_size: 768,
        shared_expert_intermediate_size: 0,
    };
    let sizes = workload.config.experts.unwrap_or(USUAL);
    Shape {
        n,
        num_experts: sizes.num_experts,
        chosen: sizes.num_experts_per_tok,
        hidden_size: workload.config.hidden_size,
        intermediate_size: sizes.moe_intermediate_size,
    }
}

/// Numbers of different experts, ascending, and weights, for each row.
fn choice(seed: u64, shape: &Shape) -> Vec<f32> {
    let mut all = Vec::new();
    for row in 0..shape.n {
        let mut numbers = shuffled(seed, &format!("experts of row {row}"), shape.num_experts);
        numbers.truncate(shape.chosen);
        numbers.sort_unstable();
        all.extend(numbers.iter().map(|&number| number as f32));
        all.extend(Random::new(seed, &format!("weights of row {row}")).take(shape.chosen).map(f32::abs));
    }
    all
}

/// Matrices of all experts, one below the other, on the device, and their values there.
fn matrices(
    ops: &mut CudaOps,
    format: MatrixFormat,
    seed: u64,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<(Weight, Vec<f32>)> {
    let scale = (cols as f32).powf(-0.5);
    let values: Vec<f32> = random(seed, name, rows * cols).iter().map(|value| value * scale).collect();
    let data = blocks(format, seed, name, &values);
    let mut values = vec![0.0; rows * cols];
    format.decode(&data, &mut values);
    Ok((block_weight(ops, format, rows, cols, 1.0, data)?, values))
}

/// A sum of products in f64, and what f32 may be off, whose error grows with the magnitudes of the terms: half a unit for each of the
/// `cols / 32` terms of a lane and five butterfly steps, twice over.
fn product(x: &[f32], w: &[f32]) -> (f64, f64) {
    let terms = || x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
    let roundings = x.len() as f64 / 32.0 + 6.0;
    (terms().sum(), terms().map(f64::abs).sum::<f64>() * roundings * unit(Dtype::F32))
}

fn in_checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for gate in formats(dtype) {
            let shapes = shapes(gate, Shape { hidden_size: 256, ..LARGE }).into_iter();
            cases.extend(shapes.map(|shape| in_case(dtype, [gate, dtype.into()], shape)));
        }
        cases.push(in_case(dtype, [dtype.into(); 2], RAGGED));
    }
    cases
}

fn in_timings(workload: &Workload) -> Vec<Case> {
    let formats = [workload.dtype.into(); 2];
    workload.rows.iter().map(|&n| in_case(workload.dtype, formats, of_model(workload, n))).collect()
}

/// Bytes of the matrices that a step reads: of as many experts as are chosen, each once.
fn read_bytes(shape: &Shape, format: MatrixFormat, [rows, cols]: [usize; 2]) -> usize {
    let experts = shape.num_experts.min(shape.n * shape.chosen);
    experts * rows * format.row_bytes(cols).unwrap_or(0)
}

fn in_case(dtype: Dtype, formats: [MatrixFormat; 2], shape: Shape) -> Case {
    let Shape { n, num_experts, chosen, hidden_size, intermediate_size } = shape;
    let [gate, up] = formats;
    let products = 2 * n * chosen * hidden_size * intermediate_size;
    let weights: usize =
        formats.iter().map(|&f| read_bytes(&shape, f, [intermediate_size, hidden_size])).sum();
    Case {
        dtype,
        shape: format!(
            "[{n}, {hidden_size}] to {chosen} of {num_experts} experts of {intermediate_size}, {gate} and {up}"
        ),
        work: products,
        cost: Cost {
            bytes: (weights + 4 * n * chosen * intermediate_size) as f64,
            flops: 2.0 * products as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(In::new(ops, seed, formats, shape)?))),
    }
}

struct In {
    n: usize,
    expected: Vec<(f64, f64)>,
    x: Activation,
    chosen: Tensor,
    gate: Weight,
    up: Weight,
    inner: Tensor,
}

impl In {
    fn new(ops: &mut CudaOps, seed: u64, [gate, up]: [MatrixFormat; 2], shape: Shape) -> Result<Self> {
        let Shape { n, num_experts, chosen, hidden_size: cols, intermediate_size: width } = shape;
        let name = format!("experts_in {shape:?}");
        let host_x = rounded(precise_dtype(ops.dtype()), random(seed, &name, n * cols));
        let choice = choice(seed, &shape);
        let all = [num_experts * width, cols];
        let (gate, gates) = matrices(ops, gate, seed, &format!("{name}: gate"), all)?;
        let (up, ups) = matrices(ops, up, seed, &format!("{name}: up"), all)?;
        let mut expected = Vec::new();
        for (x, choice) in host_x.chunks(cols).zip(choice.chunks(2 * chosen)) {
            for &expert in &choice[..chosen] {
                for row in (0..width).map(|feature| expert as usize * width + feature) {
                    let (gate, gate_off) = product(x, &gates[row * cols..][..cols]);
                    let (up, up_off) = product(x, &ups[row * cols..][..cols]);
                    let silu = gate / (1.0 + (-gate).exp());
                    // silu is nowhere steeper than 1.1.
                    let off = 1.1 * gate_off * up.abs() + silu.abs() * up_off;
                    expected.push((silu * up, off + (silu * up).abs() * 8.0 * unit(Dtype::F32)));
                }
            }
        }
        let mut x = ops.new_precise_activation(n + GUARD_ROWS, cols)?;
        fill_activation(&mut x, &host_x)?;
        let chosen_tensor = tensor(ops, n, 2 * chosen, &choice)?;
        Ok(Self { n, expected, x, chosen: chosen_tensor, gate, up, inner: poisoned(ops, n, chosen * width)? })
    }
}

impl Instance for In {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.inner, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.experts_in(self.n, &self.x, &self.chosen, [&self.gate, &self.up], &mut self.inner)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        compare("inner", &self.inner, &self.expected, findings)
    }
}

fn out_checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for format in formats(dtype) {
            let shapes = shapes(format, Shape { intermediate_size: 256, ..LARGE }).into_iter();
            cases.extend(shapes.map(|shape| out_case(dtype, format, shape)));
        }
        cases.push(out_case(dtype, dtype.into(), RAGGED));
    }
    cases
}

fn out_timings(workload: &Workload) -> Vec<Case> {
    let of = |&n: &usize| out_case(workload.dtype, workload.dtype.into(), of_model(workload, n));
    workload.rows.iter().map(of).collect()
}

fn out_case(dtype: Dtype, format: MatrixFormat, shape: Shape) -> Case {
    let Shape { n, num_experts, chosen, hidden_size, intermediate_size } = shape;
    let products = n * chosen * hidden_size * intermediate_size;
    let weights = read_bytes(&shape, format, [hidden_size, intermediate_size]);
    Case {
        dtype,
        shape: format!(
            "{chosen} of {num_experts} experts of {intermediate_size} to [{n}, {hidden_size}], {format}"
        ),
        work: products,
        cost: Cost {
            bytes: (weights + 4 * n * (chosen * intermediate_size + 2 * hidden_size)) as f64,
            flops: 2.0 * products as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Out::new(ops, seed, format, shape)?))),
    }
}

struct Out {
    n: usize,
    before: Vec<f32>,
    expected: Vec<(f64, f64)>,
    inner: Tensor,
    chosen: Tensor,
    down: Weight,
    out: Tensor,
}

impl Out {
    fn new(ops: &mut CudaOps, seed: u64, format: MatrixFormat, shape: Shape) -> Result<Self> {
        let Shape { n, num_experts, chosen, hidden_size, intermediate_size: width } = shape;
        let name = format!("experts_out {shape:?}");
        let host_inner = random(seed, &name, n * chosen * width);
        let choice = choice(seed, &shape);
        let all = [num_experts * hidden_size, width];
        let (down, downs) = matrices(ops, format, seed, &format!("{name}: down"), all)?;
        let before = random(seed, &format!("{name}: before"), n * hidden_size);
        let mut expected = Vec::new();
        for row in 0..n {
            let (numbers, weights) = choice[row * 2 * chosen..][..2 * chosen].split_at(chosen);
            for feature in 0..hidden_size {
                let start = f64::from(before[row * hidden_size + feature]);
                let (mut sum, mut magnitude, mut off) = (start, start.abs(), 0.0);
                for (j, (&number, &weight)) in numbers.iter().zip(weights).enumerate() {
                    let w = &downs[(number as usize * hidden_size + feature) * width..][..width];
                    let (value, value_off) = product(&host_inner[(row * chosen + j) * width..][..width], w);
                    sum += f64::from(weight) * value;
                    magnitude += f64::from(weight) * value.abs();
                    off += f64::from(weight) * value_off;
                }
                // A rounding for each expert that is added.
                expected.push((sum, off + magnitude * (chosen as f64 + 2.0) * unit(Dtype::F32)));
            }
        }
        Ok(Self {
            n,
            expected,
            inner: tensor(ops, n, chosen * width, &host_inner)?,
            chosen: tensor(ops, n, 2 * chosen, &choice)?,
            down,
            out: tensor(ops, n, hidden_size, &before)?,
            before,
        })
    }
}

impl Instance for Out {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.out, &self.before)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.experts_out(self.n, &self.inner, &self.chosen, &self.down, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        compare("out", &self.out, &self.expected, findings)
    }
}

fn compare(of: &'static str, found: &Tensor, expected: &[(f64, f64)], findings: &mut Findings) -> Result<()> {
    let found = found.to_host()?;
    let (values, guard) = found.split_at(expected.len());
    findings.places(of, values.iter().copied().enumerate(), |i| expected[i]);
    findings.guard_intact(of, guard);
    Ok(())
}
