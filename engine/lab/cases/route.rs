//! Which experts a row goes to, and with what weights.

use crate::cuda::{Activation, CudaOps, DeviceBuffer, Tensor, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::ops::parts::Router;

pub const CASES: Cases = Cases { op: "route", checks, timings };

/// `[n, hidden_size, experts, chosen of them]`
type Shape = [usize; 4];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 6] =
        [[1, 64, 8, 2], [19, 111, 60, 4], [3, 256, 128, 8], [2, 32, 512, 10], [5, 19, 32, 32], [2, 1, 1, 1]];
    let of = |dtype| {
        SHAPES.into_iter().flat_map(move |shape| [false, true].map(|whole| case(dtype, shape, whole)))
    };
    [Dtype::F32, Dtype::F16].into_iter().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let (experts, chosen) = config
        .experts
        .as_ref()
        .map_or((128, 8), |experts| (experts.num_experts, experts.num_experts_per_tok));
    let dtype = precise_dtype(workload.dtype);
    workload.rows.iter().map(|&n| case(dtype, [n, config.hidden_size, experts, chosen], true)).collect()
}

fn case(dtype: Dtype, shape: Shape, renormalise: bool) -> Case {
    let [n, cols, experts, chosen] = shape;
    let bytes = n * (cols * dtype.size() + 8 * chosen) + experts * cols * 4;
    let whole = if renormalise { ", renormalised" } else { "" };
    Case {
        dtype,
        shape: format!("[{n}, {cols}] to {chosen} of {experts} experts{whole}"),
        work: n * experts * cols,
        cost: Cost { bytes: bytes as f64, flops: 2.0 * (n * experts * cols) as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Route::new(ops, seed, shape, renormalise)?))),
    }
}

struct Route {
    shape: Shape,
    /// For each row the probability of each expert; NaN for a row that has one.
    expected: Vec<Vec<f64>>,
    x: Activation,
    router: Router<DeviceBuffer<f32>>,
    out: Tensor,
}

impl Route {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape, renormalise: bool) -> Result<Self> {
        let [n, cols, experts, chosen] = shape;
        let name = format!("route {shape:?}");
        let mut host_x = rounded(ops.dtype(), random(seed, &name, n * cols));
        if n > 1 {
            // A row that is no number goes to experts that exist.
            host_x[n * cols - 1] = f32::NAN;
        }
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
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.route(self.n(), &self.x, &self.router, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, cols, experts, count] = self.shape;
        let found = self.out.to_host()?;
        // A sum of `cols` terms whose magnitudes add up to about 2 √cols: what a logit is off, and so the logarithm of a probability;
        // sixteen roundings of exponential, sum and quotients besides.
        let relative = 2.0 * (cols as f64 + 16.0).sqrt() * (cols as f64 / 32.0 + 8.0) * unit(Dtype::F32);
        let relative = relative + 16.0 * unit(Dtype::F32);
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

impl Route {
    fn n(&self) -> usize {
        self.shape[0]
    }
}
