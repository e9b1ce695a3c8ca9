//! Both halves of the experts that rows go to.

use super::fused::{relative, require_units, timed_formats, unit_formats};
use super::matmul::places;
use crate::config::ExpertSizes;
use crate::cuda::{Activation, CudaOps, Tensor, Weight, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::experts::ExpertOps;
use crate::ops::{ExpertsConfig, Ops, OpsConfig};
use crate::testing::{Random, blocks};
use crate::weights::Matrix;
use qernel_core::formats::MatrixFormat;
use rayon::prelude::*;

pub const IN: Cases =
    Cases { op: "experts_in", checks: || checks(Half::In), timings: |w| timings(Half::In, w) };
pub const OUT: Cases =
    Cases { op: "experts_out", checks: || checks(Half::Out), timings: |w| timings(Half::Out, w) };

/// Which of the two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Half {
    In,
    Out,
}

impl Half {
    fn op(self) -> &'static str {
        if self == Self::In { IN.op } else { OUT.op }
    }
}

/// Rows and the sizes of the experts that each goes to some of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub n: usize,
    pub num_experts: usize,
    pub chosen: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
}

impl Shape {
    /// `[n, num_experts, chosen, hidden_size, intermediate_size]`
    fn new([n, num_experts, chosen, hidden_size, intermediate_size]: [usize; 5]) -> Self {
        Self { n, num_experts, chosen, hidden_size, intermediate_size }
    }

    /// What operations are made for.
    pub fn config(&self) -> OpsConfig {
        let &Self { n, num_experts, chosen: num_experts_per_tok, hidden_size, intermediate_size } = self;
        let mut config = OpsConfig {
            experts: Some(ExpertsConfig {
                num_experts,
                num_experts_per_tok,
                hidden_size,
                moe_intermediate_size: intermediate_size,
            }),
            ..plain_config()
        };
        config.limits.max_num_tokens = n;
        config.limits.max_num_logits = n;
        config
    }

    /// Rows and columns of a matrix of an expert.
    fn matrix(&self, half: Half) -> [usize; 2] {
        let shape = [self.intermediate_size, self.hidden_size];
        if half == Half::In { shape } else { [shape[1], shape[0]] }
    }
}

/// Matrices of a case.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    /// Of gate and up; of down the first.
    formats: [MatrixFormat; 2],
    /// Repacked as units; else as in the file.
    in_units: bool,
    /// How many experts have values of their own; the others repeat theirs.
    different: usize,
}

impl Matrices {
    fn in_rows(formats: [MatrixFormat; 2]) -> Self {
        Self { formats, in_units: false, different: usize::MAX }
    }

    fn in_units(format: MatrixFormat) -> Self {
        Self { formats: [format; 2], in_units: true, different: usize::MAX }
    }
}

fn checks(half: Half) -> Vec<Case> {
    // One row and more, one expert a row and all, sizes that are whole blocks of 32 values.
    const SHAPES: [[usize; 5]; 4] =
        [[1, 4, 2, 64, 32], [5, 3, 3, 96, 64], [19, 8, 1, 32, 96], [1, 1, 1, 32, 32]];
    // For matrices in larger blocks, but for their columns: few rows, since that is much work for the emulator.
    const LARGE: [usize; 5] = [3, 4, 2, 10, 10];
    // Ragged ones, for floats.
    const RAGGED: [usize; 5] = [3, 5, 2, 37, 19];
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        let float = MatrixFormat::from(dtype);
        let in_blocks = MatrixFormat::ALL.iter().copied().filter(|format| format.float().is_none());
        for format in std::iter::once(float).chain(in_blocks) {
            let formats = if half == Half::In { [format, float] } else { [format; 2] };
            let mut large = Shape::new(LARGE);
            *(if half == Half::In { &mut large.hidden_size } else { &mut large.intermediate_size }) = 256;
            let shapes =
                if format.block_values() > 32 { vec![large] } else { SHAPES.map(Shape::new).to_vec() };
            cases
                .extend(shapes.into_iter().map(|shape| case(half, dtype, Matrices::in_rows(formats), shape)));
        }
        cases.push(case(half, dtype, Matrices::in_rows([float; 2]), Shape::new(RAGGED)));
    }
    let formats = unit_formats().chain([(Dtype::F16.into(), 64)]);
    cases.extend(formats.flat_map(|(format, cols)| {
        shapes_in_units(half, cols)
            .map(move |shape| case(half, Dtype::F16, Matrices::in_units(format), shape))
    }));
    cases
}

