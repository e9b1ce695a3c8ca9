//! What recurrent layers keep of each sequence, in memory.

use super::tensor::Tensor;
use crate::batch::Batch;
use crate::config::LinearSizes;
use crate::error::{Error, Result};
use crate::kv_layout::SlotLayout;
use crate::ops::keep::{extend_bytes, from_bytes};
use std::ops::Range;

/// The slots of all layers, f32. Memory is taken from the system when a slot is first written.
pub struct States {
    layout: SlotLayout,
    /// `[num_layers * num_slots, values of a slot]`
    slots: Tensor,
}

/// The slot of a sequence in one layer.
pub(super) struct Slot<'a> {
    /// The rows of the sequence in the batch.
    pub rows: Range<usize>,
    /// It begins with them: what the slot holds is of another one.
    pub begins: bool,
    /// `[linear_conv_kernel_dim - 1, channels]`, the oldest first.
    pub conv: &'a mut [f32],
    /// `[linear_num_value_heads, linear_key_head_dim, linear_value_head_dim]`
    pub recurrent: &'a mut [f32],
}

impl States {
    /// Reserves all slots, zeroed.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub fn new(layout: &SlotLayout) -> Result<Self> {
        let slots = layout.num_layers.saturating_mul(layout.num_slots);
        Ok(Self { layout: *layout, slots: Tensor::new(slots, layout.bytes / size_of::<f32>())? })
    }

    /// All values of the slots of a layer, `[num_slots, values of a slot]`: for comparing with another device's.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer.
    pub fn read(&self, layer: usize) -> Result<Vec<f32>> {
        self.expect_layer("read", layer)?;
        let values = self.layout.num_slots * self.slots.cols();
        Ok(self.slots.values()[layer * values..][..values].to_vec())
    }

    /// Makes a slot of all layers the same as one of `from`.
    ///
    /// # Errors
    /// [`Error::Request`] if one of both does not exist, or they are not of one shape.
    pub fn copy_from(&mut self, slot: usize, from: &Self, of: usize) -> Result<()> {
        let SlotLayout { num_layers, num_slots, .. } = self.layout;
        self.layout.expect_copy(slot, &from.layout, of)?;
        for layer in 0..num_layers {
            let row = from.slots.row(layer * from.layout.num_slots + of);
            self.slots.row_mut(layer * num_slots + slot).copy_from_slice(row);
        }
        Ok(())
    }

    /// What a slot holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such slot, [`Error::Memory`] if there is no room for it.
    pub fn read_slot(&self, slot: usize) -> Result<Vec<u8>> {
        let SlotLayout { num_layers, num_slots, .. } = self.layout;
        let mut bytes = self.layout.room_for(slot)?;
        (0..num_layers).for_each(|layer| extend_bytes(&mut bytes, self.slots.row(layer * num_slots + slot)));
        Ok(bytes)
    }

    /// Sets what a slot holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such slot, or it has another number of bytes.
    pub fn write_slot(&mut self, slot: usize, bytes: &[u8]) -> Result<()> {
        let SlotLayout { num_layers, num_slots, .. } = self.layout;
        self.layout.expect_slot(slot, bytes.len())?;
        let mut values = from_bytes(bytes);
        for layer in 0..num_layers {
            let row = self.slots.row_mut(layer * num_slots + slot);
            row.iter_mut().zip(&mut values).for_each(|(to, value)| *to = value);
        }
        Ok(())
    }

    /// The slots of the sequences of `batch` in `layer`, in their order.
    pub(super) fn of_batch(
        &mut self,
        op: &str,
        layer: usize,
        sizes: &LinearSizes,
        batch: &Batch,
    ) -> Result<Vec<Slot<'_>>> {
        self.expect_layer(op, layer)?;
        let (slots, values) = (self.layout.num_slots, self.slots.cols());
        if values != sizes.slot_values() {
            return Err(Error::Request(format!("{op}: slots of {values} values are not those of {sizes:?}")));
        }
        let all =
            self.slots.values_mut()[layer * slots * values..][..slots * values].chunks_exact_mut(values);
        let mut free: Vec<_> = all.map(Some).collect();
        let take = |(s, &slot): (usize, &u32)| {
            let slot = free.get_mut(slot as usize).and_then(Option::take).ok_or_else(|| {
                Error::Request(format!("{op}: slot {slot} of {slots} is not there, or two sequences have it"))
            })?;
            let (conv, recurrent) = slot.split_at_mut(sizes.conv_state());
            let (rows, begins) = rows_of(op, batch, s)?;
            Ok(Slot { rows, begins, conv, recurrent })
        };
        batch.state_slots.iter().enumerate().map(take).collect()
    }

    fn expect_layer(&self, op: &str, layer: usize) -> Result<()> {
        if layer < self.layout.num_layers {
            return Ok(());
        }
        Err(Error::Request(format!("{op}: layer {layer} of {} with slots", self.layout.num_layers)))
    }
}

/// The rows of sequence `s`, and whether it begins with them.
///
/// # Errors
/// [`Error::Request`] if the arrays of the batch do not fit each other.
fn rows_of(op: &str, batch: &Batch, s: usize) -> Result<(Range<usize>, bool)> {
    let bound = |i: usize| batch.query_start.get(i).map(|&row| row as usize);
    let rows = bound(s).zip(bound(s + 1)).map(|(start, end)| start..end);
    let rows = rows.filter(|rows| rows.start <= rows.end && rows.end <= batch.positions.len());
    let rows = rows.ok_or_else(|| Error::Request(format!("{op}: sequence {s} has no rows")))?;
    let begins = batch.positions.get(rows.start) == Some(&0);
    Ok((rows, begins))
}
