//! Which experts a row goes to, and with what weights.

use super::fused::{EPS, normed};
use crate::cuda::{Activation, CudaOps, DeviceBuffer, Tensor, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::experts::ExpertOps;
use crate::ops::parts::{RmsNorm, Router};
use crate::ops::{ExpertsConfig, Ops, OpsConfig};

pub const CASES: Cases =
    Cases { op: "route", checks: || checks(false), timings: |workload| timings(false, workload) };
pub const WITH_NORM: Cases =
    Cases { op: "norm_route", checks: || checks(true), timings: |workload| timings(true, workload) };

/// `[n, hidden_size, experts, chosen of them]`
type Shape = [usize; 4];

/// With the norm before, or without.
fn checks(with_norm: bool) -> Vec<Case> {
    const SHAPES: [Shape; 6] =
        [[1, 64, 8, 2], [19, 111, 60, 4], [3, 256, 128, 8], [2, 32, 512, 10], [5, 19, 32, 32], [2, 1, 1, 1]];
    // Rows of fours: one row and more, more experts than a round of warps, more rows than a block has.
    // And so many that each warp has several experts: on a device with few multiprocessors from six rows on.
    const NORMED: [Shape; 9] = [
        [1, 64, 8, 2],
        [19, 112, 60, 4],
        [3, 256, 128, 8],
        [2, 2056, 5, 5],
        [9, 20, 513, 32],
        [2, 4, 1, 1],
        [515, 524, 37, 3],
        [5, 1060, 10, 3],
        [7, 524, 30, 3],
    ];
    let shapes = if with_norm { NORMED.to_vec() } else { SHAPES.to_vec() };
    let of = move |dtype| {
        let of = move |shape| [false, true].map(|whole| case(dtype, shape, whole, with_norm));
        shapes.clone().into_iter().flat_map(of)
    };
    [Dtype::F32, Dtype::F16].into_iter().flat_map(of).collect()
}

fn timings(with_norm: bool, workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let (experts, chosen) = config
        .experts
        .as_ref()
        .map_or((128, 8), |experts| (experts.num_experts, experts.num_experts_per_tok));
    let dtype = precise_dtype(workload.dtype);
    let shape = |n| [n, config.hidden_size, experts, chosen];
    workload.rows.iter().map(|&n| case(dtype, shape(n), true, with_norm)).collect()
}

fn case(dtype: Dtype, shape: Shape, renormalise: bool, with_norm: bool) -> Case {
    let [n, cols, experts, chosen] = shape;
    let residual = if with_norm { 4 } else { 0 };
    let bytes = n * (cols * (dtype.size() + residual) + 8 * chosen) + experts * cols * 4;
    let whole = if renormalise { ", renormalised" } else { "" };
    Case {
        dtype,
        shape: format!("[{n}, {cols}] to {chosen} of {experts} experts{whole}"),
        work: n * experts * cols,
        cost: Cost { bytes: bytes as f64, flops: 2.0 * (n * experts * cols) as f64 },
        config: config(shape),
        prepare: Box::new(move |ops, seed| {
            Ok(Box::new(Route::new(ops, seed, shape, renormalise, with_norm)?))
        }),
    }
}

/// What operations are made for.
fn config([n, hidden_size, num_experts, num_experts_per_tok]: Shape) -> OpsConfig {
    let experts =
        Some(ExpertsConfig { num_experts, num_experts_per_tok, hidden_size, moe_intermediate_size: 1 });
    let mut config = OpsConfig { experts, ..plain_config() };
    config.limits.max_num_tokens = n;
    config
}

struct Route {
    shape: Shape,
    /// The residual stream, and what norms it.
    normed: Option<(Tensor, RmsNorm<DeviceBuffer<f32>>)>,
    /// What is to be routed.
    host_x: Vec<f32>,
    /// For each row the probability of each expert; NaN for a row that has one.
    expected: Vec<Vec<f64>>,
    x: Activation,
    router: Router<DeviceBuffer<f32>>,
    out: Tensor,
}

impl Route {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape, renormalise: bool, with_norm: bool) -> Result<Self> {
        let [n, cols, experts, chosen] = shape;
        let name = format!("route {shape:?}");
        let mut host_x = rounded(ops.dtype(), random(seed, &name, n * cols));
        if n > 1 {
            // A row that is no number goes to experts that exist.
            host_x[n * cols - 1] = f32::NAN;
        }
        let normed = if with_norm {
            let norm = random(seed, &format!("{name}: norm"), cols);
            let residual = tensor(ops, n, cols, &host_x)?;
            host_x = normed_rows(&host_x, &norm, ops.dtype());
            Some((residual, RmsNorm { weight: ops.load_vector(&norm)?, eps: EPS }))
        } else {
            None
        };
        let scale = 2.0 / (cols as f32).sqrt();
        let weight = random(seed, &format!("{name}: router"), experts * cols);
        let weight: Vec<f32> = weight.iter().map(|value| value * scale).collect();
        let row = |x: &[f32]| {
            let logit = |w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
            let logits: Vec<f64> = weight.chunks(cols).map(logit).collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
            logits.iter().map(|logit| (logit - max).exp() / sum).collect()
        };
        Ok(Self {
            shape,
            expected: host_x.chunks(cols).map(row).collect(),
            x: activation(ops, n, cols, &host_x)?,
            host_x,
            normed,
            router: Router {
                weight: ops.load_vector(&weight)?,
                num_experts: experts,
                num_experts_per_tok: chosen,
                renormalise,
            },
            out: poisoned(ops, n, 2 * chosen)?,
        })
    }
}