/// Rows one by one, that share chunks of tiles; groups of few rows, and more than one for an expert; groups of so many that weights are decoded
/// for them, of each size, with more tiles than a block multiplies at once, more such groups than blocks, and more units than there is room for.
fn shapes_in_units(half: Half, cols: usize) -> impl Iterator<Item = Shape> {
    // Rows, experts, chosen ones, rows of an expert's matrix in eights, units of its columns.
    const SHAPES: [[usize; 5]; 9] = [
        [1, 4, 2, 2, 1],
        [2, 5, 3, 6, 5],
        [5, 3, 2, 26, 2],
        [19, 3, 1, 2, 3],
        [66, 3, 1, 2, 1],
        [70, 4, 2, 26, 3],
        [20, 2, 1, 26, 3],
        [135, 2, 2, 2, 1],
        [65, 1, 1, 2, 6],
    ];
    SHAPES.into_iter().map(move |[n, experts, chosen, eights, units]| {
        let (rows, cols) = (8 * eights, units * cols);
        let [hidden, width] = if half == Half::In { [cols, rows] } else { [rows, cols] };
        Shape::new([n, experts, chosen, hidden, width])
    })
}

fn timings(half: Half, workload: &Workload) -> Vec<Case> {
    const USUAL: ExpertSizes = ExpertSizes {
        num_experts: 128,
        num_experts_per_tok: 8,
        moe_intermediate_size: 768,
        shared_expert_intermediate_size: 0,
    };
    let sizes = workload.config.experts.unwrap_or(USUAL);
    let shape = |n| Shape {
        n,
        num_experts: sizes.num_experts,
        chosen: sizes.num_experts_per_tok,
        hidden_size: workload.config.hidden_size,
        intermediate_size: sizes.moe_intermediate_size,
    };
    let [_, cols] = shape(1).matrix(half);
    let mut cases = Vec::new();
    for format in timed_formats(workload, cols) {
        for &n in &workload.rows {
            // Few values: those of all experts would take minutes to draw.
            let in_units = Matrices { different: 2, ..Matrices::in_units(format) };
            if workload.dtype == Dtype::F16 {
                cases.push(case(half, workload.dtype, in_units, shape(n)));
            }
            if format.float().is_some() {
                let in_rows = Matrices { in_units: false, ..in_units };
                cases.push(case(half, workload.dtype, in_rows, shape(n)));
            }
        }
    }
    cases
}

/// Bytes of matrices of a format that a step reads: of as many experts as are chosen, each once.
fn read_bytes(shape: &Shape, format: MatrixFormat, [rows, cols]: [usize; 2]) -> usize {
    let pairs = (shape.n * shape.chosen) as f64;
    // Of random choices.
    let missed = (1.0 - 1.0 / shape.num_experts as f64).powf(pairs);
    let experts = (shape.num_experts as f64 * (1.0 - missed)).round() as usize;
    experts.max(1) * rows * format.row_bytes(cols).unwrap_or(0)
}

