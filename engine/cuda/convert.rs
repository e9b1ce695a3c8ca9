//! Conversion between number formats.

use super::device::Device;
use super::launch::{launch, stride};
use super::memory::DeviceBuffer;
use super::variant::Operation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Instance};
use gpu_kernels::convert::{self as kernels, BLOCK_SIZE, ConvertArgs, NarrowArgs, SplitArgs};
use std::rc::Rc;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single("convert", &KERNELS)
}

/// All that there are.
pub(super) const KERNELS: [&[Instance]; 4] = [
    kernels::plain().instances(),
    kernels::narrow().instances(),
    kernels::narrow_vec8().instances(),
    kernels::split().instances(),
];

/// Queues `out = x` for `count` values of two different formats, each rounded to the nearest.
///
/// # Errors
/// [`Error::Request`] if a buffer is too short or the formats are the same.
pub fn convert(
    device: &Device,
    count: usize,
    from: Dtype,
    x: &DeviceBuffer<u8>,
    to: Dtype,
    out: &mut DeviceBuffer<u8>,
) -> Result<()> {
    expect_room(count, from, x, to, out)?;
    if count == 0 {
        return Ok(());
    }
    if from == to {
        return Err(Error::Request(format!("convert: from {from} to itself")));
    }
    let config = stride(device, count, BLOCK_SIZE);
    let arguments = ConvertArgs { count: count as u64, x: x.ptr(), out: out.ptr_mut() };
    // SAFETY: any grid does; both buffers have `count` values, aligned to 256 bytes, and are not the same.
    unsafe { launch(device, kernels::plain(), &[from.name().into(), to.name().into()], &config, arguments) }
}

/// Whether weights converted to f16 were in its range, found while they are converted.
pub struct F16Range {
    /// The bits of the largest magnitude beyond it, 0 where there is none.
    beyond: DeviceBuffer<u32>,
}

impl F16Range {
    /// # Errors
    /// [`Error::Memory`] from the device.
    pub fn new(device: &Rc<Device>) -> Result<Self> {
        Ok(Self { beyond: DeviceBuffer::zeroed(device, 1)? })
    }

    /// Queues `out = x` for `count` weights of f32 or bf16, each rounded to the nearest f16.
    ///
    /// # Errors
    /// [`Error::Request`] if a buffer is too short or x has another format.
    pub fn narrow(
        &mut self,
        device: &Device,
        count: usize,
        from: Dtype,
        x: &DeviceBuffer<u8>,
        out: &mut DeviceBuffer<u8>,
    ) -> Result<()> {
        expect_room(count, from, x, Dtype::F16, out)?;
        // SAFETY: both have room, and a `&` and a `&mut` are not the same buffer.
        unsafe { self.launch(device, count, from, x.ptr(), out.ptr_mut()) }
    }

    /// Queues converting `count` weights of bf16 where they are.
    ///
    /// # Errors
    /// [`Error::Request`] if the buffer is too short.
    pub fn narrow_in_place(
        &mut self,
        device: &Device,
        count: usize,
        weights: &mut DeviceBuffer<u8>,
    ) -> Result<()> {
        expect_room(count, Dtype::Bf16, weights, Dtype::F16, weights)?;
        // SAFETY: both formats take two bytes; the kernel may convert in place.
        unsafe { self.launch(device, count, Dtype::Bf16, weights.ptr(), weights.ptr_mut()) }
    }

    /// # Safety
    /// Both ranges have `count` values; they do not overlap, or x is bf16 and they are the same.
    unsafe fn launch(
        &mut self,
        device: &Device,
        count: usize,
        from: Dtype,
        x: DevicePtr<u8>,
        out: DevicePtrMut<u8>,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let beyond = self.beyond.ptr_mut();
        let is_aligned = count.is_multiple_of(8) && (x.as_raw() | out.as_raw()).is_multiple_of(16);
        let wide = from == Dtype::Bf16 && is_aligned;
        let config = stride(device, if wide { count / 8 } else { count }, BLOCK_SIZE);
        let kernel = if wide { kernels::narrow_vec8() } else { kernels::narrow() };
        let arguments = NarrowArgs { count: count as u64, x, out: out.cast(), beyond };
        // SAFETY: any grid does; the caller vouches for the ranges, `beyond` is borrowed alone.
        unsafe { launch(device, kernel, &[from.name().into()], &config, arguments) }
    }

    /// The largest magnitude so far that f16 rounds to infinity (a NaN, if there is one), `None` where all were in range;
    /// waits for what was queued.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier kernel failed.
    pub fn beyond(&self) -> Result<Option<f32>> {
        let bits = self.beyond.read(0, 1)?;
        Ok(bits.first().filter(|&&bits| bits != 0).map(|&bits| f32::from_bits(bits)))
    }
}

/// Refuses buffers that have not `count` values of these formats.
fn expect_room(
    count: usize,
    from: Dtype,
    x: &DeviceBuffer<u8>,
    to: Dtype,
    out: &DeviceBuffer<u8>,
) -> Result<()> {
    let fits = |buffer: &DeviceBuffer<u8>, dtype: Dtype| {
        count.checked_mul(dtype.size()).is_some_and(|bytes| bytes <= buffer.len())
    };
    if fits(x, from) && fits(out, to) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "convert: {count} values from {} bytes of {from} to {} bytes of {to}",
        x.len(),
        out.len()
    )))
}

/// Queues splitting `count` f32 values into two parts of bf16 whose sum keeps 16 bits: the higher ones at the front of `parts`,
/// the lower ones from `count.next_multiple_of(8)` on.
///
/// # Errors
/// [`Error::Request`] if a buffer is too short.
pub fn split_to_bf16(
    device: &Device,
    count: usize,
    x: &DeviceBuffer<f32>,
    parts: &mut DeviceBuffer<u16>,
) -> Result<()> {
    if count > x.len() {
        return Err(Error::Request(format!("split: {count} values of a buffer that has {}", x.len())));
    }
    // SAFETY: x has `count` values, checked above; two buffers do not overlap.
    unsafe { split(device, count, x.ptr(), parts) }.map(|_| ())
}

/// Queues splitting `count` f32 values into two bf16 parts, the higher ones at the front of `parts` and the lower ones
/// behind them; answers where both begin.
///
/// # Errors
/// [`Error::Request`] if `parts` has not room for twice `count` values.
///
/// # Safety
/// `x` has `count` values and does not overlap `parts`.
pub(super) unsafe fn split(
    device: &Device,
    count: usize,
    x: DevicePtr<f32>,
    parts: &mut DeviceBuffer<u16>,
) -> Result<[DevicePtr<u8>; 2]> {
    // The lower half begins at a multiple of 16 bytes, as cuBLAS likes its matrices.
    let second = count.next_multiple_of(8);
    if second + count > parts.len() {
        return Err(Error::Request(format!(
            "split: {count} values need room for {} of bf16, there is room for {}",
            second + count,
            parts.len()
        )));
    }
    let config = stride(device, count, BLOCK_SIZE);
    let (high, low) = (parts.ptr_mut(), parts.ptr_mut().add(second));
    // SAFETY: any grid does; the caller vouches for x, and the two halves of `parts` have room, checked above.
    unsafe {
        let arguments = SplitArgs { count: count as u64, x, high: high.cast(), low: low.cast() };
        launch(device, kernels::split(), &[], &config, arguments)?;
    }
    Ok([high.cast().into(), low.cast().into()])
}
