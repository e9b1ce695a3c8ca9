//! Kernels of a part of a layer, and parts of an operation, by themselves: the laboratory checks and times what the engine
//! chooses between.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::experts::{Matrix, ONE_BY_ONE, Workspace, are_arranged, rows_of_group};
use crate::fused::{GateUp, QkvWeights};
use crate::memory::DeviceBuffer;
use crate::ops::hybrid::DeltaNet;
use crate::ops::parts::{RmsNorm, Router};
use crate::ops::{ExpertsConfig, Rows, Stacked};
use crate::ranks::Ranks;
use crate::tensor::{Activation, KvCache, States, Tensor};
use crate::units::Units;
use crate::weight::{Piece, Values, Weight};
use crate::{
    add, add_ranks, bias_gelu, bias_rope_kv, decode, delta_step, fused, gated_matmul, gated_norm,
    gather_ranks, matmul, norm_route, quantise_kv, rms_norm, row_norms, silu_mul, sort_experts,
};

impl CudaOps {
    /// Whether the kernels that compute a whole part of a layer take these rows of a batch, for a model of this `hidden_size` whose weights are
    /// floats, and are the faster way.
    pub(super) fn is_fused(&self, rows: Rows<CudaBatch>, hidden_size: usize) -> bool {
        let num_tokens = rows.batch.shape.num_tokens;
        self.is_step_of_parts(rows)
            && fused::is_eligible(&self.choice, num_tokens, self.dtype, hidden_size, &self.widths)
    }

    /// Whether kernels that compute a whole part of a layer are wanted for these rows of a batch.
    pub(super) fn is_step_of_parts(&self, rows: Rows<CudaBatch>) -> bool {
        // A decode step, perhaps with drafts: rows know nothing of each other but in attention.
        if rows.batch.shape.rows.has_long || rows.n > fused::max_rows(self.dtype) {
            return false;
        }
        self.is_wanted(&[
            matmul::OP,
            matmul::blocks::OP,
            rms_norm::OP,
            silu_mul::OP,
            bias_rope_kv::OP,
            add::OP,
        ])
    }

    /// Whether one kernel is to replace several operations: layers are to be computed so, and nobody chose how to compute one of these.
    pub(super) fn is_wanted(&self, replaced: &[&str]) -> bool {
        let chosen = self.choice.get(fused::OP).is_none_or(|name| name == fused::FUSED);
        chosen && !replaced.iter().any(|op| self.choice.get(op).is_some())
    }

    /// Whether `op` is one kernel for these rows, whose weights are in units.
    pub(super) fn takes_units(&self, op: &str, units: Units, rows: Rows<CudaBatch>) -> bool {
        self.is_step_of_parts(rows) && fused::takes_units(&self.choice, op, rows.n) && units.takes(rows.n)
    }

    /// Whether the norm before experts and their router are one kernel, for rows of so many values.
    pub(super) fn routes_with_norm(&self, hidden_size: usize) -> bool {
        let chosen = self.choice.get(fused::OP).is_none_or(|name| name == fused::FUSED);
        let replaced = self.choice.get(rms_norm::OP).is_some();
        chosen && !replaced && self.experts.is_some() && norm_route::takes(hidden_size)
    }

    /// The room for experts.
    fn experts(&mut self) -> Result<&mut Workspace> {
        let none = || Error::Request("the operations were made for a model without experts".into());
        self.experts.as_mut().ok_or_else(none)
    }

    /// [`ExpertOps::norm_route`](qernel_core::ops::experts::ExpertOps::norm_route), whatever was chosen.
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
    pub fn fused_norm_route(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        router: &Router<DeviceBuffer<f32>>,
        normed: &mut Activation,
        chosen: &mut Tensor,
    ) -> Result<()> {
        let device = self.device.clone();
        norm_route::norm_route(&device, self.experts()?, n, x, norm, router, normed, chosen)
    }