fn case(half: Half, dtype: Dtype, matrices: Matrices, shape: Shape) -> Case {
    let Shape { n, num_experts, chosen, hidden_size, intermediate_size } = shape;
    let Matrices { formats: [gate, up], in_units, .. } = matrices;
    let layout = if in_units { " in units" } else { "" };
    let (count, name) = match half {
        Half::In => (
            2,
            format!(
                "[{n}, {hidden_size}] to {chosen} of {num_experts} experts of {intermediate_size}, {gate} and {up}{layout}"
            ),
        ),
        Half::Out => (
            1,
            format!(
                "{chosen} of {num_experts} experts of {intermediate_size} to [{n}, {hidden_size}], {gate}{layout}"
            ),
        ),
    };
    let products = count * n * chosen * hidden_size * intermediate_size;
    let weights: usize =
        [gate, up][..count].iter().map(|&format| read_bytes(&shape, format, shape.matrix(half))).sum();
    let values = match half {
        Half::In => n * chosen * intermediate_size,
        Half::Out => n * (chosen * intermediate_size + 2 * hidden_size),
    };
    Case {
        dtype,
        shape: name,
        // The emulator multiplies matrices of a warpgroup as such.
        work: match in_units {
            true if n * chosen / num_experts >= 8 => products / 64,
            true => products / 8,
            false => products,
        },
        cost: Cost { bytes: (weights + 4 * values) as f64, flops: 2.0 * products as f64 },
        config: shape.config(),
        prepare: Box::new(move |ops, seed| {
            if in_units {
                // Of floats, too.
                require_units(ops, half.op(), MatrixFormat::Q8_0)?;
            }
            Ok(Box::new(Mixture::new(ops, seed, half, matrices, shape)?))
        }),
    }
}

/// Numbers of different experts, ascending, and weights, for each row.
pub(super) fn choice(seed: u64, shape: &Shape) -> Vec<f32> {
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

/// Matrices of all experts, one below the other, as a file has them, and the values of those that differ.
fn host_matrices(
    format: MatrixFormat,
    seed: u64,
    name: &str,
    [count, rows, cols]: [usize; 3],
    different: usize,
) -> (Matrix, Vec<f32>) {
    let different = different.min(count);
    let scale = (cols as f32).powf(-0.5);
    let mut values: Vec<f32> =
        random(seed, name, different * rows * cols).iter().map(|value| value * scale).collect();
    let of_some = blocks(format, seed, name, &values);
    format.decode(&of_some, &mut values);
    let mut data = of_some.repeat(count.div_ceil(different));
    data.truncate(of_some.len() / different * count);
    let matrix =
        Matrix { name: "weight".into(), format, rows: count * rows, cols, scale: 1.0, data: data.into() };
    (matrix, values)
}

/// What inputs and weights are rounded to before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rounding {
    None,
    /// Inputs, as they are staged for units.
    Staged,
    /// Both, to f16.
    Decoded,
}

/// A sum of products in f64, and what it may be off. In rows, whose error grows with the magnitudes of the terms: half a unit for each of the
/// `cols / 32` terms of a lane and five butterfly steps, twice over. In units likewise, and what inputs are rounded to: 16 bits of the largest
/// near by, or f16 where weights are, or are made.
fn product(x: &[f32], w: &[f32], format: MatrixFormat, rounding: Rounding) -> (f64, f64) {
    let (mut sum, mut magnitude, mut weights, mut largest) = (0.0, 0.0, 0.0, 0.0f64);
    for (&x, &w) in x.iter().zip(w) {
        let (x, w) = (f64::from(x), f64::from(w));
        sum += x * w;
        magnitude += (x * w).abs();
        weights += w.abs();
        largest = largest.max(x.abs());
    }
    let lost = weights * largest * 2f64.powi(-24);
    let rounding = match (rounding, format.float()) {
        (Rounding::None, _) => {
            return (sum, magnitude * (x.len() as f64 / 32.0 + 6.0) * unit(Dtype::F32));
        }
        // What a weight is made of, it and its input, as for matrices that are decoded.
        (Rounding::Decoded, None) => 4.0 * magnitude * unit(Dtype::F16) + lost,
        (_, Some(_)) => magnitude * unit(Dtype::F16) + lost,
        (Rounding::Staged, None) => weights * largest / 65024.0,
    };
    (sum, magnitude * relative(x.len()) + rounding)
}