impl Instance for Route {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        if self.normed.is_some() {
            fill_activation(&mut self.x, &[])?;
        }
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let n = self.n();
        match &self.normed {
            None => ops.route(n, &self.x, &self.router, &mut self.out),
            Some((x, norm)) => ops.fused_norm_route(n, x, norm, &self.router, &mut self.x, &mut self.out),
        }
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, cols, experts, count] = self.shape;
        if self.normed.is_some() {
            self.compare_normed(findings)?;
        }
        let found = self.out.to_host()?;
        // A sum of `cols` terms whose magnitudes add up to about 2 √cols: what a logit is off, and so the logarithm of a probability;
        // sixteen roundings of exponential, sum and quotients besides.
        let relative = 2.0 * (cols as f64 + 16.0).sqrt() * (cols as f64 / 32.0 + 8.0) * unit(Dtype::F32);
        let relative = relative + 16.0 * unit(Dtype::F32);
        // What is routed is rounded once more, sometimes to a neighbour: √cols such values of 2 / √cols each.
        let relative = if self.normed.is_some() { relative + 8.0 * unit(self.x.dtype()) } else { relative };
        for (i, (row, expected)) in found.chunks(2 * count).zip(&self.expected).enumerate() {
            let (numbers, weights) = row.split_at(count);
            let exist = numbers.iter().all(|&number| (0.0..experts as f32).contains(&number));
            let ascend = exist && numbers.is_sorted_by(|a, b| a < b);
            findings.expect(ascend, || {
                format!("row {i}: expected different experts in order, found {numbers:?}")
            });
            if !ascend {
                continue;
            }
            if expected.iter().any(|share| share.is_nan()) {
                let lost = weights.iter().all(|weight| weight.is_nan());
                findings.expect(lost, || format!("row {i}: expected no numbers, found {weights:?}"));
                continue;
            }
            let shares: Vec<f64> = numbers.iter().map(|&number| expected[number as usize]).collect();
            let mut ordered = expected.clone();
            ordered.sort_unstable_by(|a, b| b.total_cmp(a));
            // Of probabilities that are as good as equal either may be chosen.
            let likeliest = shares.iter().all(|&share| share >= ordered[count - 1] * (1.0 - 2.0 * relative));
            findings.expect(likeliest, || format!("row {i}: experts {numbers:?} are not the likeliest"));
            let whole = if self.router.renormalise { shares.iter().sum() } else { 1.0 };
            findings.places("weights", weights.iter().copied().enumerate(), |j| {
                (shares[j] / whole, shares[j] / whole * 2.0 * relative)
            });
        }
        findings.guard_intact("chosen", &found[n * 2 * count..]);
        Ok(())
    }
}

/// The norms of rows in f64, rounded to `dtype`.
fn normed_rows(x: &[f32], norm: &[f32], dtype: Dtype) -> Vec<f32> {
    let rows = x.chunks(norm.len()).flat_map(|row| normed(row, norm));
    rounded(dtype, rows.map(|value| value as f32).collect())
}

impl Route {
    fn compare_normed(&self, findings: &mut Findings) -> Result<()> {
        let found = self.x.to_host()?;
        let (values, guard) = found.split_at(self.host_x.len());
        // As it was rounded here, or its neighbour; and sixteen roundings of the norm.
        let roundings = 2.0 * unit(self.x.dtype()) + 16.0 * unit(Dtype::F32);
        let numbers = values.iter().copied().enumerate().filter(|&(i, _)| !self.host_x[i].is_nan());
        findings.places("normed", numbers, |i| {
            let expected = f64::from(self.host_x[i]);
            (expected, expected.abs() * roundings + smallest(self.x.dtype()))
        });
        findings.guard_intact("normed", guard);
        Ok(())
    }

    fn n(&self) -> usize {
        self.shape[0]
    }
}
