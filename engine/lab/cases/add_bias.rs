//! A bias that is added to rows.

use crate::cuda::{CudaOps, DeviceBuffer, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases {
    op: "add_bias",
    checks: || ROWS.iter().flat_map(|&n| COLUMNS.map(|cols| case(n, cols))).collect(),
    timings: |workload| workload.rows.iter().map(|&n| case(n, workload.config.hidden_size)).collect(),
};

fn case(n: usize, cols: usize) -> Case {
    let values = n * cols;
    Case {
        dtype: Dtype::F32,
        shape: format!("[{n}, {cols}]"),
        work: values,
        cost: Cost { bytes: (8 * values + 4 * cols) as f64, flops: values as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("add_bias [{n}, {cols}]");
            let input = random(seed, &name, values);
            let bias = random(seed, &format!("{name}: bias"), cols);
            let expected = input.chunks(cols).flat_map(|row| row.iter().zip(&bias).map(|(x, bias)| x + bias));
            let expected = expected.collect();
            let (x, bias) = (tensor(ops, n, cols, &input)?, ops.load_vector(&bias)?);
            Ok(Box::new(AddBias { n, input, expected, x, bias }))
        }),
    }
}

struct AddBias {
    n: usize,
    input: Vec<f32>,
    expected: Vec<f32>,
    x: Tensor,
    bias: DeviceBuffer<f32>,
}

impl Instance for AddBias {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.add_bias(self.n, &self.bias, &mut self.x)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // One correctly rounded addition: the same bits.
        findings.same_bits("x", &self.x.to_host()?, &self.expected);
        Ok(())
    }
}
