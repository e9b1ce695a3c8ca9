//! The gated activation of the MLP.

use crate::cuda::{Activation, CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "silu_mul", checks, timings };

fn checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for n in [1, 19, 111] {
            cases.extend(COLUMNS.map(|cols| case(dtype, n, cols)));
        }
    }
    cases
}

fn timings(workload: &Workload) -> Vec<Case> {
    workload.rows.iter().map(|&n| case(workload.dtype, n, workload.config.intermediate_size)).collect()
}

fn case(dtype: Dtype, n: usize, cols: usize) -> Case {
    let values = (n * cols) as f64;
    Case {
        dtype,
        shape: format!("[{n}, {cols}]"),
        work: n * cols,
        // An exponential and a quotient count as one each.
        cost: Cost { bytes: values * (8 + dtype.size()) as f64, flops: 5.0 * values },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("silu_mul [{n}, {cols}]");
            // Wide enough for both tails of the exponential.
            let mut gate: Vec<f32> = random(seed, &name, n * cols).iter().map(|value| value * 8.0).collect();
            gate[0] = -100.0;
            let up = random(seed, &format!("{name}: up"), n * cols);
            let silu = |gate: f64| gate / (1.0 + (-gate).exp());
            let expected = gate.iter().zip(&up).map(|(&g, &u)| silu(f64::from(g)) * f64::from(u)).collect();
            Ok(Box::new(SiluMul {
                n,
                dtype,
                expected,
                gate: tensor(ops, n, cols, &gate)?,
                up: tensor(ops, n, cols, &up)?,
                out: poisoned_activation(ops, n, cols)?,
            }))
        }),
    }
}

struct SiluMul {
    n: usize,
    dtype: Dtype,
    expected: Vec<f64>,
    gate: Tensor,
    up: Tensor,
    out: Activation,
}

impl Instance for SiluMul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.silu_mul(self.n, &self.gate, &self.up, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let dtype = self.dtype;
        // The last rounding, and before it 2^-20 for an exponential that is good to two units in the last place of an
        // argument up to 40. Below the normal numbers of f32 a result may become zero.
        findings.close("out", &self.out.to_host()?, &self.expected, |_, expected| {
            expected.abs() * (unit(dtype) + 2f64.powi(-20)) + smallest(dtype) + 2f64.powi(-126)
        });
        Ok(())
    }
}