    /// [`ExpertOps::sort_experts`](qernel_core::ops::experts::ExpertOps::sort_experts)
    pub(super) fn sort_rows_of_experts(
        &mut self,
        n: usize,
        chosen: &Tensor,
        [gate, up, down]: [&Weight; 3],
    ) -> Result<()> {
        let Some(workspace) = &mut self.experts else { return Ok(()) };
        let ExpertsConfig { num_experts: count, num_experts_per_tok, .. } = workspace.config;
        let in_units: Vec<_> = [gate, up, down]
            .iter()
            .filter_map(|weight| weight.units(true))
            .map(|units| Matrix::new(units, count))
            .collect();
        if n <= ONE_BY_ONE || in_units.is_empty() {
            return Ok(());
        }
        let rows = rows_of_group(&self.device, n, [num_experts_per_tok, count], &in_units);
        sort_experts::sort_experts(&self.device, workspace, chosen, [0, n], rows)
    }

    /// Whether matrices of experts that were repacked are decoded to f16 for `n` rows, which then have other bits than alone.
    pub fn decodes_experts(&self, n: usize) -> bool {
        self.experts.as_ref().is_some_and(|workspace| {
            let ExpertsConfig { num_experts, num_experts_per_tok, .. } = workspace.config;
            are_arranged(rows_of_group(&self.device, n, [num_experts_per_tok, num_experts], &[]) as u32)
        })
    }

    /// Brings the pairs of `n` rows and their experts together, in groups of up to `rows_of_group` of one expert: for each group its expert, where
    /// its pairs begin and how many they are; and the pairs.
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
    pub fn sort_experts_in_groups(&mut self, n: usize, chosen: &Tensor, rows_of_group: usize) -> Result<()> {
        let device = self.device.clone();
        sort_experts::sort_experts(&device, self.experts()?, chosen, [0, n], rows_of_group)
    }

    /// What was sorted last: the number of groups, then for each its expert, where its pairs begin and how many they are; and the pairs.
    ///
    /// # Errors
    /// [`Error::Request`] where there are no experts, [`Error::Device`].
    pub fn sorted_experts(&mut self) -> Result<[Vec<u32>; 2]> {
        let Workspace { groups, order, .. } = self.experts()?;
        Ok([groups.read(0, groups.len())?, order.read(0, order.len())?])
    }

    /// `x += delta`: `[n, cols]`, a part of [`CudaOps::matmul_accumulate`].
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes differ, [`Error::Device`].
    pub fn add(&mut self, n: usize, x: &mut Tensor, delta: &Tensor) -> Result<()> {
        add::add(&self.device, &self.choice, n, x, delta)
    }

    /// [`Ops::add_ranks`](qernel_core::ops::ranks::RankOps::add_ranks) of ranks that are all on this device: of each `n` rows, one rank's below the other's.
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
    pub fn add_all_ranks(
        &mut self,
        ranks: &mut Ranks,
        n: usize,
        part: &mut Tensor,
        x: &mut Tensor,
    ) -> Result<()> {
        add_ranks::add_ranks(&self.device, &self.choice, ranks, [n, n], part, x)
    }

    /// [`Ops::gather_ranks`](qernel_core::ops::ranks::RankOps::gather_ranks), likewise.
    ///
    /// # Errors
    /// As [`CudaOps::add_all_ranks`].
    pub fn gather_all_ranks(
        &mut self,
        ranks: &mut Ranks,
        n: usize,
        part: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        gather_ranks::gather_ranks(&self.device, ranks, n, part, out)
    }

    /// [`Ops::bias_gelu`](qernel_core::ops::Ops::bias_gelu), of values that are multiplied with the first of these scales before the bias is added;
    /// results are with the second.
    ///
    /// # Errors
    /// As [`Ops::bias_gelu`](qernel_core::ops::Ops::bias_gelu).
    pub fn scaled_bias_gelu(
        &mut self,
        n: usize,
        x: &Activation,
        bias: Option<&DeviceBuffer<f32>>,
        scales: [f32; 2],
        out: &mut Activation,
    ) -> Result<()> {
        bias_gelu::bias_gelu(&self.device, n, x, bias, scales, out)
    }

    /// [`Ops::matmul_add`](qernel_core::ops::Ops::matmul_add) by the kernels and the library that take any rows.
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
    pub fn matmul_accumulate(
        &mut self,
        n: usize,
        x: &Activation,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul_accumulate(tools, choice, n, x, weight, out)?;
        if std::mem::take(&mut self.scratch.has_moved) {
            self.graphs.clear();
        }
        Ok(())
    }

