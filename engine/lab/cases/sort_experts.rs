//! Bringing rows that go to the same expert together.

use super::experts::{Shape, choice};
use crate::cuda::{CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;

pub const CASES: Cases = Cases { op: "sort_experts", checks, timings };

fn checks() -> Vec<Case> {
    // Rows, experts, chosen ones, rows of a group.
    const SHAPES: [[usize; 4]; 7] = [
        [1, 1, 1, 8],
        [5, 8, 2, 8],
        [19, 3, 3, 8],
        [111, 128, 8, 32],
        [300, 1000, 10, 8],
        [989, 4, 1, 32],
        [97, 3, 2, 64],
    ];
    SHAPES.into_iter().map(case).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let sizes = workload.config.experts.as_ref();
    let (experts, chosen) = sizes.map_or((128, 8), |sizes| (sizes.num_experts, sizes.num_experts_per_tok));
    let rows_of_group = |n: usize| match n * chosen / experts {
        0..8 => 8,
        8..64 => 64,
        _ => 128,
    };
    workload.rows.iter().map(|&n| case([n, experts, chosen, rows_of_group(n)])).collect()
}

fn case([n, num_experts, chosen, rows_of_group]: [usize; 4]) -> Case {
    let shape = Shape { n, num_experts, chosen, hidden_size: 4, intermediate_size: 1 };
    Case {
        dtype: Dtype::F32,
        shape: format!("[{n}] to {chosen} of {num_experts} experts, groups of {rows_of_group}"),
        work: 10 * n * chosen + num_experts,
        cost: Cost { bytes: 8.0 * (n * chosen) as f64, flops: 0.0 },
        config: shape.config(),
        prepare: Box::new(move |ops, seed| {
            let host = choice(seed, &shape);
            Ok(Box::new(Sort { shape, rows_of_group, chosen: tensor(ops, n, 2 * chosen, &host)?, host }))
        }),
    }
}

struct Sort {
    shape: Shape,
    rows_of_group: usize,
    host: Vec<f32>,
    chosen: Tensor,
}

impl Instance for Sort {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.chosen, &self.host)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.sort_experts_in_groups(self.shape.n, &self.chosen, self.rows_of_group)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let Shape { n, num_experts, chosen, .. } = self.shape;
        let [groups, order] = ops.sorted_experts()?;
        let mut of_experts = vec![Vec::new(); num_experts];
        for pair in 0..n * chosen {
            of_experts[self.host[pair / chosen * 2 * chosen + pair % chosen] as usize].push(pair as u32);
        }
        // By expert, and then by where they begin.
        let mut found = groups[1..].chunks(3).take(groups[0] as usize);
        for (expert, pairs) in of_experts.iter().enumerate() {
            let mut all = Vec::new();
            for size in pairs.chunks(self.rows_of_group).map(<[u32]>::len) {
                let group = found.next().unwrap_or(&[]);
                let is_this =
                    matches!(group, &[e, _, count] if (e as usize, count as usize) == (expert, size));
                findings.expect(is_this, || {
                    format!("expected a group of {size} rows of expert {expert}, found {group:?}")
                });
                if let (true, &[_, first, count]) = (is_this, group) {
                    findings.expect(self.rows_of_group < 64 || first % 8 == 0, || {
                        format!("expected a group that begins at a multiple of 8, found {group:?}")
                    });
                    all.extend_from_slice(&order[first as usize..][..count as usize]);
                }
            }
            all.sort_unstable();
            findings.expect(all == *pairs, || {
                format!("expected the pairs {pairs:?} of expert {expert}, found {all:?}")
            });
        }
        findings.expect(found.next().is_none(), || "there are more groups than expected".into());
        Ok(())
    }
}
