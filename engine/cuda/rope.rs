//! The table of rotary position embedding.

use super::device::Device;
use super::memory::DeviceBuffer;
use crate::error::{Error, Result};
use qernel_core::rope::{self, Rotation};
use std::rc::Rc;

/// Positions that a table has at once, as far as the context goes: more than most models are made for.
const FIRST_POSITIONS: usize = 1 << 16;

/// [`rope::RopeTable`] on the device. It has the first positions of the context, and more when one comes that it lacks: what a file
/// claims to be made for costs nothing until it is used.
pub(super) struct RopeTable {
    rotation: Rotation,
    /// `[num_positions, head_dim / 2]`
    pub cos: DeviceBuffer<f32>,
    /// `[num_positions, head_dim / 2]`
    pub sin: DeviceBuffer<f32>,
    pub head_dim: usize,
    pub num_positions: usize,
    max_positions: usize,
}

impl RopeTable {
    /// A table for contexts of `max_positions`.
    ///
    /// # Errors
    /// [`Error::Model`] if `head_dim` is odd, [`Error::Memory`] from the device or the host.
    pub(super) fn new(
        device: &Rc<Device>,
        rotation: &Rotation,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::Model(format!("head_dim must be even and positive, it is {head_dim}")));
        }
        let (cos, sin) = (DeviceBuffer::zeroed(device, 1)?, DeviceBuffer::zeroed(device, 1)?);
        let rotation = rotation.clone();
        let mut table = Self { rotation, cos, sin, head_dim, num_positions: 0, max_positions };
        table.grow(device, FIRST_POSITIONS.min(max_positions))?;
        Ok(table)
    }

    /// Has at least the first `num_positions` from now on, as far as the context goes, twice as many as before if it lacks one.
    /// Answers whether the buffers are others now.
    ///
    /// # Errors
    /// As [`RopeTable::new`].
    pub(super) fn grow(&mut self, device: &Rc<Device>, num_positions: usize) -> Result<bool> {
        if num_positions.min(self.max_positions) <= self.num_positions {
            return Ok(false);
        }
        let room = num_positions.max(2 * self.num_positions).min(self.max_positions);
        let mut table = rope::RopeTable::new(&self.rotation, self.head_dim);
        table.grow(room)?;
        // The old buffers go first: memory is planned for one table of the whole context.
        self.num_positions = 0;
        (self.cos, self.sin) = (DeviceBuffer::zeroed(device, 1)?, DeviceBuffer::zeroed(device, 1)?);
        self.cos = DeviceBuffer::from_slice(device, table.cos())?;
        self.sin = DeviceBuffer::from_slice(device, table.sin())?;
        self.num_positions = room;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_std::emulation;

    #[test]
    fn a_table_grows_as_positions_come() {
        let device = Rc::new(Device::emulated(emulation::Options::default()));
        let rotation = Rotation::new(1e4, 2);
        let mut table = RopeTable::new(&device, &rotation, 2, 1 << 24).unwrap();
        assert_eq!(table.num_positions, FIRST_POSITIONS);
        assert!(!table.grow(&device, FIRST_POSITIONS).unwrap(), "it has them");
        assert!(table.grow(&device, FIRST_POSITIONS + 1).unwrap());
        assert_eq!(table.num_positions, 2 * FIRST_POSITIONS);
        let mut whole = rope::RopeTable::new(&rotation, 2);
        whole.grow(2 * FIRST_POSITIONS).unwrap();
        assert_eq!(table.cos.read(0, table.cos.len()).unwrap(), whole.cos());
        assert_eq!(table.sin.read(0, table.sin.len()).unwrap(), whole.sin());

        let mut short = RopeTable::new(&device, &rotation, 2, 100).unwrap();
        assert_eq!((short.num_positions, short.cos.len()), (100, 100));
        assert!(!short.grow(&device, 101).unwrap(), "a launch refuses what is beyond the context");
    }
}