    /// The values of a matrix in blocks, `[rows, cols]`, rounded to the format of `out`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not one, or the shapes do not fit.
    pub fn decode(&mut self, weight: &Weight, out: &mut Activation) -> Result<()> {
        match &weight.pieces[..] {
            [piece] => decode::decode(&self.device, &self.choice, &piece.values, out),
            _ => Err(Error::Request("decode: expected a matrix in one piece".into())),
        }
    }

    /// Repacks the blocks of a file in the place of a matrix that was loaded from such blocks, where the device repacks them.
    ///
    /// # Errors
    /// [`Error::Request`] if it does not, or they are not as many.
    pub fn repack(&mut self, blocks: &DeviceBuffer<u8>, weight: &mut Weight) -> Result<()> {
        match &weight.pieces[..] {
            [Piece { values: Values::Units(matrix), .. }] => matrix.repack(&self.device, blocks),
            _ => Err(Error::Request("repack: the matrix is as in the file".into())),
        }
    }

    /// `out[r] = sqrt(Σ_c (weight[r, c] · scale[c])²)`, of the values that are stored: the norms of the rows of a matrix in one piece, from
    /// which the bounds of products follow.
    ///
    /// # Errors
    /// [`Error::Request`] if the lengths do not fit, or what the device says.
    pub fn row_norms(
        &mut self,
        weight: &Weight,
        scale: &DeviceBuffer<f32>,
        out: &mut DeviceBuffer<f32>,
    ) -> Result<()> {
        match &weight.pieces[..] {
            [piece] => row_norms::row_norms(&self.device, &self.choice, &piece.values, scale, out),
            _ => Err(Error::Request("row_norms: expected a matrix in one piece".into())),
        }
    }

    /// [`Ops::silu_mul`](qernel_core::ops::Ops::silu_mul), of values that are multiplied with these scales of gate and up first.
    ///
    /// # Errors
    /// As [`Ops::silu_mul`](qernel_core::ops::Ops::silu_mul).
    pub fn scaled_silu_mul(
        &mut self,
        n: usize,
        gate_up: &Activation,
        scales: [f32; 2],
        out: &mut Activation,
    ) -> Result<()> {
        silu_mul::silu_mul(&self.device, &self.choice, n, gate_up, scales, out)
    }

