//! The gated delta rule over ragged batches, with slots in any order.

use super::causal_conv::uploaded;
use crate::batch::{Batch, BatchLimits};
use crate::config::LinearSizes;
use crate::cuda::{CudaBatch, CudaOps, DeviceBuffer, States, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::SlotLayout;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::hybrid::{Columns, DeltaRule, HybridOps, ValueHeads};
use crate::ops::{Ops, OpsConfig};
use rayon::prelude::*;

pub const CASES: Cases = Cases { op: "delta_rule", checks, timings };

/// Of three layers, the one that is used.
pub const LAYER: usize = 1;
const EPS: f32 = 1e-6;

/// Rows in the batch, and the position of the first of them.
type Sequence = (usize, usize);

fn checks() -> Vec<Case> {
    let ragged: &[Sequence] = &[(1, 7), (19, 0), (2, 40), (1, 0), (3, 1)];
    let decode: &[Sequence] = &[(1, 7), (1, 0), (1, 1), (1, 500)];
    let mut cases = Vec::new();
    for order in [ValueHeads::Tiled, ValueHeads::Grouped] {
        // Key heads, value heads, their values.
        for heads in [[2, 4, 32, 32], [1, 3, 64, 32], [2, 2, 19, 37]] {
            cases.extend([ragged, decode].map(|sequences| case(sizes(heads), order, sequences)));
        }
        cases.push(case(sizes([1, 2, 128, 128]), order, &[(2, 7), (1, 0)]));
        cases.push(case(sizes([2, 6, 128, 128]), order, ragged));
    }
    // One and several chunks, whole and not, between other sequences.
    cases.push(case(sizes([1, 1, 128, 128]), ValueHeads::Tiled, &[(130, 0)]));
    cases.push(case(sizes([1, 1, 128, 32]), ValueHeads::Grouped, &[(5, 2), (65, 9), (1, 7), (33, 0)]));
    cases.push(case(
        sizes([2, 4, 128, 64]),
        ValueHeads::Tiled,
        &[(1, 3), (70, 0), (31, 4), (200, 60), (2, 0)],
    ));
    cases.push(case(sizes([1, 1, 32, 32]), ValueHeads::Tiled, &[(70, 0)]));
    cases
}

fn sizes([key_heads, value_heads, key_dim, value_dim]: [usize; 4]) -> LinearSizes {
    LinearSizes {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: key_dim,
        linear_value_head_dim: value_dim,
        linear_conv_kernel_dim: 4,
    }
}

/// Steps of the workload's rows: up to 64 of that many sequences with a row each, more of one prompt.
pub fn timed_shapes(workload: &Workload) -> Vec<(LinearSizes, Vec<Sequence>)> {
    const DECODE_ROWS: usize = 64;
    let Some(sizes) = workload.config.linear else { return Vec::new() };
    let step = |&n: &usize| if n <= DECODE_ROWS { vec![(1, 100); n] } else { vec![(n, 0)] };
    workload.rows.iter().map(|n| (sizes, step(n))).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let shapes = timed_shapes(workload).into_iter();
    shapes.map(|(sizes, rows)| case(sizes, ValueHeads::Tiled, &rows)).collect()
}

/// The rows of the sequences, for people.
pub fn described(sequences: &[Sequence]) -> String {
    match sequences {
        [first, _, ..] if sequences.iter().all(|s| s == first) => {
            format!("{} x {} at {}", sequences.len(), first.0, first.1)
        }
        _ => sequences.iter().map(|(rows, at)| format!("{rows} at {at}")).collect::<Vec<_>>().join(", "),
    }
}

fn case(sizes: LinearSizes, order: ValueHeads, sequences: &[Sequence]) -> Case {
    let rows: usize = sequences.iter().map(|s| s.0).sum();
    let LinearSizes { linear_num_key_heads: key_heads, linear_num_value_heads: heads, .. } = sizes;
    let (key_dim, value_dim) = (sizes.linear_key_head_dim, sizes.linear_value_head_dim);
    let sequences = sequences.to_vec();
    Case {
        dtype: Dtype::F32,
        shape: format!(
            "{key_heads} and {heads} heads of {key_dim} and {value_dim}, {order:?}, rows {}",
            described(&sequences)
        ),
        // A value of a state takes an emulator a fraction of what one of an output elsewhere does.
        work: rows * sizes.recurrent_state() / 4,
        cost: Cost {
            // Each state is read and written once.
            bytes: 4.0
                * (2 * sequences.len() * sizes.recurrent_state()
                    + rows * (sizes.channels() + sizes.value_size())) as f64,
            flops: 7.0 * (rows * sizes.recurrent_state()) as f64,
        },
        config: operations_config(sizes, rows, sequences.len()),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Ruled::new(ops, seed, sizes, order, &sequences)?))),
    }
}