/// A case on a device.
struct Mixture {
    half: Half,
    shape: Shape,
    rounding: Rounding,
    host_x: Vec<f32>,
    host_chosen: Vec<f32>,
    /// What is in the output before.
    before: Vec<f32>,
    /// Indices of the results that are compared, ascending, and for each what it should be and may be off.
    places: Vec<usize>,
    expected: Vec<(f64, f64)>,
    /// Of the first half.
    x: Activation,
    chosen: Tensor,
    inner: Tensor,
    /// Gate and up, or down.
    weights: Vec<Weight>,
    out: Tensor,
}

impl Mixture {
    fn new(ops: &mut CudaOps, seed: u64, half: Half, matrices: Matrices, shape: Shape) -> Result<Self> {
        let Shape { n, num_experts, chosen, hidden_size, intermediate_size: width } = shape;
        let Matrices { formats, in_units, different } = matrices;
        let name = format!("{} {shape:?}", half.op());
        let rounding = match in_units {
            true if ops.decodes_experts(n) => Rounding::Decoded,
            true => Rounding::Staged,
            false => Rounding::None,
        };
        let [rows, cols] = shape.matrix(half);
        let whats: &[&str] = if half == Half::In { &["gate", "up"] } else { &["down"] };
        let (hosts, values): (Vec<_>, Vec<_>) = whats
            .iter()
            .zip(formats)
            .map(|(what, format)| {
                host_matrices(format, seed, &format!("{name}: {what}"), [num_experts, rows, cols], different)
            })
            .unzip();
        let weights = match (&hosts[..], in_units) {
            ([gate, up], true) => ops.load_gate_up_experts([gate, up], num_experts)?.into(),
            ([down], true) => vec![ops.load_experts(down, num_experts)?],
            (all, _) => all.iter().map(|matrix| ops.load_matrix(matrix)).collect::<Result<_>>()?,
        };
        let host_chosen = choice(seed, &shape);
        let (host_x, before) = match half {
            Half::In => (rounded(precise_dtype(ops.dtype()), random(seed, &name, n * cols)), Vec::new()),
            Half::Out => (
                random(seed, &name, n * chosen * width),
                random(seed, &format!("{name}: before"), n * hidden_size),
            ),
        };
        // Of expert `number` the values of a row of each matrix.
        let row_of = |number: f32, row: usize| {
            let expert = number as usize % different.min(num_experts);
            let row = (expert * rows + row) * cols;
            values.iter().map(move |values| &values[row..][..cols])
        };
        let of = |x: &[f32], number: f32, row: usize| -> Vec<(f64, f64)> {
            let rows = row_of(number, row).zip(formats);
            rows.map(|(w, format)| product(x, w, format, rounding)).collect()
        };
        let of_row = |row: usize| host_chosen[row * 2 * chosen..][..2 * chosen].split_at(chosen);
        let count = if half == Half::In { n * chosen * width } else { n * hidden_size };
        let places = places(seed, count, cols * chosen);
        let expect = |&place: &usize| match half {
            Half::In => {
                let (pair, feature) = (place / width, place % width);
                let number = of_row(pair / chosen).0[pair % chosen];
                let products = of(&host_x[pair / chosen * cols..][..cols], number, feature);
                gated(products[0], products[1])
            }
            Half::Out => {
                let (row, feature) = (place / hidden_size, place % hidden_size);
                let start = f64::from(before[place]);
                let (mut sum, mut magnitude, mut off) = (start, start.abs(), 0.0);
                let (numbers, shares) = of_row(row);
                for (j, (&number, &share)) in numbers.iter().zip(shares).enumerate() {
                    let x = &host_x[(row * chosen + j) * width..][..width];
                    let (value, value_off) = of(x, number, feature)[0];
                    sum += f64::from(share) * value;
                    magnitude += f64::from(share) * value.abs();
                    off += f64::from(share) * value_off;
                }
                // A rounding for each expert that is added.
                (sum, off + magnitude * (chosen as f64 + 2.0) * unit(Dtype::F32))
            }
        };
        let expected = places.par_iter().map(expect).collect();
        Ok(Self {
            half,
            shape,
            rounding,
            x: ops.new_precise_activation(n + GUARD_ROWS, hidden_size)?,
            chosen: poisoned(ops, n, 2 * chosen)?,
            inner: poisoned(ops, n, chosen * width)?,
            out: poisoned(ops, n, hidden_size)?,
            weights,
            host_x,
            host_chosen,
            before,
            places,
            expected,
        })
    }

