//! Kernels of a part of a layer, and parts of an operation, by themselves: the laboratory checks and times what the engine
//! chooses between.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::error::{Error, Result};
use crate::fused::{GateUp, HeadWeight, QkvWeights};
use crate::memory::DeviceBuffer;
use crate::ops::parts::Norm;
use crate::ops::{Rows, Stacked};
use crate::tensor::{Activation, KvCache, Piece, Tensor, Weight};
use crate::units::Units;
use crate::{add, bias_rope_kv, decode, fused, matmul, rms_norm, silu_mul};

impl CudaOps {
    /// Whether the kernels that compute a whole part of a layer take these rows of a batch, for a model of this `hidden_size` whose weights are
    /// floats, and are the faster way.
    pub(super) fn is_fused(&self, rows: Rows<CudaBatch>, hidden_size: usize) -> bool {
        self.is_step_of_parts(rows)
            && fused::is_eligible(
                &self.choice,
                rows.batch.shape.num_tokens,
                self.dtype,
                hidden_size,
                &self.widths,
            )
    }

    /// Whether kernels that compute a whole part of a layer are wanted for these rows of a batch.
    pub(super) fn is_step_of_parts(&self, rows: Rows<CudaBatch>) -> bool {
        // Every row its sequence's only one: a decode step.
        if rows.batch.shape.rows.has_multiple || rows.n > fused::max_rows(self.dtype) {
            return false;
        }
        let chosen = self.choice.get(fused::OP).is_none_or(|name| name == fused::FUSED);
        let replaced =
            [matmul::OP, matmul::blocks::OP, rms_norm::OP, silu_mul::OP, bias_rope_kv::OP, add::OP];
        chosen && !replaced.iter().any(|op| self.choice.get(op).is_some())
    }

    /// Whether `op` is one kernel for these rows, whose weights are in units.
    pub(super) fn takes_units(&self, op: &str, units: Units, rows: Rows<CudaBatch>) -> bool {
        self.is_step_of_parts(rows) && fused::takes_units(&self.choice, op, rows.n) && units.takes(rows.n)
    }

    /// `x += delta`: `[n, cols]`, a part of [`CudaOps::matmul_accumulate`].
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes differ, [`Error::Device`].
    pub fn add(&mut self, n: usize, x: &mut Tensor, delta: &Tensor) -> Result<()> {
        add::add(&self.device, &self.choice, n, x, delta)
    }

    /// [`Ops::matmul_add`] by the kernels and the library that take any rows.
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
        decode::decode(&self.device, weight, out)
    }

    /// Repacks the blocks of a file in the place of a matrix that was loaded from such blocks, where the device repacks them.
    ///
    /// # Errors
    /// [`Error::Request`] if it does not, or they are not as many.
    pub fn repack(&mut self, blocks: &DeviceBuffer<u8>, weight: &mut Weight) -> Result<()> {
        match &mut weight.pieces[..] {
            [Piece::Units(matrix)] => matrix.repack(&self.device, blocks),
            _ => Err(Error::Request("repack: the matrix is as in the file".into())),
        }
    }

    /// [`Ops::matmul_add`] by the kernels for few rows.
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

    /// [`Ops::norm_matmul`], whether or not it is the faster way.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    pub fn fused_norm_matmul(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &Norm<DeviceBuffer<f32>>,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let weight = match weight.units() {
            Some(units) => HeadWeight::Units(units),
            None => HeadWeight::Float(weight.expect_float("norm_matmul")?),
        };
        fused::norm_matmul(&self.device, &self.choice, n, x, norm, weight, out)
    }

    /// [`Ops::norm_gate_up`], likewise.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    pub fn fused_norm_gate_up(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &Norm<DeviceBuffer<f32>>,
        gate_up: &Stacked<Weight>,
        out: &mut Activation,
    ) -> Result<()> {
        let gate_up = match (gate_up.whole.units(), &gate_up.parts[..]) {
            (Some(units), _) => GateUp::Units(units),
            (None, [gate, up]) => {
                GateUp::Floats([gate.expect_float("norm_gate_up")?, up.expect_float("norm_gate_up")?])
            }
            _ => return Err(Error::Request("norm_gate_up: the weights must be gate and up".into())),
        };
        fused::norm_gate_up(&self.device, &self.choice, n, x, norm, gate_up, out)
    }

    /// [`Ops::norm_qkv_rope`], likewise.
    ///
    /// # Errors
    /// As [`CudaOps::fused_matmul_add`].
    #[allow(clippy::too_many_arguments)] // The operation has these operands.
    pub fn fused_norm_qkv_rope(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        x: &Tensor,
        norm: &Norm<DeviceBuffer<f32>>,
        weights: [&Weight; 3],
        biases: [Option<&DeviceBuffer<f32>>; 3],
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let weights = match weights.map(Weight::units) {
            [Some(q), Some(k), Some(v)] => QkvWeights::Units([q, k, v]),
            _ => {
                let [q, k, v] = weights.map(|weight| weight.expect_float("norm_qkv_rope"));
                QkvWeights::Floats([q?, k?, v?])
            }
        };
        let qkv = fused::Qkv { norm, weights, biases };
        fused::norm_qkv_rope(&self.device, &self.choice, batch, &self.rope, layer, x, &qkv, q, cache)
    }
}
