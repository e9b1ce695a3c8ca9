//! A decode step of linear attention in one kernel, against the operations that it stands for, which have cases of their own.

use super::causal_conv::uploaded;
use super::delta_rule::{LAYER, described, operations_config, poisoned_slots, timed_shapes};
use crate::config::LinearSizes;
use crate::cuda::{Activation, CudaBatch, CudaOps, DeviceBuffer, States, Tensor, Weight, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::SlotLayout;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::hybrid::{CausalConv, Columns, DeltaNet, DeltaRule, Gate, HybridOps, ValueHeads};
use crate::ops::parts::{Norm, RmsNorm};
use crate::ops::{Ops, Stacked};

pub const CASES: Cases = Cases { op: "delta_step", checks, timings };

const EPS: f32 = 1e-6;

/// Rows in the batch, and the position of the first of them.
type Sequence = (usize, usize);

fn checks() -> Vec<Case> {
    let sequences: &[Sequence] = &[(1, 7), (1, 0), (1, 1), (1, 500)];
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        cases.push(case(dtype, sizes([1, 1]), ValueHeads::Tiled, &[(1, 3), (1, 0)]));
        for order in [ValueHeads::Tiled, ValueHeads::Grouped] {
            cases.push(case(dtype, sizes([1, 2]), order, &[(1, 9)]));
            cases.push(case(dtype, sizes([2, 6]), order, sequences));
        }
    }
    cases
}

/// Heads of K and of V.
fn sizes([key_heads, value_heads]: [usize; 2]) -> LinearSizes {
    LinearSizes {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: 128,
        linear_value_head_dim: 128,
        linear_conv_kernel_dim: 4,
    }
}

fn timings(workload: &Workload) -> Vec<Case> {
    let dtype = precise_dtype(workload.dtype);
    let steps = timed_shapes(workload).into_iter().filter(|(_, rows)| rows.iter().all(|row| row.0 == 1));
    steps.map(|(sizes, rows)| case(dtype, sizes, ValueHeads::Tiled, &rows)).collect()
}

fn case(dtype: Dtype, sizes: LinearSizes, order: ValueHeads, sequences: &[Sequence]) -> Case {
    let LinearSizes { linear_num_key_heads: key_heads, linear_num_value_heads: heads, .. } = sizes;
    let n = sequences.len();
    let sequences = sequences.to_vec();
    let of_row = Columns::of(&sizes).cols * 4 + sizes.value_size() * dtype.size();
    Case {
        dtype,
        shape: format!("{key_heads} and {heads} heads, {order:?}, rows {}", described(&sequences)),
        work: n * sizes.recurrent_state() / 2,
        cost: Cost {
            // What a slot has is read and written once.
            bytes: (n * (8 * sizes.slot_values() + of_row)) as f64,
            flops: 7.0 * (n * sizes.recurrent_state()) as f64,
        },
        config: operations_config(sizes, n, n),
        prepare: Box::new(move |ops, seed| {
            Ok(Box::new(Step::new(ops, seed, dtype, sizes, order, &sequences)?))
        }),
    }
}

struct Step {
    n: usize,
    dtype: Dtype,
    slots: Vec<Vec<f32>>,
    batch: CudaBatch,
    part: DeltaNet<Weight, DeviceBuffer<f32>>,
    mixed: Tensor,
    states: States,
    out: Activation,
    /// What the separate operations make of the same.
    expected_states: States,
    expected: Vec<f32>,
}

