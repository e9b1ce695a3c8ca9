//! What operations read and write on the device.

use super::device::Device;
pub use super::kv_cache::KvCache;
use super::memory::{Bytes, DeviceBuffer, Uploader};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::SlotLayout;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use rayon::prelude::*;
use std::rc::Rc;

/// f32 `[rows, cols]`, row-major.
pub struct Tensor {
    pub(super) data: DeviceBuffer<f32>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// `[rows, cols]` in a float format, row-major: what matrix products read, and weights that are floats.
pub struct Activation {
    pub(super) data: DeviceBuffer<u8>,
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// What a product multiplies its values with, a power of two: what was written last may have been divided by it.
    pub(super) scale: f32,
}

/// What recurrent layers keep of sequences: for each layer `[num_slots, values of a slot]`, f32.
pub struct States {
    data: DeviceBuffer<f32>,
    layout: SlotLayout,
}

/// `rows * cols`, or an error where that is more than the address space.
pub(super) fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .ok_or_else(|| Error::Memory(format!("[{rows}, {cols}] values are more than the address space")))
}

/// Refuses a shape that has too few rows or other columns than the operation.
fn expect(op: &str, name: &str, found: (usize, usize), n: usize, cols: usize) -> Result<()> {
    if found.0 >= n && found.1 == cols {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{op}: {name} must be [at least {n}, {cols}], it is [{}, {}]",
        found.0, found.1
    )))
}

impl Tensor {
    pub(super) fn new(device: &Rc<Device>, rows: usize, cols: usize) -> Result<Self> {
        Ok(Self { data: DeviceBuffer::zeroed(device, elements(rows, cols)?)?, rows, cols })
    }

    /// Rows it has room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Replaces the first values, row-major, and waits.
    ///
    /// # Errors
    /// [`Error::Device`] if there are more than it holds.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.data.write(0, values)
    }

    /// All values, row-major, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier kernel failed.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        self.data.read(0, self.data.len())
    }

    pub(super) fn expect(&self, op: &str, name: &str, n: usize, cols: usize) -> Result<()> {
        expect(op, name, (self.rows, self.cols), n, cols)
    }

    pub(super) fn ptr(&self) -> DevicePtr<f32> {
        self.data.ptr()
    }

    pub(super) fn ptr_mut(&mut self) -> DevicePtrMut<f32> {
        self.data.ptr_mut()
    }
}

impl Activation {
    pub(super) fn new(device: &Rc<Device>, dtype: Dtype, rows: usize, cols: usize) -> Result<Self> {
        let bytes = elements(elements(rows, cols)?, dtype.size())?;
        Ok(Self { data: DeviceBuffer::zeroed(device, bytes)?, dtype, rows, cols, scale: 1.0 })
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What its values are multiplied with to be what they stand for; a power of two.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Rows it has room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Replaces the first values, row-major, each rounded to the nearest of this format, and waits.
    ///
    /// # Errors
    /// [`Error::Device`] if there are more than it holds.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.data.write(0, &encode(self.dtype, values))
    }

    /// All values, row-major, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier kernel failed.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        Ok(decode(self.dtype, &self.data.read(0, self.rows * self.cols * self.dtype.size())?))
    }

    /// Holds values of `dtype` from now on, which has what was written before undefined.
    ///
    /// # Errors
    /// [`Error::Request`] if there is not room for them.
    pub fn set_dtype(&mut self, dtype: Dtype) -> Result<()> {
        if self.rows * self.cols * dtype.size() > self.data.len() {
            return Err(Error::Request(format!(
                "[{}, {}] of {dtype} do not fit in {} bytes",
                self.rows,
                self.cols,
                self.data.len()
            )));
        }
        self.dtype = dtype;
        Ok(())
    }

    pub(super) fn expect(&self, op: &str, name: &str, dtype: Dtype, n: usize, cols: usize) -> Result<()> {
        expect(op, name, (self.rows, self.cols), n, cols)?;
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::Request(format!("{op}: {name} must be {dtype}, it is {}", self.dtype)))
    }

    pub(super) fn ptr(&self) -> DevicePtr<u8> {
        self.data.ptr()
    }

    pub(super) fn ptr_mut(&mut self) -> DevicePtrMut<u8> {
        self.data.ptr_mut()
    }
}

impl States {
    pub(super) fn new(device: &Rc<Device>, layout: &SlotLayout) -> Result<Self> {
        let slots = elements(layout.num_layers, layout.num_slots)?;
        let values = elements(slots, layout.bytes / size_of::<f32>())?;
        Ok(Self { data: DeviceBuffer::zeroed(device, values)?, layout: *layout })
    }

    /// Values of a slot.
    pub(super) fn slot_values(&self) -> usize {
        self.layout.bytes / size_of::<f32>()
    }

    /// The slots of one layer, to write; each of `values` values, and at least `slots` of them.
    pub(super) fn layer_mut(
        &mut self,
        op: &str,
        layer: usize,
        slots: usize,
        values: usize,
    ) -> Result<DevicePtrMut<f32>> {
        let SlotLayout { num_layers, num_slots, .. } = self.layout;
        if layer >= num_layers || slots > num_slots || values != self.slot_values() {
            return Err(Error::Request(format!(
                "{op}: {slots} slots of {values} values in layer {layer}, of {num_layers} layers with {num_slots} slots of {}",
                self.slot_values()
            )));
        }
        Ok(self.data.ptr_mut().add(layer * num_slots * values))
    }