/// Of operations for such steps.
pub fn operations_config(sizes: LinearSizes, rows: usize, num_sequences: usize) -> OpsConfig {
    let plain = plain_config();
    let limits = BatchLimits {
        max_num_tokens: rows.max(plain.limits.max_num_tokens),
        max_num_sequences: num_sequences.max(plain.limits.max_num_sequences),
        ..plain.limits
    };
    OpsConfig { linear: Some(sizes), limits, ..plain }
}

/// Slots of `count` sequences, of two more than they need.
pub fn slots_of(seed: u64, name: &str, count: usize) -> Vec<u32> {
    let mut slots = shuffled(seed, &format!("{name}: slots"), count + 2);
    slots.truncate(count);
    slots
}

/// What slots hold before, of each layer: numbers where a sequence goes on, NaN elsewhere.
pub fn poisoned_slots(
    seed: u64,
    name: &str,
    layout: &SlotLayout,
    batch: &Batch,
    sequences: &[Sequence],
) -> Vec<Vec<f32>> {
    let values = layout.bytes / 4;
    let mut layers = vec![vec![f32::NAN; layout.num_slots * values]; layout.num_layers];
    for (&slot, &(_, position)) in batch.state_slots.iter().zip(sequences) {
        if position > 0 {
            let numbers = random(seed, &format!("{name}: slot {slot}"), values);
            layers[LAYER][slot as usize * values..][..values].copy_from_slice(&numbers);
        }
    }
    layers
}

/// Fails where a slot holds other bits than it should; NaN is as good as NaN.
pub fn same_slots(findings: &mut Findings, found: &[f32], expected: &[f32]) {
    let differs = |(f, e): (&f32, &f32)| f.to_bits() != e.to_bits() && !(f.is_nan() && e.is_nan());
    let at = found.iter().zip(expected).position(differs);
    findings.expect(at.is_none() && found.len() == expected.len(), || {
        let at = at.unwrap_or_default();
        format!("slots: {:?} at {at} instead of {:?}", found.get(at), expected.get(at))
    });
}

struct Ruled {
    slots: Vec<Vec<f32>>,
    expected: Vec<f64>,
    /// Of the layer: what each value should be where a sequence has its state.
    expected_slots: Vec<f64>,
    /// Whether a value of the layer belongs to a state.
    is_state: Vec<bool>,
    longest: usize,
    key_dim: usize,
    batch: CudaBatch,
    rule: DeltaRule<DeviceBuffer<f32>>,
    mixed: Tensor,
    qkv: Tensor,
    states: States,
    out: Tensor,
}

/// The inputs of all rows.
struct Inputs {
    mixed: Vec<f32>,
    qkv: Vec<f32>,
    decay: Vec<f32>,
    dt_bias: Vec<f32>,
}

impl Ruled {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        sizes: LinearSizes,
        order: ValueHeads,
        sequences: &[Sequence],
    ) -> Result<Self> {
        let name = format!("delta_rule {sizes:?} {}", described(sequences));
        let (columns, n) = (Columns::of(&sizes), sequences.iter().map(|s| s.0).sum::<usize>());
        let heads = sizes.linear_num_value_heads;
        let (batch, host) = uploaded(ops, seed, &name, sequences)?;
        let values = sizes.slot_values();
        let layout = SlotLayout { num_layers: 3, num_slots: sequences.len() + 2, bytes: 4 * values };
        let part = |what: &str, count| random(seed, &format!("{name}: {what}"), count);
        let inputs = Inputs {
            mixed: part("mixed", n * columns.cols),
            qkv: part("qkv", n * sizes.channels()),
            // Memories from under one row to some hundred.
            decay: part("decay", heads).into_iter().map(|value| -(2.0 * value - 1.0).exp()).collect(),
            dt_bias: part("dt_bias", heads),
        };
        let slots = poisoned_slots(seed, &name, &layout, &host, sequences);
        let (mut expected, mut expected_slots) =
            (vec![0.0; n * sizes.value_size()], vec![0.0; slots[LAYER].len()]);
        let mut is_state = vec![false; slots[LAYER].len()];
        let mut first = 0;
        for (s, &(rows, position)) in sequences.iter().enumerate() {
            let from = host.state_slots[s] as usize * values + sizes.conv_state();
            let head_state = sizes.linear_key_head_dim * sizes.linear_value_head_dim;
            let of_heads: Vec<_> = (0..heads)
                .into_par_iter()
                .map(|head| {
                    let before = &slots[LAYER][from + head * head_state..][..head_state];
                    let known = |&value: &f32| if position == 0 { 0.0 } else { f64::from(value) };
                    let mut state: Vec<f64> = before.iter().map(known).collect();
                    let out = reference(&sizes, order, &inputs, head, first..first + rows, &mut state);
                    (state, out)
                })
                .collect();
            for (head, (state, out)) in of_heads.into_iter().enumerate() {
                expected_slots[from + head * head_state..][..head_state].copy_from_slice(&state);
                is_state[from + head * head_state..][..head_state].fill(true);
                for (t, out) in out.chunks_exact(sizes.linear_value_head_dim).enumerate() {
                    let at = (first + t) * sizes.value_size() + head * sizes.linear_value_head_dim;
                    expected[at..][..out.len()].copy_from_slice(out);
                }
            }
            first += rows;
        }
        Ok(Self {
            slots,
            expected,
            expected_slots,
            is_state,
            longest: sequences.iter().map(|s| s.0).max().unwrap_or(0),
            key_dim: sizes.linear_key_head_dim,
            batch,
            rule: DeltaRule {
                sizes,
                value_heads: order,
                decay: ops.load_vector(&inputs.decay)?,
                dt_bias: ops.load_vector(&inputs.dt_bias)?,
                eps: EPS,
            },
            mixed: tensor(ops, n, columns.cols, &inputs.mixed)?,
            qkv: tensor(ops, n, sizes.channels(), &inputs.qkv)?,
            states: ops.new_states(&layout)?,
            out: poisoned(ops, n, sizes.value_size())?,
        })
    }
}