impl Step {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        dtype: Dtype,
        sizes: LinearSizes,
        order: ValueHeads,
        sequences: &[Sequence],
    ) -> Result<Self> {
        let name = format!("delta_step {sizes:?} {}", described(sequences));
        let (columns, n, heads) = (Columns::of(&sizes), sequences.len(), sizes.linear_num_value_heads);
        let (batch, host) = uploaded(ops, seed, &name, sequences)?;
        let layout = SlotLayout { num_layers: 3, num_slots: n + 2, bytes: 4 * sizes.slot_values() };
        let vector = |what: &str, count| random(seed, &format!("{name}: {what}"), count);
        let decay: Vec<f32> =
            vector("decay", heads).into_iter().map(|value| -(2.0 * value - 1.0).exp()).collect();
        let rms = |ops: &mut CudaOps, what: &str| -> Result<_> {
            Ok(RmsNorm { weight: ops.load_vector(&vector(what, 128))?, eps: EPS })
        };
        // Of the product nothing is needed but where it would have its scale.
        let none = |ops: &mut CudaOps| weight(ops, dtype, 1, 8, &[0.0; 8]);
        let part = DeltaNet {
            norm: Norm::Rms(rms(ops, "unused")?),
            in_proj: Stacked { whole: none(ops)?, matrices: vec![none(ops)?, none(ops)?] },
            conv: CausalConv { sizes, weight: ops.load_vector(&vector("conv", sizes.channels() * 4))? },
            rule: DeltaRule {
                sizes,
                value_heads: order,
                decay: ops.load_vector(&decay)?,
                dt_bias: ops.load_vector(&vector("dt_bias", heads))?,
                eps: EPS,
            },
            head_norm: rms(ops, "norm")?,
            out_proj: none(ops)?,
        };
        let slots = poisoned_slots(seed, &name, &layout, &host, sequences);
        let mixed = tensor(ops, n, columns.cols, &vector("mixed", n * columns.cols))?;
        let mut expected_states = ops.new_states(&layout)?;
        for (layer, slots) in slots.iter().enumerate() {
            expected_states.write(layer, slots)?;
        }
        let (mut qkv, mut answer) =
            (poisoned(ops, n, sizes.channels())?, poisoned(ops, n, sizes.value_size())?);
        let mut gated = poisoned_activation(ops, n, sizes.value_size())?;
        ops.causal_conv(&batch, LAYER, &part.conv, &mixed, &mut expected_states, &mut qkv)?;
        ops.delta_rule(&batch, LAYER, &part.rule, &mixed, &qkv, &mut expected_states, &mut answer)?;
        let gate = Gate { product: &mixed, first: columns.z, weight: &part.in_proj.matrices[1] };
        ops.gated_norm(n, &answer, &part.head_norm, gate, &mut gated)?;
        Ok(Self {
            n,
            dtype,
            slots,
            batch,
            part,
            mixed,
            states: ops.new_states(&layout)?,
            out: poisoned_activation(ops, n, sizes.value_size())?,
            expected_states,
            expected: values_of(n, &gated)?,
        })
    }
}

/// The first `n` rows: others stand behind them, to see who writes too far.
fn values_of(n: usize, activation: &Activation) -> Result<Vec<f32>> {
    let mut values = activation.to_host()?;
    values.truncate(n * activation.cols());
    Ok(values)
}

impl Instance for Step {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        for (layer, slots) in self.slots.iter().enumerate() {
            self.states.write(layer, slots)?;
        }
        fill_activation(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let Self { batch, part, mixed, states, out, .. } = self;
        ops.fused_delta_step(batch, LAYER, part, mixed, states, out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // Both round as often; what is left is another order of sums, which a norm of a small head makes larger.
        let off = 64.0 * unit(Dtype::F32);
        let expected: Vec<f64> = self.expected.iter().map(|&value| f64::from(value)).collect();
        findings.close("out", &values_of(self.n, &self.out)?, &expected, |_, expected| {
            off * expected.abs().max(1.0) + expected.abs() * 2.0 * unit(self.dtype) + smallest(self.dtype)
        });
        for layer in 0..self.slots.len() {
            let (found, expected) = (self.states.read(layer)?, self.expected_states.read(layer)?);
            let differs = |(f, e): (&f32, &f32)| {
                (f - e).abs() > off as f32 * e.abs().max(1.0) || f.is_nan() != e.is_nan()
            };
            let at = found.iter().zip(&expected).position(differs);
            findings.expect(at.is_none(), || {
                let at = at.unwrap_or_default();
                format!(
                    "slots of layer {layer}: {:?} at {at} instead of {:?}",
                    found.get(at),
                    expected.get(at)
                )
            });
        }
        Ok(())
    }

    /// A state that is taken on again and again stays of its size.
    fn repeats(&self) -> bool {
        true
    }
}
