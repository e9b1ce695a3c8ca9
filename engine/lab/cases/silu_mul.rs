//! The gated activation of the MLP.

use crate::cuda::{Activation, CudaOps};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "silu_mul", checks, timings };

/// What gate and up are multiplied with first.
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
        for n in [1, 19, 111] {
            cases.extend(COLUMNS.map(|cols| case(formats, n, cols)));
        }
    }
    cases
}

/// In the formats that the engine has where the library multiplies.
fn timings(workload: &Workload) -> Vec<Case> {
    let dtype = crate::cuda::precise_dtype(workload.dtype);
    workload.rows.iter().map(|&n| case((dtype, dtype), n, workload.config.intermediate_size)).collect()
}

fn case((dtype, x_dtype): Formats, n: usize, cols: usize) -> Case {
    let values = (n * cols) as f64;
    let from = if x_dtype == dtype { String::new() } else { format!("from {x_dtype} ") };
    Case {
        dtype,
        shape: format!("{from}[{n}, 2 * {cols}]"),
        work: n * cols,
        // An exponential and a quotient count as one each.
        cost: Cost { bytes: values * (2 * x_dtype.size() + dtype.size()) as f64, flops: 5.0 * values },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(SiluMul::new(ops, seed, (dtype, x_dtype), n, cols)?))),
    }
}

struct SiluMul {
    n: usize,
    formats: Formats,
    expected: Vec<f64>,
    gate_up: Activation,
    out: Activation,
}

impl SiluMul {
    fn new(ops: &mut CudaOps, seed: u64, formats: Formats, n: usize, cols: usize) -> Result<Self> {
        let (dtype, x_dtype) = formats;
        let name = format!("silu_mul [{n}, {cols}]");
        // Wide enough for both tails of the exponential, and for what f16 cannot hold: results beyond its range, and inputs
        // that a product left infinite.
        let values = random(seed, &name, 2 * n * cols);
        let mut values: Vec<f32> = values.iter().map(|value| value * 8.0).collect();
        let special = [(-100.0, 1.0), (300.0, -300.0), (1e6, 2.0), (-1e6, 3.0), (1e6, -1e6)];
        for (i, (gate, up)) in special.into_iter().enumerate().take(cols) {
            (values[i], values[cols + i]) = (gate, up);
        }
        let values = rounded(x_dtype, values);
        let within =
            |dtype, value: f64| if dtype == Dtype::F16 { value.clamp(-65504.0, 65504.0) } else { value };
        let expected = values.chunks(2 * cols).flat_map(|row| {
            let (gate, up) = row.split_at(cols);
            let input = move |value: &f32, scale: f32| within(x_dtype, f64::from(*value)) * f64::from(scale);
            gate.iter().zip(up).map(move |(gate, up)| {
                let (gate, up) = (input(gate, SCALES[0]), input(up, SCALES[1]));
                within(dtype, gate / (1.0 + (-gate).exp()) * up)
            })
        });
        let expected = expected.collect();
        let mut gate_up = ops.new_product(n + GUARD_ROWS, 2 * cols)?;
        gate_up.set_dtype(x_dtype)?;
        fill_activation(&mut gate_up, &values)?;
        let mut out = poisoned_activation(ops, n, cols)?;
        if out.dtype() != dtype {
            out = ops.new_precise_activation(n + GUARD_ROWS, cols)?;
            fill_activation(&mut out, &[])?;
        }
        Ok(Self { n, formats, expected, gate_up, out })
    }
}

impl Instance for SiluMul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.scaled_silu_mul(self.n, &self.gate_up, SCALES, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let dtype = self.formats.0;
        // The last rounding, and before it 2^-20 for an exponential that is good to two units in the last place of an
        // argument up to 40. Below the normal numbers of f32 a result may become zero.
        findings.close("out", &self.out.to_host()?, &self.expected, |_, expected| {
            expected.abs() * (unit(dtype) + 2f64.powi(-20)) + smallest(dtype) + 2f64.powi(-126)
        });
        Ok(())
    }
}
