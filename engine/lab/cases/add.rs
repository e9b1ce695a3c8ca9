//! The residual addition.

use crate::cuda::{CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;

pub const CASES: Cases = Cases {
    op: "add",
    checks: || ROWS.iter().flat_map(|&n| COLUMNS.map(|cols| case(n, cols))).collect(),
    timings: |workload| workload.rows.iter().map(|&n| case(n, workload.config.hidden_size)).collect(),
};

fn case(n: usize, cols: usize) -> Case {
    let values = (n * cols) as f64;
    Case {
        dtype: Dtype::F32,
        shape: format!("[{n}, {cols}]"),
        work: n * cols,
        cost: Cost { bytes: 12.0 * values, flops: values },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("add [{n}, {cols}]");
            let input = random(seed, &name, n * cols);
            let delta = random(seed, &format!("{name}: delta"), n * cols);
            let expected = input.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
            let (x, delta) = (tensor(ops, n, cols, &input)?, tensor(ops, n, cols, &delta)?);
            Ok(Box::new(Add { n, input, expected, x, delta }))
        }),
    }
}

struct Add {
    n: usize,
    input: Vec<f32>,
    expected: Vec<f32>,
    x: Tensor,
    delta: Tensor,
}

impl Instance for Add {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.add(self.n, &mut self.x, &self.delta)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // One correctly rounded addition: the same bits.
        findings.same_bits("x", &self.x.to_host()?, &self.expected);
        Ok(())
    }
}
