//! The operations of hybrids, each handed to the file that computes it, and what is kept of sequences, as bytes.

use super::kv::KvCache;
use super::states::States;
use super::tensor::Tensor;
use super::{CpuOps, Weight, causal_conv, delta_rule, gated_norm, sigmoid_mul};
use crate::batch::Batch;
use crate::error::Result;
use crate::kv_layout::SlotLayout;
use crate::ops::hybrid::{CausalConv, DeltaRule, Gate, HybridOps};
use crate::ops::keep::KeepOps;
use crate::ops::parts::RmsNorm;

impl HybridOps for CpuOps {
    fn new_states(&mut self, layout: &SlotLayout) -> Result<States> {
        States::new(layout)
    }

    fn copy_state(&mut self, from: &States, slot: usize, to: &mut States, place: usize) -> Result<()> {
        to.copy_from(place, from, slot)
    }

    fn causal_conv(
        &mut self,
        batch: &Batch,
        layer: usize,
        conv: &CausalConv<Vec<f32>>,
        x: &Tensor,
        states: &mut States,
        out: &mut Tensor,
    ) -> Result<()> {
        causal_conv::causal_conv(batch, layer, conv, x, states, out)
    }

    fn delta_rule(
        &mut self,
        batch: &Batch,
        layer: usize,
        rule: &DeltaRule<Vec<f32>>,
        mixed: &Tensor,
        qkv: &Tensor,
        states: &mut States,
        out: &mut Tensor,
    ) -> Result<()> {
        delta_rule::delta_rule(self.isa, batch, layer, rule, mixed, qkv, states, out)
    }

    fn gated_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<Vec<f32>>,
        gate: Gate<Tensor, Weight>,
        out: &mut Tensor,
    ) -> Result<()> {
        gated_norm::gated_norm(n, x, norm, gate.product, gate.first, out)
    }

    fn widen(&mut self, n: usize, x: &Tensor, out: &mut Tensor) -> Result<()> {
        x.expect("widen", "x", n, x.cols())?;
        out.expect("widen", "out", n, x.cols())?;
        out.first_mut(n).copy_from_slice(x.first(n));
        Ok(())
    }

    fn sigmoid_mul(&mut self, n: usize, gate: &Tensor, rows: &mut Tensor) -> Result<()> {
        sigmoid_mul::sigmoid_mul(n, gate, rows)
    }
}

impl KeepOps for CpuOps {
    fn order(&self) -> &'static str {
        "cpu"
    }

    fn read_page(&mut self, cache: &KvCache, page: usize) -> Result<Vec<u8>> {
        cache.read_page(page)
    }

    fn write_page(&mut self, cache: &mut KvCache, page: usize, bytes: &[u8]) -> Result<()> {
        cache.write_page(page, bytes)
    }

    fn read_slot(&mut self, states: &States, slot: usize) -> Result<Vec<u8>> {
        states.read_slot(slot)
    }

    fn write_slot(&mut self, states: &mut States, slot: usize, bytes: &[u8]) -> Result<()> {
        states.write_slot(slot, bytes)
    }
}
