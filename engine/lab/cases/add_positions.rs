//! Learned positions.

use super::{LIMITS, batch_of, ragged};
use crate::batch::BatchLimits;
use crate::cuda::{CudaBatch, CudaOps, DeviceBuffer, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::pages_for;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;

pub const CASES: Cases = Cases { op: "add_positions", checks, timings };

/// Rows of the table: as many as the ragged batch needs, whose last position is 115.
const MAX_POSITIONS: usize = 116;

fn checks() -> Vec<Case> {
    COLUMNS.map(|cols| case(131, cols, None)).into()
}

/// A prompt of as many tokens as a step has rows.
fn timings(workload: &Workload) -> Vec<Case> {
    workload.rows.iter().map(|&n| case(n, workload.config.hidden_size, Some(n))).collect()
}

/// `n` rows of a ragged batch, or of a prompt.
fn case(n: usize, cols: usize, prompt: Option<usize>) -> Case {
    Case {
        dtype: Dtype::F32,
        shape: format!("[{n}, {cols}]"),
        work: n * cols,
        cost: Cost { bytes: (n * (12 * cols + 4)) as f64, flops: (n * cols) as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("add_positions [{n}, {cols}]");
            let (host, batch) = match prompt {
                Some(n) => {
                    let max_blocks = pages_for(n);
                    let limits = BatchLimits {
                        max_num_tokens: n,
                        max_num_sequences: 1,
                        max_num_logits: n,
                        max_blocks,
                    };
                    let pages: Vec<u32> = (0..max_blocks as u32).collect();
                    batch_of(ops, &limits, &[(n, 0, &pages)])?
                }
                None => {
                    let host = ragged(seed, 10, 8);
                    let mut batch = ops.new_batch(&LIMITS)?;
                    ops.upload(&host, &mut batch)?;
                    (host, batch)
                }
            };
            let max_positions = prompt.unwrap_or(MAX_POSITIONS);
            let table = random(seed, &format!("{name}: table"), max_positions * cols);
            let input = random(seed, &name, n * cols);
            let row = |(x, &position): (&[f32], &u32)| -> Vec<f32> {
                x.iter().zip(&table[position as usize * cols..]).map(|(x, value)| x + value).collect()
            };
            let expected = input.chunks(cols).zip(&host.positions).flat_map(row).collect();
            let (x, table) = (tensor(ops, n, cols, &input)?, ops.load_vector(&table)?);
            Ok(Box::new(AddPositions { positions: host.positions, batch, table, input, expected, x }))
        }),
    }
}

struct AddPositions {
    positions: Vec<u32>,
    batch: CudaBatch,
    table: DeviceBuffer<f32>,
    input: Vec<f32>,
    expected: Vec<f32>,
    x: Tensor,
}

impl Instance for AddPositions {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.add_positions(&self.batch, &self.table, &mut self.x)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // One correctly rounded addition: the same bits.
        findings.same_bits("x", &self.x.to_host()?, &self.expected);

        let last = self.positions.iter().copied().max().unwrap_or(0) as usize;
        let short = ops.load_vector(&vec![0.0; last.max(1) * self.x.cols()])?;
        let refused = ops.add_positions(&self.batch, &short, &mut self.x).is_err();
        findings.expect(refused == (last > 0), || "a position behind the table was not refused".into());
        Ok(())
    }
}
