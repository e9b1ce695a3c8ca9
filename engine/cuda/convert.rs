//! Conversion between number formats.

use super::device::Device;
use super::launch::stride;
use super::memory::DeviceBuffer;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::DevicePtr;
use gpu_kernels::convert::{
    BLOCK_SIZE, convert_bf16_f16_plain, convert_bf16_f32_plain, convert_f16_bf16_plain,
    convert_f16_f32_plain, convert_f32_bf16_plain, convert_f32_f16_plain, split_f32_bf16_plain,
};

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
    let fits = |buffer: &DeviceBuffer<u8>, dtype: Dtype| {
        count.checked_mul(dtype.size()).is_some_and(|bytes| bytes <= buffer.len())
    };
    if !fits(x, from) || !fits(out, to) {
        return Err(Error::Request(format!(
            "convert: {count} values from {} bytes of {from} to {} bytes of {to}",
            x.len(),
            out.len()
        )));
    }
    if count == 0 {
        return Ok(());
    }
    let config = stride(device, count, BLOCK_SIZE);
    let (x, out, count) = (x.ptr(), out.ptr_mut(), count as u64);
    // SAFETY: any grid does; both buffers have `count` values, aligned to 256 bytes, and are not the same.
    unsafe {
        match (from, to) {
            (Dtype::F32, Dtype::F16) => convert_f32_f16_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::F32, Dtype::Bf16) => convert_f32_bf16_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::F16, Dtype::F32) => convert_f16_f32_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::F16, Dtype::Bf16) => convert_f16_bf16_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::Bf16, Dtype::F32) => convert_bf16_f32_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::Bf16, Dtype::F16) => convert_bf16_f16_plain(device, &config, count, x.cast(), out.cast()),
            (Dtype::F32, Dtype::F32) | (Dtype::F16, Dtype::F16) | (Dtype::Bf16, Dtype::Bf16) => {
                Err(Error::Request(format!("convert: from {from} to itself")))
            }
        }
    }
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
    unsafe { split_f32_bf16_plain(device, &config, count as u64, x, high.cast(), low.cast())? };
    Ok([high.cast().into(), low.cast().into()])
}
