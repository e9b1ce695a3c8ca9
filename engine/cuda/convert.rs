//! Conversion between number formats.

use super::device::Device;
use super::launch::{launch, stride};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Instance};
use gpu_kernels::convert::{self as kernels, BLOCK_SIZE, ConvertArgs, LargestArgs, NarrowArgs, SplitArgs};

pub use gpu_kernels::convert::f16_scale;
use std::rc::Rc;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single("convert", &KERNELS)
}

/// All that there are.
pub(super) const KERNELS: [&[Instance]; 6] = [
    kernels::plain().instances(),
    kernels::largest().instances(),
    kernels::largest_vec8().instances(),
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

/// Queues `out = x` for the first `n` rows, in f32.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub(super) fn widen(device: &Device, n: usize, x: &Activation, out: &mut Tensor) -> Result<()> {
    x.expect("widen", "x", x.dtype, n, x.cols)?;
    out.expect("widen", "out", n, x.cols)?;
    let count = n * x.cols;
    if count == 0 {
        return Ok(());
    }
    let (from, to) = (x.data.ptr(), out.ptr_mut().cast());
    if x.dtype == Dtype::F32 {
        // SAFETY: both have `count` values of four bytes, checked above, and are freed behind what is queued.
        return unsafe { device.copy(from.as_raw(), to.as_raw(), count * Dtype::F32.size()) };
    }
    let config = stride(device, count, BLOCK_SIZE);
    let arguments = ConvertArgs { count: count as u64, x: from, out: to };
    let formats = [x.dtype.name().into(), Dtype::F32.name().into()];
    // SAFETY: any grid does; both buffers have `count` values, checked above, and are not the same.
    unsafe { launch(device, kernels::plain(), &formats, &config, arguments) }
}

/// Matrices on their way to f16: what each is multiplied with on the way, [`f16_scale`] of its largest magnitude, is found and used on the
/// device, so that nobody waits for it.
pub struct Narrowing {
    device: Rc<Device>,
    /// The bits of the largest magnitude of each matrix, [`SLOTS`] in a buffer.
    largest: Vec<DeviceBuffer<u32>>,
    count: usize,
}

/// Matrices whose largest magnitudes share a buffer.
const SLOTS: usize = 512;

impl Narrowing {
    /// None so far.
    pub fn new(device: &Rc<Device>) -> Self {
        Self { device: device.clone(), largest: Vec::new(), count: 0 }
    }

    /// Queues `out = x * scale` for the `count` weights of a matrix of f32 or bf16, each rounded to the nearest f16.
    ///
    /// # Errors
    /// [`Error::Request`] if a buffer is too short or x has another format, [`Error::Memory`].
    pub fn narrow(
        &mut self,
        count: usize,
        from: Dtype,
        x: &DeviceBuffer<u8>,
        out: &mut DeviceBuffer<u8>,
    ) -> Result<()> {
        expect_room(count, from, x, Dtype::F16, out)?;
        // SAFETY: both have room, and a `&` and a `&mut` are not the same buffer.
        unsafe { self.launch(count, from, x.ptr(), out.ptr_mut()) }
    }

    /// Queues the same for weights of bf16, where they are.
    ///
    /// # Errors
    /// [`Error::Request`] if the buffer is too short, [`Error::Memory`].
    pub fn narrow_in_place(&mut self, count: usize, weights: &mut DeviceBuffer<u8>) -> Result<()> {
        expect_room(count, Dtype::Bf16, weights, Dtype::F16, weights)?;
        // SAFETY: both formats take two bytes; the kernel may convert in place.
        unsafe { self.launch(count, Dtype::Bf16, weights.ptr(), weights.ptr_mut()) }
    }

