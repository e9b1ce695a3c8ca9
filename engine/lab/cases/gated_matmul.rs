//! The products of a gated MLP and its activation in one kernel.

use super::matmul::{SCALE, places};
use crate::cuda::{Activation, CudaOps, Weight, encode};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, Stacked};
use crate::weights::Matrix;
use rayon::prelude::*;

pub const CASES: Cases = Cases { op: "gated_matmul", checks, timings };

/// `[n, rows, cols]`: x `[n, cols]`, gate and up `[rows, cols]`.
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 7] = [
        [1, 19, 111],
        [19, 64, 64],
        [130, 64, 64],
        [70, 192, 128],
        [200, 128, 448],
        [1, 64, 960],
        [600, 320, 896],
    ];
    let of = |dtype| SHAPES.map(|shape| case(dtype, shape));
    [Dtype::F16, Dtype::Bf16].into_iter().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let dtype = crate::cuda::precise_dtype(workload.dtype);
    let (rows, cols) = (workload.config.intermediate_size, workload.config.hidden_size);
    let of = |&n: &usize| case(dtype, [n, rows, cols]);
    if dtype == Dtype::F32 { Vec::new() } else { workload.rows.iter().map(of).collect() }
}

fn case(dtype: Dtype, shape: Shape) -> Case {
    let [n, rows, cols] = shape;
    let values = n * cols + 2 * rows * cols + n * rows;
    Case {
        dtype,
        shape: format!("x [{n}, {cols}], gate and up [{rows}, {cols}]"),
        // A multiply-add is one of many in a thread.
        work: 2 * n * rows * cols / 16,
        cost: Cost { bytes: (values * dtype.size()) as f64, flops: 4.0 * (n * rows) as f64 * cols as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(GatedMatmul::new(ops, seed, shape)?))),
    }
}

struct GatedMatmul {
    shape: Shape,
    /// Indices of the results that are compared, ascending.
    places: Vec<usize>,
    /// For each place what it should be, and what it may be off before it is rounded.
    expected: Vec<(f64, f64)>,
    x: Activation,
    weights: Stacked<Weight>,
    out: Activation,
}

impl GatedMatmul {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape) -> Result<Self> {
        let [n, rows, cols] = shape;
        let dtype = ops.dtype();
        let name = format!("gated_matmul {shape:?}");
        let host_x = rounded(dtype, random(seed, &name, n * cols));
        let host_weights = ["gate", "up"]
            .map(|which| rounded(dtype, random(seed, &format!("{name}: {which}"), rows * cols)));
        let places = places(seed, n * rows, cols);
        // As for a product by itself: tensor cores truncate, errors grow with the root of their number.
        let relative = ((cols as f64).sqrt() + 8.0) * 2.0 * unit(Dtype::F32);
        let expected = places.par_iter().map(|place| {
            let x = &host_x[place / rows * cols..][..cols];
            let [(gate, of_gate), (up, of_up)] = [0, 1].map(|which| {
                let weight = &host_weights[which][place % rows * cols..][..cols];
                let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w * SCALE));
                products.fold((0.0, 0.0), |(sum, magnitude): (f64, f64), p| (sum + p, magnitude + p.abs()))
            });
            let silu = gate / (1.0 + (-gate).exp());
            // SiLU's slope is at most 1.1.
            let off = 1.1 * of_gate * relative * up.abs() + silu.abs() * of_up * relative;
            (silu * up, off)
        });
        let expected = expected.collect();
        let matrices = [0, 1].map(|which| Matrix {
            name: ["gate", "up"][which].into(),
            format: dtype.into(),
            rows,
            cols,
            scale: 1.0,
            data: encode(dtype, &host_weights[which]).into(),
        });
        let mut weights = ops.load_stacked(&matrices, rows)?;
        weights.matrices.iter_mut().for_each(|matrix| matrix.set_scale(SCALE));
        let x = activation(ops, n, cols, &host_x)?;
        let out = poisoned_activation(ops, n, rows)?;
        Ok(Self { shape, places, expected, x, weights, out })
    }
}

impl Instance for GatedMatmul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.fused_gated_matmul(self.shape[0], &self.x, &self.weights, &mut self.out).map(drop)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, _] = self.shape;
        let found = self.out.to_host()?;
        let format = self.out.dtype();
        findings.places("out", self.places.iter().map(|&place| (place, found[place])), |place| {
            let i = self.places.binary_search(&place).expect("one of the places");
            let (expected, off) = self.expected[i];
            // And 2^-20 for an exponential that is good to two units in the last place.
            let rounding = expected.abs() * (unit(format) + 2f64.powi(-20)) + smallest(format);
            (expected, off + rounding)
        });
        findings.guard_intact("out", &found[n * rows..]);
        Ok(())
    }
}
