//! The operations of hybrids, each handed to the file that computes it, and what is kept of sequences, as bytes.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::error::Result;
use crate::kv_layout::SlotLayout;
use crate::memory::DeviceBuffer;
use crate::ops::hybrid::{CausalConv, DeltaNet, DeltaRule, Gate, HybridOps};
use crate::ops::keep::KeepOps;
use crate::ops::parts::RmsNorm;
use crate::tensor::{Activation, KvCache, States, Tensor};
use crate::weight::Weight;
use crate::{causal_conv, convert, delta_rule, delta_step, gated_norm, sigmoid_mul};

impl HybridOps for CudaOps {
    fn new_states(&mut self, layout: &SlotLayout) -> Result<States> {
        States::new(&self.device, layout)
    }

    fn copy_state(&mut self, from: &States, slot: usize, to: &mut States, place: usize) -> Result<()> {
        to.copy_from(&self.device, place, from, slot)
    }

    fn bound_delta_net(&mut self, name: &str, part: &DeltaNet<Weight, DeviceBuffer<f32>>) -> Result<()> {
        self.bound_gated_norm(name, part)
    }

    fn causal_conv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        conv: &CausalConv<DeviceBuffer<f32>>,
        x: &Tensor,
        states: &mut States,
        out: &mut Tensor,
    ) -> Result<()> {
        causal_conv::causal_conv(&self.device, &self.choice, batch, layer, conv, x, states, out)
    }

    fn delta_rule(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        rule: &DeltaRule<DeviceBuffer<f32>>,
        mixed: &Tensor,
        qkv: &Tensor,
        states: &mut States,
        out: &mut Tensor,
    ) -> Result<()> {
        let workspace = self.delta.as_mut();
        let operands = delta_rule::Operands { batch, layer, rule, mixed, qkv, states, workspace, out };
        delta_rule::delta_rule(&self.device, &self.choice, operands)
    }

    fn gated_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        gate: Gate<Tensor, Weight>,
        out: &mut Activation,
    ) -> Result<()> {
        let gated = gate.weight.scales().map_or(1.0, |scales| scales.gated.get());
        out.scale = gated;
        self.scaled_gated_norm(n, x, norm, gate.product, gate.first, 1.0 / gated, out)
    }

    fn delta_step(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        part: &DeltaNet<Weight, DeviceBuffer<f32>>,
        mixed: &Tensor,
        states: &mut States,
        out: &mut Activation,
    ) -> Result<bool> {
        let takes = delta_step::takes(&part.rule.sizes)
            && !batch.shape.rows.has_multiple
            && self.delta.is_some()
            && self.is_wanted(&[causal_conv::OP, delta_rule::OP, gated_norm::OP]);
        if takes {
            self.fused_delta_step(batch, layer, part, mixed, states, out)?;
        }
        Ok(takes)
    }

    fn widen(&mut self, n: usize, x: &Activation, out: &mut Tensor) -> Result<()> {
        convert::widen(&self.device, n, x, out)
    }

    fn sigmoid_mul(&mut self, n: usize, gate: &Tensor, rows: &mut Activation) -> Result<()> {
        sigmoid_mul::sigmoid_mul(&self.device, n, gate, rows)
    }
}

impl KeepOps for CudaOps {
    fn order(&self) -> &'static str {
        "cuda"
    }

    fn read_page(&mut self, cache: &KvCache, page: usize) -> Result<Vec<u8>> {
        cache.read_page(page)
    }

    fn write_page(&mut self, cache: &mut KvCache, page: usize, bytes: &[u8]) -> Result<()> {
        cache.write_page(page, bytes)
    }

    fn read_slot(&mut self, states: &States, slot: usize) -> Result<Vec<u8>> {
        states.read_slot(&mut self.uploader, slot)
    }

    fn write_slot(&mut self, states: &mut States, slot: usize, bytes: &[u8]) -> Result<()> {
        states.write_slot(&mut self.uploader, slot, bytes)
    }
}