/// The formulas of docs/hybrids.md in f64, of one head of V: what it gives for each row; `state` is taken on.
fn reference(
    sizes: &LinearSizes,
    order: ValueHeads,
    inputs: &Inputs,
    head: usize,
    rows: std::ops::Range<usize>,
    state: &mut [f64],
) -> Vec<f64> {
    let (columns, key_dim, value_dim) =
        (Columns::of(sizes), sizes.linear_key_head_dim, sizes.linear_value_head_dim);
    let key_head = order.key_head(head, sizes);
    let mut out = Vec::new();
    for row in rows {
        let qkv = &inputs.qkv[row * sizes.channels()..][..sizes.channels()];
        let unit = |first: usize| {
            let x: Vec<f64> =
                qkv[first + key_head * key_dim..][..key_dim].iter().map(|&x| f64::from(x)).collect();
            let norm = (x.iter().map(|x| x * x).sum::<f64>() + f64::from(EPS)).sqrt();
            x.into_iter().map(|x| x / norm).collect::<Vec<f64>>()
        };
        let (q, k) = (unit(0), unit(sizes.key_size()));
        let v = &qkv[2 * sizes.key_size() + head * value_dim..][..value_dim];
        let mixed = |first: usize| f64::from(inputs.mixed[row * columns.cols + first + head]);
        let beta = 1.0 / (1.0 + (-mixed(columns.beta)).exp());
        let softplus = (mixed(columns.alpha) + f64::from(inputs.dt_bias[head])).exp().ln_1p();
        let kept = (f64::from(inputs.decay[head]) * softplus).exp();
        state.iter_mut().for_each(|value| *value *= kept);
        for (j, &v) in v.iter().enumerate() {
            let known: f64 = (0..key_dim).map(|i| k[i] * state[i * value_dim + j]).sum();
            let delta = beta * (f64::from(v) - known);
            (0..key_dim).for_each(|i| state[i * value_dim + j] += k[i] * delta);
            let answer: f64 = (0..key_dim).map(|i| q[i] * state[i * value_dim + j]).sum();
            out.push(answer / (key_dim as f64).sqrt());
        }
    }
    out
}

impl Instance for Ruled {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        for (layer, slots) in self.slots.iter().enumerate() {
            self.states.write(layer, slots)?;
        }
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let Self { batch, rule, mixed, qkv, states, out, .. } = self;
        ops.delta_rule(batch, LAYER, rule, mixed, qkv, states, out)
    }

    fn compare(&mut self, _: &mut CudaOps, variant: &str, findings: &mut Findings) -> Result<()> {
        // Values of a state are of the size of v, up to 4, and of what the slot had. A row rounds each about four times and adds the error of
        // a sum of `key_dim` terms whose squares add up to at most v²: the rounding errors of rows add up like the rows do, and what is
        // written is pulled towards v by k, so that they do not grow beyond their sum.
        let roundings = 4.0 * self.longest as f64 + 2.0 * (self.key_dim as f64).sqrt() + 16.0;
        let mut off = 8.0 * roundings * unit(Dtype::F32);
        if variant == "chunks" {
            // Factors have 11 bits. What is written to a state is off by a sum of `key_dim` terms whose squares add up to at most v², and
            // answers by as much once more.
            off += 4.0 * 2f64.powi(-11);
        }
        findings.close("out", &self.out.to_host()?, &self.expected, |_, _| off);
        for (layer, slots) in self.slots.iter().enumerate() {
            let found = self.states.read(layer)?;
            if layer != LAYER {
                same_slots(findings, &found, slots);
                continue;
            }
            let of_states = found.iter().copied().enumerate().filter(|&(i, _)| self.is_state[i]);
            findings.places("state", of_states, |i| (self.expected_slots[i], off));
            let others = |values: &[f32]| -> Vec<f32> {
                values
                    .iter()
                    .zip(&self.is_state)
                    .filter(|(_, is_state)| !**is_state)
                    .map(|(value, _)| *value)
                    .collect()
            };
            same_slots(findings, &others(&found), &others(slots));
        }
        Ok(())
    }

    /// A state that is taken on again and again stays of its size.
    fn repeats(&self) -> bool {
        true
    }
}
