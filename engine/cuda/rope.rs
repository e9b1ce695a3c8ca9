//! Rotary position embedding.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{dimension, elements_of_rows};
use super::memory::DeviceBuffer;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use gpu_kernels::rope::{BLOCK_SIZE, rope_f32_plain};
use qernel_core::rope::rope_table;
use std::rc::Rc;

const OP: &str = "rope";

/// [`rope_table`] on the device.
pub(super) struct RopeTable {
    /// `[max_positions, head_dim / 2]`
    pub cos: DeviceBuffer<f32>,
    /// `[max_positions, head_dim / 2]`
    pub sin: DeviceBuffer<f32>,
    pub head_dim: usize,
    pub max_positions: usize,
}

impl RopeTable {
    /// # Errors
    /// [`Error::Model`] if `head_dim` is odd, [`Error::Memory`] from the device.
    pub(super) fn new(
        device: &Rc<Device>,
        theta: f32,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::Model(format!("head_dim must be even and positive, it is {head_dim}")));
        }
        let (cos, sin) = rope_table(theta, head_dim, max_positions);
        let cos = DeviceBuffer::from_slice(device, &cos)?;
        let sin = DeviceBuffer::from_slice(device, &sin)?;
        Ok(Self { cos, sin, head_dim, max_positions })
    }
}

/// Rotates every head of every row by its position, in place: `[num_tokens, num_heads * head_dim]`.
pub(super) fn rope(
    device: &Device,
    batch: &CudaBatch,
    table: &RopeTable,
    num_heads: usize,
    x: &mut Tensor,
) -> Result<()> {
    let n = batch.shape.num_tokens;
    x.expect(OP, "x", n, num_heads.saturating_mul(table.head_dim))?;
    expect_bound(OP, "position", batch.shape.position_bound, table.max_positions)?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let (num_heads, head_dim) = (dimension(OP, num_heads)?, dimension(OP, table.head_dim)?);
    // SAFETY: one row of blocks for each of the `n` rows, a thread for each pair; every position is a row of the
    // tables, checked above.
    unsafe {
        let config = elements_of_rows(rows, cols / 2, BLOCK_SIZE);
        let (cos, sin) = (table.cos.ptr(), table.sin.ptr());
        rope_f32_plain(device, &config, num_heads, head_dim, batch.positions(), cos, sin, x.ptr_mut())
    }
}