    /// Queues making a slot of all layers the same as one of `from`.
    ///
    /// # Errors
    /// [`Error::Request`] if one of both does not exist, or they are not of one shape.
    pub(super) fn copy_from(&mut self, device: &Device, slot: usize, from: &Self, of: usize) -> Result<()> {
        let SlotLayout { num_layers, num_slots, bytes } = self.layout;
        self.layout.expect_copy(slot, &from.layout, of)?;
        for layer in 0..num_layers {
            let source = from.data.ptr().add((layer * from.layout.num_slots + of) * self.slot_values());
            let target = self.data.ptr_mut().add((layer * num_slots + slot) * self.slot_values());
            // SAFETY: both slots are there and have as many bytes; the buffers are freed behind what is queued.
            unsafe { device.copy(source.as_raw(), target.as_raw(), bytes)? };
        }
        Ok(())
    }

    /// What a slot holds of all layers, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such slot, [`Error::Memory`] if there is no room for it, [`Error::Device`] if an earlier kernel failed.
    pub(super) fn read_slot(&self, uploader: &mut Uploader, slot: usize) -> Result<Vec<u8>> {
        let mut bytes = self.layout.room_for(slot)?;
        // SAFETY: the slot is there.
        unsafe { uploader.download(&self.ranges(slot), &mut bytes)? };
        Ok(bytes)
    }

    /// Queues setting what a slot holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such slot, or it has another number of bytes.
    pub(super) fn write_slot(&mut self, uploader: &mut Uploader, slot: usize, bytes: &[u8]) -> Result<()> {
        self.layout.expect_slot(slot, bytes.len())?;
        // SAFETY: the slot is there, and has as many bytes; the buffer is freed behind what is queued.
        unsafe { uploader.scatter(bytes, &self.ranges(slot)) }
    }

    /// Where a slot is, of each layer.
    fn ranges(&self, slot: usize) -> Vec<Bytes> {
        let SlotLayout { num_layers, num_slots, bytes } = self.layout;
        let address =
            |layer: usize| self.data.ptr().add((layer * num_slots + slot) * self.slot_values()).as_raw();
        (0..num_layers).map(|layer| Bytes { address: address(layer), len: bytes }).collect()
    }

    /// Sets all values of one layer, `[num_slots, values of a slot]`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer or they are not as many.
    pub fn write(&mut self, layer: usize, values: &[f32]) -> Result<()> {
        let of_layer = self.layout.num_slots * self.slot_values();
        if layer >= self.layout.num_layers || values.len() != of_layer {
            return Err(Error::Request(format!(
                "write: {} values for {of_layer} of layer {layer}",
                values.len()
            )));
        }
        self.data.write(layer * of_layer, values)
    }

    /// All values of one layer, `[num_slots, values of a slot]`, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such layer, or an earlier kernel failed.
    pub fn read(&self, layer: usize) -> Result<Vec<f32>> {
        let of_layer = self.layout.num_slots * self.slot_values();
        self.data.read(layer * of_layer, of_layer)
    }
}

/// The little-endian bytes of `values`, each rounded to the nearest of `dtype`.
pub fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    // In parts, for several threads: the weights of a large model are a thousand million values.
    const PART: usize = 1 << 16;
    fn each<const N: usize>(to: &mut [u8], from: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
        to.as_chunks_mut().0.iter_mut().zip(from).for_each(|(to, &value)| *to = bytes(value));
    }
    let mut bytes = vec![0; values.len() * dtype.size()];
    let parts = bytes.par_chunks_mut(PART * dtype.size()).zip(values.par_chunks(PART));
    parts.for_each(|(to, from)| match dtype {
        Dtype::F32 => each(to, from, f32::to_le_bytes),
        Dtype::F16 => each(to, from, |value| f16::from_f32(value).to_le_bytes()),
        Dtype::Bf16 => each(to, from, |value| bf16::from_f32(value).to_le_bytes()),
    });
    bytes
}

/// The values in little-endian `bytes`.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        Dtype::F16 => pairs().map(|&two| f16::from_le_bytes(two).to_f32()).collect(),
        Dtype::Bf16 => pairs().map(|&two| bf16::from_le_bytes(two).to_f32()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_their_format() {
        let values = [0.0, -1.5, 0.25, 65504.0, f32::INFINITY];
        for dtype in Dtype::ALL {
            let bytes = encode(dtype, &values);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            let expected = values.map(|v| if dtype == Dtype::Bf16 && v == 65504.0 { 65536.0 } else { v });
            assert_eq!(decode(dtype, &bytes), expected, "{dtype}");
        }
    }

    #[test]
    fn shapes_are_refused_with_both_numbers() {
        let text = expect("add", "x", (4, 7), 5, 8).unwrap_err().to_string();
        assert!(
            text.contains("add: x") && text.contains("[at least 5, 8]") && text.contains("[4, 7]"),
            "{text}"
        );
        expect("add", "x", (5, 8), 3, 8).unwrap();
    }
}
