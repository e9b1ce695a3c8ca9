//! The rows that need logits.

use super::{LIMITS, ragged};
use crate::batch::BatchLimits;
use crate::cuda::{CudaBatch, CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::pages_for;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "gather_rows", checks, timings };

fn checks() -> Vec<Case> {
    let n = ragged(0, 10, 8).num_tokens();
    let logit_rows = [vec![0], vec![0, 1, 7, 111, n as u32 - 1], (0..n as u32).collect()];
    let of = |cols| logit_rows.clone().map(|logit_rows| case(n, cols, logit_rows));
    COLUMNS.into_iter().flat_map(of).collect()
}

/// All rows of a step, as when every sequence generates.
fn timings(workload: &Workload) -> Vec<Case> {
    let of = |&n: &usize| case(n, workload.config.hidden_size, (0..n as u32).collect());
    workload.rows.iter().map(of).collect()
}

fn case(n: usize, cols: usize, logit_rows: Vec<u32>) -> Case {
    let count = logit_rows.len();
    Case {
        dtype: Dtype::F32,
        shape: format!("{count} of [{n}, {cols}]"),
        work: count * cols,
        cost: Cost { bytes: (count * (8 * cols + 4)) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let x = random(seed, &format!("gather_rows [{n}, {cols}]"), n * cols);
            let expected =
                logit_rows.iter().flat_map(|&row| x[row as usize * cols..][..cols].to_vec()).collect();
            let batch = if n == ragged(0, 10, 8).num_tokens() {
                let mut host = ragged(seed, 10, 8);
                host.logit_rows = logit_rows.clone();
                let mut batch = ops.new_batch(&LIMITS)?;
                ops.upload(&host, &mut batch)?;
                batch
            } else {
                let max_blocks = pages_for(n);
                let limits =
                    BatchLimits { max_num_tokens: n, max_num_sequences: 1, max_num_logits: n, max_blocks };
                let pages: Vec<u32> = (0..max_blocks as u32).collect();
                let (mut host, mut batch) = super::batch_of(ops, &limits, &[(n, 0, &pages)])?;
                host.logit_rows = logit_rows.clone();
                ops.upload(&host, &mut batch)?;
                batch
            };
            let (x, out) = (tensor(ops, n, cols, &x)?, poisoned(ops, logit_rows.len(), cols)?);
            Ok(Box::new(GatherRows { batch, expected, x, out }))
        }),
    }
}

struct GatherRows {
    batch: CudaBatch,
    expected: Vec<f32>,
    x: Tensor,
    out: Tensor,
}

impl Instance for GatherRows {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.gather_rows(&self.batch, &self.x, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // Copied: the same bits.
        findings.same_bits("out", &self.out.to_host()?, &self.expected);
        Ok(())
    }
}
