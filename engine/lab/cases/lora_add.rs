//! What adapters add to products.

use super::batch_of;
use crate::batch::{AdapterScale, AdapterSet, BatchLimits};
use crate::cuda::{Activation, CudaBatch, CudaOps, DeviceBuffer, Tensor, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::lora::{LoraOps, Update};
use crate::ops::{Ops, Rows};

pub const CASES: Cases = Cases { op: "lora_add", checks, timings };

/// `[n, in_features, rank, out_features, first, cols]`
type Shape = [usize; 6];

/// The number of the adapter.
const ADAPTER: u32 = 2;

/// What every row is multiplied with.
const FACTOR: f32 = 1.5;

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 5] = [
        [3, 1, 1, 1, 0, 1],
        [4, 64, 8, 111, 0, 111],
        [19, 111, 3, 64, 19, 90],
        [7, 989, 16, 300, 300, 600],
        [64, 256, 5, 19, 1, 21],
    ];
    Dtype::ALL.into_iter().flat_map(|dtype| SHAPES.map(|shape| case(dtype, shape))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    const RANK: usize = 16;
    let (config, dtype) = (&workload.config, precise_dtype(workload.dtype));
    let size = config.hidden_size;
    let of = |&n: &usize| case(dtype, [n.max(3), size, RANK, size, 0, size]);
    workload.rows.iter().map(of).collect()
}

fn case(dtype: Dtype, shape: Shape) -> Case {
    let [n, in_features, rank, out_features, ..] = shape;
    let values = rank * (in_features + out_features);
    Case {
        dtype,
        shape: format!("{shape:?}"),
        work: n * values,
        cost: Cost {
            bytes: (4 * values + n * (in_features * dtype.size() + 8 * out_features)) as f64,
            flops: (2 * n * values) as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(LoraAdd::new(ops, seed, shape)?))),
    }
}

struct LoraAdd {
    n: usize,
    input: Vec<f32>,
    /// For each value what it should be and what it may be off.
    expected: Vec<(f64, f64)>,
    batch: CudaBatch,
    x: Activation,
    update: Update<DeviceBuffer<f32>>,
    out: Tensor,
}

impl LoraAdd {
    fn new(ops: &mut CudaOps, seed: u64, shape: Shape) -> Result<Self> {
        let [n, in_features, rank, out_features, first, cols] = shape;
        let (name, dtype) = (format!("lora_add {shape:?}"), ops.dtype());
        // A sequence with this adapter and another, one with none, and one with it negated.
        let rows = [n / 3, 1, n - 1 - n / 3];
        let scaled = |scale| AdapterScale { adapter: ADAPTER, scale };
        let other = AdapterScale { adapter: ADAPTER + 1, scale: 3.0 };
        let sets = [vec![scaled(0.75), other], Vec::new(), vec![scaled(-2.0)]];
        let scales: Vec<f32> =
            [0.75, 0.0, -2.0].iter().zip(rows).flat_map(|(&scale, rows)| vec![scale; rows]).collect();
        let pages: Vec<u32> = (0..96).collect();
        let limits =
            BatchLimits { max_num_tokens: 1024, max_num_sequences: 3, max_num_logits: 1, max_blocks: 32 };
        let sequences = [0, 1, 2].map(|s| (rows[s], 0, &pages[32 * s..][..32]));
        let (host, mut batch) = batch_of(ops, &limits, &sequences)?;
        ops.upload(&host.with_adapters(sets.map(|set| AdapterSet::new(&set))), &mut batch)?;

        let x = rounded(dtype, random(seed, &name, n * in_features));
        let a = random(seed, &format!("{name}: a"), rank * in_features);
        let b = random(seed, &format!("{name}: b"), out_features * rank);
        let input = random(seed, &format!("{name}: out"), n * cols);
        // A thread adds `in_features / 256` terms and ten butterfly steps follow; then `rank` terms and four products.
        let steps = in_features as f64 / 256.0 + 14.0 + rank as f64;
        let value = |i: usize, column: usize, there: f32| {
            let before = (f64::from(there), 0.0);
            if scales[i] == 0.0 || !(first..first + out_features).contains(&column) {
                return before;
            }
            let of_rank = |(a, b): (&[f32], &f32)| {
                let terms = a.iter().zip(&x[i * in_features..]).map(|(&a, &x)| f64::from(a) * f64::from(x));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                (sum * f64::from(*b), size * f64::from(b.abs()))
            };
            let b = &b[(column - first) * rank..][..rank];
            let terms = a.chunks(in_features).zip(b).map(of_rank);
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (term, of)| (sum + term, size + of));
            let factor = f64::from(scales[i] * FACTOR);
            let value = before.0 + factor * sum;
            (value, (factor.abs() * size * steps + value.abs()) * unit(Dtype::F32))
        };
        let expected = input.iter().enumerate().map(|(i, &there)| value(i / cols, i % cols, there)).collect();
        ops.reserve_rank(rank)?;
        let update = Update {
            adapter: ADAPTER,
            matrix: 0,
            first,
            out_features,
            in_features,
            rank,
            scale: FACTOR,
            a: ops.load_vector(&a)?,
            b: ops.load_vector(&b)?,
        };
        let (x, out) = (activation(ops, n, in_features, &x)?, tensor(ops, n, cols, &input)?);
        Ok(Self { n, expected, batch, x, update, out, input })
    }
}

impl Instance for LoraAdd {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.out, &self.input)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let rows = Rows { batch: &self.batch, n: self.n, padded: self.n };
        ops.lora_add(rows, &self.x, &self.update, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        let (values, guard) = found.split_at(self.expected.len());
        findings.places("out", values.iter().copied().enumerate(), |i| self.expected[i]);
        findings.guard_intact("out", guard);
        Ok(())
    }
}
