//! Kernels of a part of a layer, and parts of an operation, by themselves: the laboratory checks and times what the engine
//! chooses between.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::ops::Rows;
use crate::ops::parts::RmsNorm;
use crate::tensor::{Activation, KvCache, Tensor};
use crate::weight::{Piece, Values, Weight};
use crate::{add, bias_gelu, bias_rope_kv, decode, fused, matmul, rms_norm, row_norms, silu_mul};

impl CudaOps {
    /// Whether the kernels that compute a whole part of a layer take these rows of a batch, for a model of this `hidden_size`, and are
    /// the faster way.
    pub(super) fn is_fused(&self, rows: Rows<CudaBatch>, hidden_size: usize) -> bool {
        // Every row its sequence's only one: a decode step.
        if rows.batch.shape.rows.has_multiple || rows.n > fused::max_rows(self.dtype) {
            return false;
        }
        let chosen = self.choice.get(fused::OP).is_none_or(|name| name == fused::FUSED);
        let replaced = [matmul::OP, rms_norm::OP, silu_mul::OP, bias_rope_kv::OP, add::OP];
        let separate = replaced.iter().any(|op| self.choice.get(op).is_some());
        chosen
            && !separate
            && fused::is_eligible(
                &self.choice,
                rows.batch.shape.num_tokens,
                self.dtype,
                hidden_size,
                &self.widths,
            )
    }

    /// `x += delta`: `[n, cols]`, a part of [`CudaOps::matmul_accumulate`].
    ///
    /// # Errors
    /// [`Error::Request`] if the shapes differ, [`Error::Device`].
    pub fn add(&mut self, n: usize, x: &mut Tensor, delta: &Tensor) -> Result<()> {
        add::add(&self.device, &self.choice, n, x, delta)
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
            [Piece { values: Values::Blocks(matrix), .. }] => decode::decode(&self.device, matrix, out),
            _ => Err(Error::Request("decode: expected a matrix in blocks".into())),
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
        fused::norm_matmul(
            &self.device,
            &self.choice,
            n,
            x,
            norm,
            weight.expect_unscaled("norm_matmul")?,
            out,
        )
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
        let gated = up.scales().map_or(1.0, |scales| scales.gated.get());
        let (gate, (up, up_scale)) = (gate.expect_float("norm_gate_up")?, up.expect_float("norm_gate_up")?);
        out.scale = gated;
        let gate_up = [gate, (up, up_scale / gated)];
        fused::norm_gate_up(&self.device, &self.choice, n, x, norm, gate_up, out)
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
        let [q_proj, k_proj, v_proj] = weights;
        let weights = [
            q_proj.expect_unscaled("norm_qkv_rope")?,
            k_proj.expect_unscaled("norm_qkv_rope")?,
            v_proj.expect_unscaled("norm_qkv_rope")?,
        ];
        let qkv = fused::Qkv { norm, weights, biases };
        fused::norm_qkv_rope(&self.device, &self.choice, batch, &self.rope, layer, x, &qkv, q, cache)
    }
}
