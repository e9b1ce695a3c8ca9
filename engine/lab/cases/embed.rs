//! Rows of the embedding.

use super::blocks::{matrix, scale_of};
use super::{LIMITS, ragged};
use crate::batch::{Batch, BatchLimits, GIVEN, LogitRows, SequenceRows};
use crate::cuda::{CudaBatch, CudaOps, Tensor, Weight};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::pages_for;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::sampler::{SamplingParams, SamplingRow};
use crate::testing::Random;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "embed", checks, timings };

fn checks() -> Vec<Case> {
    const VOCAB_SIZE: usize = 989;
    let host = |seed| ragged(seed, VOCAB_SIZE, 8);
    let of = |format: MatrixFormat| {
        // Rows are whole blocks.
        let columns = COLUMNS.into_iter().filter(move |&cols| format.row_bytes(cols).is_some());
        columns.map(move |cols| case(format, VOCAB_SIZE, cols, 131, LIMITS, Box::new(host)))
    };
    MatrixFormat::ALL.iter().copied().flat_map(of).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let (vocab_size, cols) = (workload.config.vocab_size, workload.config.hidden_size);
    let of = |&n: &usize| {
        let max_blocks = pages_for(n);
        let limits = BatchLimits { max_num_tokens: n, max_num_sequences: 1, max_num_logits: 1, max_blocks };
        let host = move |seed| {
            let mut random = Random::new(seed, "tokens");
            let tokens: Vec<u32> = (0..n).map(|_| (random.next_u64() % vocab_size as u64) as u32).collect();
            let pages: Vec<u32> = (0..max_blocks as u32).collect();
            let logits = LogitRows::Last;
            Batch::new(&[SequenceRows { tokens: &tokens, position: 0, pages: &pages, logits }])
        };
        case(workload.dtype.into(), vocab_size, cols, n, limits, Box::new(host))
    };
    workload.rows.iter().map(of).collect()
}

fn case(
    format: MatrixFormat,
    vocab_size: usize,
    cols: usize,
    n: usize,
    limits: BatchLimits,
    host: Box<dyn Fn(u64) -> Batch>,
) -> Case {
    let kind = if format.float().is_some() { String::new() } else { format!("{format} ") };
    Case {
        dtype: format.float().unwrap_or(Dtype::F16),
        shape: format!("[{n}, {cols}] of {kind}[{vocab_size}, {cols}]"),
        work: n * cols,
        cost: Cost { bytes: (n * (format.row_bytes(cols).unwrap_or(0) + 4 * cols + 4)) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("embed [{vocab_size}, {cols}]");
            let (weight, table) = matrix(ops, format, &name, seed, [vocab_size, cols], scale_of(format))?;
            let mut host = host(seed);
            let sampled = draw(ops, seed, vocab_size)?;
            // Every third row takes its token from the device.
            for (i, row) in host.sampled_rows.iter_mut().enumerate().skip(1).step_by(3) {
                *row = (i % sampled.len()) as u32;
            }
            let mut batch = ops.new_batch(&limits)?;
            ops.upload(&host, &mut batch)?;
            let row = |(&given, &row): (&u32, &u32)| {
                let token = if row == GIVEN { given } else { sampled[row as usize] };
                table[token as usize * cols..][..cols].to_vec()
            };
            Ok(Box::new(Embed {
                vocab_size,
                expected: host.tokens.iter().zip(&host.sampled_rows).flat_map(row).collect(),
                table: weight,
                out: poisoned(ops, host.num_tokens(), cols)?,
                host,
                batch,
            }))
        }),
    }
}

/// Draws a few tokens that are known: of each row of logits one is larger than the others.
fn draw(ops: &mut CudaOps, seed: u64, vocab_size: usize) -> Result<Vec<u32>> {
    const ROWS: usize = 5;
    let mut random = Random::new(seed, "drawn tokens");
    let tokens: Vec<u32> = (0..ROWS).map(|_| (random.next_u64() % vocab_size as u64) as u32).collect();
    let mut values = vec![0.0; ROWS * vocab_size];
    tokens.iter().enumerate().for_each(|(row, &token)| values[row * vocab_size + token as usize] = 1.0);
    let mut logits = tensor(ops, ROWS, vocab_size, &values)?;
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let row = SamplingRow::new(params, 0);
    ops.sample(&mut logits, &vec![row; ROWS])?;
    Ok(tokens)
}

struct Embed {
    vocab_size: usize,
    host: Batch,
    batch: CudaBatch,
    table: Weight,
    expected: Vec<f32>,
    out: Tensor,
}

impl Instance for Embed {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.embed(&self.batch, &self.table, &mut self.out)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // Widening is exact: the same bits.
        findings.same_bits("out", &self.out.to_host()?, &self.expected);

        let mut outside = self.host.clone();
        let last = outside.tokens.len() - 1;
        outside.tokens[last] = self.vocab_size as u32;
        ops.upload(&outside, &mut self.batch)?;
        let refused = ops.embed(&self.batch, &self.table, &mut self.out).is_err();
        findings.expect(refused, || "a token behind the table was not refused".into());

        let mut outside = self.host.clone();
        outside.sampled_rows[last] = 1 << 20;
        ops.upload(&outside, &mut self.batch)?;
        let refused = ops.embed(&self.batch, &self.table, &mut self.out).is_err();
        findings.expect(refused, || "a row behind the last draw was not refused".into());
        ops.upload(&self.host, &mut self.batch)
    }
}
