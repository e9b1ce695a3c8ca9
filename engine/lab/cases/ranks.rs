//! What ranks tell each other: the sum, and columns side by side. All ranks are on one device, in one launch.

use crate::cuda::{CudaOps, Ranks, Room, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use std::time::Duration;

pub const ADD: Cases =
    Cases { op: "add_ranks", checks: || checks(Kind::Add), timings: |of| timings(Kind::Add, of) };
pub const GATHER: Cases =
    Cases { op: "gather_ranks", checks: || checks(Kind::Gather), timings: |of| timings(Kind::Gather, of) };

/// How often the ranks tell each other something in a launch of a case: slots are used again, and more than once.
const ROUNDS: usize = 3;
/// Longer than an emulator takes.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Add,
    Gather,
}

/// Ranks, rows and columns, and how many values slots have room for; chunks are whole.
type Shape = ([usize; 3], usize);

fn checks(kind: Kind) -> Vec<Case> {
    let shapes: [Shape; 8] = [
        ([2, 1, 1], 1),
        ([2, 1, 989], 989),
        ([3, 2, 111], 100),
        ([4, 3, 333], 1000),
        ([8, 1, 72], 72),
        ([8, 19, 40], 304),
        // Several exchanges of chunks, and several chunks a block.
        ([2, 1, 8192], 4096),
        ([2, 3, 14_196], 50_000),
    ];
    shapes.map(|shape| case(kind, shape)).into()
}

fn timings(kind: Kind, workload: &Workload) -> Vec<Case> {
    let cols = match kind {
        Kind::Add => workload.config.hidden_size,
        Kind::Gather => workload.config.vocab_size / 2,
    };
    workload.rows.iter().map(|&n| case(kind, ([2, n, cols], (n * cols).min(1 << 20)))).collect()
}

fn case(kind: Kind, ([ranks, n, cols], room): Shape) -> Case {
    let values = ranks * n * cols;
    Case {
        dtype: Dtype::F32,
        shape: format!("{ranks} ranks of [{n}, {cols}], {room} at once"),
        work: values,
        cost: Cost { bytes: (ROUNDS * 8 * ranks * values) as f64, flops: (ROUNDS * ranks * values) as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let name = format!("{ranks} ranks of [{n}, {cols}]");
            let part = random(seed, &name, values);
            let x = random(seed, &format!("{name}: x"), values);
            let of_rank = |r: usize, i: usize| part[r * n * cols + i];
            let expected = match kind {
                Kind::Add => {
                    let sum = |i| (0..ranks).fold(0.0, |sum, r| sum + of_rank(r, i));
                    // Behind the first round all parts are 0.
                    (0..values).map(|i| x[i] + sum(i % (n * cols))).collect()
                }
                Kind::Gather => {
                    let of_row = |row: usize| {
                        (0..ranks * cols).map(move |column| (column / cols, row * cols + column % cols))
                    };
                    let once: Vec<f32> = (0..n).flat_map(of_row).map(|(r, i)| of_rank(r, i)).collect();
                    once.repeat(ranks)
                }
            };
            let device = ops.device().clone();
            let slots = Room { words: room, chunks: room.div_ceil(4096) };
            Ok(Box::new(Exchange {
                kind,
                n,
                expected,
                of_part: part.clone(),
                of_x: x.clone(),
                part: tensor(ops, ranks * n, cols, &part)?,
                out: match kind {
                    Kind::Add => tensor(ops, ranks * n, cols, &x)?,
                    Kind::Gather => poisoned(ops, ranks * n, ranks * cols)?,
                },
                ranks: Ranks::on_one_device(&device, ranks, slots, LIMIT)?,
            }))
        }),
    }
}

struct Exchange {
    kind: Kind,
    n: usize,
    expected: Vec<f32>,
    of_part: Vec<f32>,
    of_x: Vec<f32>,
    part: Tensor,
    out: Tensor,
    ranks: Ranks,
}

impl Instance for Exchange {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.part, &self.of_part)?;
        match self.kind {
            Kind::Add => fill_tensor(&mut self.out, &self.of_x),
            Kind::Gather => fill_tensor(&mut self.out, &[]),
        }
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        for _ in 0..ROUNDS {
            match self.kind {
                Kind::Add => ops.add_all_ranks(&mut self.ranks, self.n, &mut self.part, &mut self.out)?,
                Kind::Gather => ops.gather_all_ranks(&mut self.ranks, self.n, &self.part, &mut self.out)?,
            }
        }
        Ok(())
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        self.ranks.expect_all()?;
        // Sums in the same order, and copies: the same bits.
        findings.same_bits("out", &self.out.to_host()?, &self.expected);
        if self.kind == Kind::Add {
            findings.same_bits("part", &self.part.to_host()?, &vec![0.0; self.of_part.len()]);
        }
        Ok(())
    }

    fn default_variant(&self) -> Option<&'static str> {
        // The first of the table is for many values.
        (self.kind == Kind::Add && self.of_part.len() < 1 << 16).then_some("plain")
    }
}