    /// [`HybridOps::gated_norm`](qernel_core::ops::hybrid::HybridOps::gated_norm), whose gate is in `gate` from column `first_gate` on; results
    /// are multiplied with `scale`.
    ///
    /// # Errors
    /// As [`HybridOps::gated_norm`](qernel_core::ops::hybrid::HybridOps::gated_norm).
    #[allow(clippy::too_many_arguments)] // The operation has these operands.
    pub fn scaled_gated_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        gate: &Tensor,
        first_gate: usize,
        scale: f32,
        out: &mut Activation,
    ) -> Result<()> {
        gated_norm::gated_norm(&self.device, &self.choice, n, x, norm, (gate, first_gate), scale, out)
    }

    /// [`HybridOps::delta_step`](qernel_core::ops::hybrid::HybridOps::delta_step), whatever was chosen.
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
    pub fn fused_delta_step(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        part: &DeltaNet<Weight, DeviceBuffer<f32>>,
        mixed: &Tensor,
        states: &mut States,
        out: &mut Activation,
    ) -> Result<()> {
        let Some(workspace) = &mut self.delta else {
            return Err(Error::Request(
                "the operations were made for a model without linear attention".into(),
            ));
        };
        let z = part.in_proj.matrices.get(1).and_then(Weight::scales);
        let gated = z.map_or(1.0, |scales| scales.gated.get());
        out.scale = gated;
        let targets = delta_step::Targets { states, counters: &mut workspace.counters, out };
        delta_step::delta_step(&self.device, batch, layer, part, mixed, 1.0 / gated, targets)
    }

    /// [`Ops::matmul_add`](qernel_core::ops::Ops::matmul_add) by the kernels for few rows.
    ///
    /// # Errors
    /// [`Error::Request`] if they do not take it, [`Error::Device`].
    pub fn fused_matmul_add(
        &mut self,
        n: usize,
        x: &Activation,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        fused::matmul_add(&self.device, &self.choice, n, x, weight.expect_float("matmul_add")?, out)
    }

    /// [`Ops::norm_matmul`](qernel_core::ops::Ops::norm_matmul), whether or not it is the faster way.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    pub fn fused_norm_matmul(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let runs = weight.runs(|scales| scales.stored.get());
        fused::norm_matmul(&self.device, &self.choice, n, x, norm, weight, &runs, out)
    }

    /// [`Ops::gated_matmul`](qernel_core::ops::Ops::gated_matmul), likewise; whether it was done, which it always is where nothing is recorded.
    ///
    /// # Errors
    /// [`Error::Request`] if the matrices are not two of floats, or shapes do not fit, [`Error::Device`].
    pub fn fused_gated_matmul(
        &mut self,
        n: usize,
        x: &Activation,
        weights: &Stacked<Weight>,
        out: &mut Activation,
    ) -> Result<bool> {
        let [gate, up] = &weights.matrices[..] else {
            return Err(Error::Request(format!("{}: the weights must be gate and up", gated_matmul::OP)));
        };
        let ((gate, gate_scale), (up, up_scale)) =
            (gate.expect_float(gated_matmul::OP)?, up.expect_float(gated_matmul::OP)?);
        let (_, gated) = Self::swiglu_scales(weights);
        out.scale = gated;
        let scales = [gate_scale, up_scale / gated];
        let maps = &mut self.tensor_maps;
        let operands = gated_matmul::Operands { maps, n, x, gate, up, scales, out };
        gated_matmul::gated_matmul(&self.device, &self.choice, operands)
    }

    /// [`Ops::norm_gate_up`](qernel_core::ops::Ops::norm_gate_up), likewise.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    pub fn fused_norm_gate_up(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        [gate, up]: [&Weight; 2],
        out: &mut Activation,
    ) -> Result<()> {
        let scale_of = |weight: &Weight| weight.scales().map_or(1.0, |scales| scales.stored.get());
        let gated = up.scales().map_or(1.0, |scales| scales.gated.get());
        let scales = [scale_of(gate), scale_of(up) / gated];
        out.scale = gated;
        let gate_up = match (gate.units(true), up.units(true)) {
            (Some(gate), Some(up)) => GateUp::Units([gate, up]),
            _ => GateUp::Floats([gate.expect_float("norm_gate_up")?.0, up.expect_float("norm_gate_up")?.0]),
        };
        fused::norm_gate_up(&self.device, &self.choice, n, x, norm, gate_up, scales, out)
    }

    /// [`Ops::norm_qkv_rope`](qernel_core::ops::Ops::norm_qkv_rope), likewise.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    #[allow(clippy::too_many_arguments)] // The operation has these operands.
    pub fn fused_norm_qkv_rope(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
        weights: [&Weight; 3],
        biases: [Option<&DeviceBuffer<f32>>; 3],
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let weights = match weights.map(|weight| weight.units(false)) {
            [Some(q), Some(k), Some(v)] => QkvWeights::Units([q, k, v]),
            _ => {
                let [q, k, v] = weights.map(|weight| weight.expect_unscaled("norm_qkv_rope"));
                QkvWeights::Floats([q?, k?, v?])
            }
        };
        let qkv = fused::Qkv { norm, weights, biases };
        fused::norm_qkv_rope(&self.device, &self.choice, batch, &self.rope, layer, x, &qkv, q, cache)
    }

    /// Stores rows of `dtype` of a batch that [`KvCache::stage`] has set in `layer`; of a cache that is not all floats.
    ///
    /// # Errors
    /// [`Error::Request`](crate::error::Error::Request) if slots or the layer are out of range, or there are too many rows.
    pub fn quantise_kv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        dtype: Dtype,
        cache: &mut KvCache,
    ) -> Result<()> {
        let from = cache.target(quantise_kv::OP, layer, batch.shape.num_tokens, batch.slots(), dtype)?;
        quantise_kv::leave(batch, layer, &from, cache)?;
        quantise_kv::store(&self.device, &self.choice, cache)
    }
}
