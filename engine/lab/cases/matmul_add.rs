//! Products that are added to the residual, for the few rows of a decode step.

use super::fused::{DTYPES, few_rows, products, shapes};
use super::matmul::SCALE;
use crate::cuda::{Activation, CudaOps, Tensor, Weight, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "matmul_add", checks, timings };

/// `[n, rows, cols]`.
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
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
            cases.push(case(dtype, dtype, shape, ""));
            if precise_dtype(dtype) != dtype {
                cases.push(case(dtype, precise_dtype(dtype), shape, ""));
            }
        }
    }
    cases
}

fn timings(workload: &Workload) -> Vec<Case> {
    let (config, dtype) = (&workload.config, workload.dtype);
    let q_size = config.num_attention_heads * config.head_dim;
    let projections =
        [("o_proj", q_size, dtype), ("down_proj", config.intermediate_size, precise_dtype(dtype))];
    let of = |n| projections.map(|(name, cols, x)| case(dtype, x, [n, config.hidden_size, cols], name));
    few_rows(workload).flat_map(of).collect()
}

fn case(dtype: Dtype, x_dtype: Dtype, shape: Shape, name: &'static str) -> Case {
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
        findings.guard_intact("out", &found[n * rows..]);
        for row in (0..n).filter(|_| n > 1) {
            fill_activation(&mut self.x, &self.host_x[row * cols..][..cols])?;
            fill_tensor(&mut self.out, &self.residual[row * rows..][..rows])?;
            ops.fused_matmul_add(1, &self.x, &self.weight, &mut self.out)?;
            let alone = self.out.to_host()?;
            findings.same_alone(&alone, &found, row, rows);
        }
        Ok(())
    }
}
