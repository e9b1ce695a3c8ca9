//! The table of rotary position embedding.

use super::device::Device;
use super::memory::DeviceBuffer;
use crate::error::{Error, Result};
use qernel_core::rope::{Rotation, rope_table};
use std::rc::Rc;

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
        rotation: &Rotation,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::Model(format!("head_dim must be even and positive, it is {head_dim}")));
        }
        let (cos, sin) = rope_table(rotation, head_dim, max_positions);
        let cos = DeviceBuffer::from_slice(device, &cos)?;
        let sin = DeviceBuffer::from_slice(device, &sin)?;
        Ok(Self { cos, sin, head_dim, max_positions })
    }
}