    /// # Safety
    /// Both ranges have `count` values; they do not overlap, or x is bf16 and they are the same.
    unsafe fn launch(
        &mut self,
        count: usize,
        from: Dtype,
        x: DevicePtr<u8>,
        out: DevicePtrMut<u8>,
    ) -> Result<()> {
        let slot = self.count % SLOTS;
        if slot == 0 {
            self.largest.push(DeviceBuffer::zeroed(&self.device, SLOTS)?);
        }
        self.count += 1;
        let Some(slots) = self.largest.last_mut().filter(|_| count > 0) else { return Ok(()) };
        let largest = slots.ptr_mut().add(slot);
        let is_aligned = count.is_multiple_of(8) && (x.as_raw() | out.as_raw()).is_multiple_of(16);
        let wide = from == Dtype::Bf16 && is_aligned;
        let config = stride(&self.device, if wide { count / 8 } else { count }, BLOCK_SIZE);
        let (find, narrow) = if wide {
            (kernels::largest_vec8(), kernels::narrow_vec8())
        } else {
            (kernels::largest(), kernels::narrow())
        };
        let (count, from) = (count as u64, [from.name().into()]);
        // SAFETY: any grid does; the caller vouches for the ranges, the slot is this matrix's alone, and what is queued runs in order.
        unsafe {
            launch(&*self.device, find, &from, &config, LargestArgs { count, x, largest })?;
            let arguments = NarrowArgs { count, x, out: out.cast(), largest: largest.into() };
            launch(&*self.device, narrow, &from, &config, arguments)
        }
    }

    /// The largest magnitude of each matrix, in the order in which they came (a NaN, if there is one); waits for what was queued.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier kernel failed.
    pub fn largest(&self) -> Result<Vec<f32>> {
        let bits = self.largest.iter().map(|slots| slots.read(0, SLOTS)).collect::<Result<Vec<_>>>()?;
        Ok(bits.concat().into_iter().take(self.count).map(f32::from_bits).collect())
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

/// Queues splitting `count` f32 values into two parts of bf16 whose sum keeps 16 bits: the higher ones at the front of `halves`,
/// the lower ones from `count.next_multiple_of(8)` on.
///
/// # Errors
/// [`Error::Request`] if a buffer is too short.
pub fn split_to_bf16(
    device: &Device,
    count: usize,
    x: &DeviceBuffer<f32>,
    halves: &mut DeviceBuffer<u16>,
) -> Result<()> {
    if count > x.len() {
        return Err(Error::Request(format!("split: {count} values of a buffer that has {}", x.len())));
    }
    // SAFETY: x has `count` values, checked above; two buffers do not overlap.
    unsafe { split(device, count, x.ptr(), halves) }.map(|_| ())
}

/// Queues splitting `count` f32 values into two bf16 halves, the higher ones at the front of `halves` and the lower ones
/// behind them; answers where both begin.
///
/// # Errors
/// [`Error::Request`] if `halves` has not room for twice `count` values.
///
/// # Safety
/// `x` has `count` values and does not overlap `halves`.
pub(super) unsafe fn split(
    device: &Device,
    count: usize,
    x: DevicePtr<f32>,
    halves: &mut DeviceBuffer<u16>,
) -> Result<[DevicePtr<u8>; 2]> {
    // The lower half begins at a multiple of 16 bytes, as cuBLAS likes its matrices.
    let second = count.next_multiple_of(8);
    if second + count > halves.len() {
        return Err(Error::Request(format!(
            "split: {count} values need room for {} of bf16, there is room for {}",
            second + count,
            halves.len()
        )));
    }
    let config = stride(device, count, BLOCK_SIZE);
    let (high, low) = (halves.ptr_mut(), halves.ptr_mut().add(second));
    // SAFETY: any grid does; the caller vouches for x, and the two halves of `halves` have room, checked above.
    unsafe {
        let arguments = SplitArgs { count: count as u64, x, high: high.cast(), low: low.cast() };
        launch(device, kernels::split(), &[], &config, arguments)?;
    }
    Ok([high.cast().into(), low.cast().into()])
}
