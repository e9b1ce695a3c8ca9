//! The activation of an MLP without a gate.

use crate::cuda::{Activation, CudaOps, DeviceBuffer};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "bias_gelu", checks, timings };

/// What values of x are multiplied with, and what results are.
const SCALES: [f32; 2] = [0.5, 4.0];

/// What the operation writes and reads.
type Formats = (Dtype, Dtype);

fn checks() -> Vec<Case> {
    let formats = [
        (Dtype::F32, Dtype::F32),
        (Dtype::F16, Dtype::F16),
        (Dtype::F16, Dtype::F32),
        (Dtype::Bf16, Dtype::F32),
    ];
    let mut cases = Vec::new();
    for formats in formats {
        for (n, bias) in [(1, true), (19, false), (111, true)] {
            cases.extend(COLUMNS.map(|cols| case(formats, n, cols, bias)));
        }
    }
    cases
}

/// In the formats that the engine has where the library multiplies.
fn timings(workload: &Workload) -> Vec<Case> {
    let dtype = crate::cuda::precise_dtype(workload.dtype);
    workload.rows.iter().map(|&n| case((dtype, dtype), n, workload.config.intermediate_size, true)).collect()
}

fn case((dtype, x_dtype): Formats, n: usize, cols: usize, bias: bool) -> Case {
    let values = (n * cols) as f64;
    let from = if x_dtype == dtype { String::new() } else { format!("from {x_dtype} ") };
    Case {
        dtype,
        shape: format!("{from}[{n}, {cols}]{}", if bias { "" } else { " without bias" }),
        work: n * cols,
        // An exponential and a quotient count as one each.
        cost: Cost { bytes: values * (x_dtype.size() + dtype.size()) as f64, flops: 8.0 * values },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            Ok(Box::new(Gelu::new(ops, seed, (dtype, x_dtype), n, cols, bias)?))
        }),
    }
}

struct Gelu {
    n: usize,
    dtype: Dtype,
    /// For each value what it should be and what it may be off before the last rounding.
    expected: Vec<(f64, f64)>,
    x: Activation,
    bias: Option<DeviceBuffer<f32>>,
    out: Activation,
}

impl Gelu {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        (dtype, x_dtype): Formats,
        n: usize,
        cols: usize,
        bias: bool,
    ) -> Result<Self> {
        let name = format!("bias_gelu [{n}, {cols}]");
        // Wide enough for both tails of the exponential, and for what f16 cannot hold: results beyond its range, and inputs
        // that a product left infinite.
        let values = random(seed, &name, n * cols);
        let mut values: Vec<f32> = values.iter().map(|value| value * 3.0).collect();
        for (value, special) in values.iter_mut().zip([-100.0, 1e6, -1e6, 0.0, 12.0]) {
            *value = special;
        }
        let values = rounded(x_dtype, values);
        let host_bias = bias.then(|| random(seed, &format!("{name}: bias"), cols));
        let within =
            |dtype, value: f64| if dtype == Dtype::F16 { value.clamp(-65504.0, 65504.0) } else { value };
        let of = |(i, &value): (usize, &f32)| {
            let bias = host_bias.as_ref().map_or(0.0, |bias| f64::from(bias[i % cols]));
            let scaled = within(x_dtype, f64::from(value)) * f64::from(SCALES[0]);
            let v = scaled + bias;
            let half_slope = (2.0 / std::f64::consts::PI).sqrt();
            let inner = half_slope * (v + 0.044715 * v.powi(3));
            // 2^-20 for an exponential that is good to two units in the last place of an argument up to 40, for the rounding of
            // that argument, and for the sum with the bias where it cancels.
            let sum = (scaled.abs() + bias.abs()) * f64::from(SCALES[1]) * unit(Dtype::F32);
            let gelu = v / (1.0 + (-2.0 * inner).exp()) * f64::from(SCALES[1]);
            (within(dtype, gelu), gelu.abs() * 2f64.powi(-19) + 2.0 * sum)
        };
        let expected = values.iter().enumerate().map(of).collect();
        let mut x = ops.new_product(n + GUARD_ROWS, cols)?;
        x.set_dtype(x_dtype)?;
        fill_activation(&mut x, &values)?;
        let mut out = ops.new_product(n + GUARD_ROWS, cols)?;
        out.set_dtype(dtype)?;
        fill_activation(&mut out, &[])?;
        let bias = host_bias.map(|bias| ops.load_vector(&bias)).transpose()?;
        Ok(Self { n, dtype, expected, x, bias, out })
    }
}

impl Instance for Gelu {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.scaled_bias_gelu(self.n, &self.x, self.bias.as_ref(), SCALES, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        let (values, guard) = found.split_at(self.expected.len());
        let (dtype, expected) = (self.dtype, &self.expected);
        findings.places("out", values.iter().copied().enumerate(), |i| {
            let (value, off) = expected[i];
            (value, off + value.abs() * unit(dtype) + smallest(dtype) + 2f64.powi(-126))
        });
        findings.guard_intact("out", guard);
        Ok(())
    }
}
