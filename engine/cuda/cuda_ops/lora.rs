//! Adapters: which rows have them is data of the batch, and steps of such rows are not recorded.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lora_add::{self, Out};
use crate::matmul;
use crate::memory::DeviceBuffer;
use crate::ops::Rows;
use crate::ops::lora::{LoraOps, Update};
use crate::tensor::{Activation, Tensor, elements};
use crate::weight::Weight;

impl CudaOps {
    /// Adds an update to sums that were divided by `divisor`.
    fn add_update(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        update: &Update<DeviceBuffer<f32>>,
        divisor: f32,
        out: Out,
    ) -> Result<()> {
        let Some(scales) = rows.batch.adapter_scales(update.adapter, rows.n)? else { return Ok(()) };
        lora_add::lora_add(&self.device, &mut self.lora_inner, scales, rows.n, x, update, divisor, out)
    }
}

impl LoraOps for CudaOps {
    fn reserve_rank(&mut self, rank: usize) -> Result<()> {
        let room = elements(self.max_num_tokens, rank)?;
        if room > self.lora_inner.len() {
            self.lora_inner = DeviceBuffer::zeroed(&self.device, room)?;
        }
        Ok(())
    }

    fn has_adapters(&self, batch: &CudaBatch) -> bool {
        batch.has_adapters()
    }

    fn lora_add(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        update: &Update<DeviceBuffer<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        out.expect(lora_add::OP, "out", rows.n, out.cols)?;
        let place = Out { start: out.ptr_mut(), cols: out.cols };
        self.add_update(rows, x, update, 1.0, place)
    }

    fn matmul_unrounded(
        &mut self,
        n: usize,
        x: &Activation,
        weight: &Weight,
        out: &mut Activation,
    ) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul_rounded(tools, choice, n, x, weight, false, out)
    }

    fn lora_add_product(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        update: &Update<DeviceBuffer<f32>>,
        weight: &Weight,
        out: &mut Activation,
    ) -> Result<()> {
        out.expect(lora_add::OP, "out", Dtype::F32, rows.n, out.cols)?;
        let divisor = weight.scales().map_or(1.0, |scales| scales.product.get());
        let place = Out { start: out.ptr_mut().cast(), cols: out.cols };
        self.add_update(rows, x, update, divisor, place)
    }
}
