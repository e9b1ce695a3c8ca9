//! Conversion between number formats.

use super::device::Device;
use super::launch::stride;
use super::memory::DeviceBuffer;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use gpu_kernels::convert::{
    BLOCK_SIZE, convert_bf16_f16_plain, convert_bf16_f32_plain, convert_f16_bf16_plain,
    convert_f16_f32_plain, convert_f32_bf16_plain, convert_f32_f16_plain,
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
