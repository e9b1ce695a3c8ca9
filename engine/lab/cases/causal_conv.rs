//! The convolution before linear attention, over ragged batches with slots in any order.

use super::batch_of;
use super::delta_rule::{LAYER, poisoned_slots, slots_of};
use crate::batch::{Batch, BatchLimits};
use crate::config::LinearSizes;
use crate::cuda::{CudaBatch, CudaOps, DeviceBuffer, States, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{SlotLayout, pages_for};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::ops::hybrid::{CausalConv, HybridOps};

pub const CASES: Cases = Cases { op: "causal_conv", checks, timings };

/// Columns of the input behind its channels, where those are whole groups of four a whole group too.
fn behind(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 8 } else { 5 }
}

/// Rows in the batch, and the position of the first of them.
type Sequence = (usize, usize);

fn checks() -> Vec<Case> {
    let ragged: &[Sequence] = &[(1, 7), (19, 0), (2, 40), (1, 0), (3, 1), (33, 31)];
    let decode: &[Sequence] = &[(1, 7), (1, 0), (1, 1), (1, 500)];
    let mut cases = Vec::new();
    for sequences in [ragged, decode, &[(1, 3)], &[(130, 0)]] {
        for (heads, taps) in
            [([1, 1, 32], 4), ([2, 6, 37], 4), ([1, 2, 16], 2), ([1, 1, 16], 1), ([1, 3, 19], 7)]
        {
            cases.push(case(sizes(heads, taps), sequences));
        }
    }
    cases
}

/// One head of K, heads of V, values of a head.
fn sizes([key_heads, value_heads, head_dim]: [usize; 3], taps: usize) -> LinearSizes {
    LinearSizes {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: head_dim,
        linear_value_head_dim: head_dim,
        linear_conv_kernel_dim: taps,
    }
}

fn timings(workload: &Workload) -> Vec<Case> {
    super::delta_rule::timed_shapes(workload).into_iter().map(|(sizes, rows)| case(sizes, &rows)).collect()
}

fn case(sizes: LinearSizes, sequences: &[Sequence]) -> Case {
    let rows: usize = sequences.iter().map(|s| s.0).sum();
    let (channels, taps) = (sizes.channels(), sizes.linear_conv_kernel_dim);
    let sequences = sequences.to_vec();
    let values = rows * channels;
    Case {
        dtype: Dtype::F32,
        shape: format!("{channels} channels, {taps} taps, rows {}", super::delta_rule::described(&sequences)),
        work: values * taps,
        cost: Cost {
            bytes: (8 * values + 8 * sequences.len() * sizes.conv_state() + 4 * channels * taps) as f64,
            flops: (2 * values * taps) as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Convolved::new(ops, seed, sizes, &sequences)?))),
    }
}

struct Convolved {
    /// What slots hold before, of all layers; behind it must be `expected_slots`.
    slots: Vec<Vec<f32>>,
    expected: Vec<(f64, f64)>,
    expected_slots: Vec<f32>,
    batch: CudaBatch,
    conv: CausalConv<DeviceBuffer<f32>>,
    x: Tensor,
    states: States,
    out: Tensor,
}

impl Convolved {
    fn new(ops: &mut CudaOps, seed: u64, sizes: LinearSizes, sequences: &[Sequence]) -> Result<Self> {
        let name = format!("causal_conv {sizes:?} {}", super::delta_rule::described(sequences));
        let (channels, taps) = (sizes.channels(), sizes.linear_conv_kernel_dim);
        let (cols, n) = (channels + behind(channels), sequences.iter().map(|s| s.0).sum());
        let (batch, host) = uploaded(ops, seed, &name, sequences)?;
        let layout =
            SlotLayout { num_layers: 3, num_slots: sequences.len() + 2, bytes: 4 * sizes.slot_values() };
        let x = random(seed, &format!("{name}: x"), n * cols);
        let weight = random(seed, &format!("{name}: weight"), channels * taps);
        let slots = poisoned_slots(seed, &name, &layout, &host, sequences);
        let mut expected = vec![(0.0, 0.0); n * channels];
        let mut expected_slots = slots[LAYER].clone();
        let values = layout.bytes / 4;
        let mut first = 0;
        for (s, &(rows, position)) in sequences.iter().enumerate() {
            let slot = host.state_slots[s] as usize * values;
            for channel in 0..channels {
                // All inputs from the oldest that is known on.
                let kept = (0..taps - 1).map(|i| slots[LAYER][slot + i * channels + channel]);
                let mut inputs: Vec<f32> = kept.map(|x| if position == 0 { 0.0 } else { x }).collect();
                inputs.extend((0..rows).map(|t| x[(first + t) * cols + channel]));
                for t in 0..rows {
                    let terms = || {
                        (0..taps).map(|j| f64::from(inputs[t + j]) * f64::from(weight[channel * taps + j]))
                    };
                    let (sum, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    // Each fused multiply-add rounds once; where the sum is, silu is no steeper than 1.1. Five roundings of
                    // exponential and quotient follow.
                    let off = 1.1 * magnitude * taps as f64 * unit(Dtype::F32);
                    let value = sum / (1.0 + (-sum).exp());
                    expected[(first + t) * channels + channel] =
                        (value, off + value.abs() * 5.0 * unit(Dtype::F32) + smallest(Dtype::F32));
                }
                for i in 0..taps - 1 {
                    expected_slots[slot + i * channels + channel] = inputs[rows + i];
                }
            }
            first += rows;
        }
        Ok(Self {
            slots,
            expected,
            expected_slots,
            batch,
            conv: CausalConv { sizes, weight: ops.load_vector(&weight)? },
            x: tensor(ops, n, cols, &x)?,
            states: ops.new_states(&layout)?,
            out: poisoned(ops, n, channels)?,
        })
    }
}

/// The batch of these sequences, with slots in another order; here and on the device.
pub fn uploaded(
    ops: &mut CudaOps,
    seed: u64,
    name: &str,
    sequences: &[Sequence],
) -> Result<(CudaBatch, Batch)> {
    let longest = sequences.iter().map(|s| s.0 + s.1).max().unwrap_or(0);
    let limits = BatchLimits {
        max_num_tokens: sequences.iter().map(|s| s.0).sum(),
        max_num_sequences: sequences.len() + 2,
        max_num_logits: sequences.len() + 2,
        max_blocks: pages_for(longest),
    };
    // Nothing of this reads pages: all sequences have the same.
    let pages: Vec<u32> = (0..limits.max_blocks as u32).collect();
    let parts: Vec<_> = sequences.iter().map(|&(rows, position)| (rows, position, &pages[..])).collect();
    let (host, mut batch) = batch_of(ops, &limits, &parts)?;
    let host = Batch { state_slots: slots_of(seed, name, sequences.len()), ..host };
    ops.upload(&host, &mut batch)?;
    Ok((batch, host))
}

impl Instance for Convolved {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        for (layer, slots) in self.slots.iter().enumerate() {
            self.states.write(layer, slots)?;
        }
        fill_tensor(&mut self.out, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let Self { batch, conv, x, states, out, .. } = self;
        ops.causal_conv(batch, LAYER, conv, x, states, out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.to_host()?;
        let (values, guard) = found.split_at(self.expected.len());
        findings.places("out", values.iter().copied().enumerate(), |i| self.expected[i]);
        findings.guard_intact("out", guard);
        for (layer, slots) in self.slots.iter().enumerate() {
            let expected = if layer == LAYER { &self.expected_slots } else { slots };
            super::delta_rule::same_slots(findings, &self.states.read(layer)?, expected);
        }
        Ok(())
    }
}