    /// Puts rows `first` to `first + n` in place.
    fn fill(&mut self, ops: &mut CudaOps, first: usize, n: usize) -> Result<()> {
        let Shape { chosen, hidden_size, intermediate_size: width, .. } = self.shape;
        fill_tensor(&mut self.chosen, &self.host_chosen[first * 2 * chosen..][..n * 2 * chosen])?;
        // Before the other arrays are filled: the second half takes it that this has ended when it starts.
        let all = [&self.weights[0]; 3];
        ops.sort_experts(n, &self.chosen, all)?;
        match self.half {
            Half::In => {
                fill_activation(&mut self.x, &self.host_x[first * hidden_size..][..n * hidden_size])?;
                fill_tensor(&mut self.inner, &[])?;
            }
            Half::Out => {
                let cols = chosen * width;
                fill_tensor(&mut self.inner, &self.host_x[first * cols..][..n * cols])?;
                fill_tensor(&mut self.out, &self.before[first * hidden_size..][..n * hidden_size])?;
            }
        }
        Ok(())
    }

    fn run(&mut self, ops: &mut CudaOps, n: usize) -> Result<()> {
        let Self { x, chosen, inner, weights, out, .. } = self;
        match &weights[..] {
            [gate, up] => ops.experts_in(n, x, chosen, [gate, up], inner),
            weights => ops.experts_out(n, inner, chosen, &weights[0], out),
        }
    }

    /// Results, and what is behind them.
    fn found(&self) -> Result<Vec<f32>> {
        if self.half == Half::In { self.inner.to_host() } else { self.out.to_host() }
    }
}

/// `silu(gate) * up`, of values that may be off.
fn gated((gate, gate_off): (f64, f64), (up, up_off): (f64, f64)) -> (f64, f64) {
    let silu = gate / (1.0 + (-gate).exp());
    // silu is nowhere steeper than 1.1.
    let off = 1.1 * gate_off * (up.abs() + up_off) + silu.abs() * up_off;
    (silu * up, off + (silu * up).abs() * 8.0 * unit(Dtype::F32))
}

impl Instance for Mixture {
    fn reset(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.fill(ops, 0, self.shape.n)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.run(ops, self.shape.n)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let Shape { n, chosen, hidden_size, intermediate_size: width, .. } = self.shape;
        let cols = if self.half == Half::In { chosen * width } else { hidden_size };
        let found = self.found()?;
        let values = self.places.iter().map(|&place| (place, found[place]));
        findings.places("out", values, |place| {
            self.expected[self.places.binary_search(&place).expect("one of the places")]
        });
        findings.guard_intact("out", &found[n * cols..]);
        // Rows have the same bits alone and in a batch, if their weights are not decoded.
        let some =
            if self.rounding == Rounding::Staged && n > 1 { [0, n / 2, n - 1].to_vec() } else { Vec::new() };
        for row in some {
            self.fill(ops, row, 1)?;
            self.run(ops, 1)?;
            let alone = self.found()?;
            findings.same_alone(&alone, &found, row, cols);
        }
        Ok(())
    }
}
