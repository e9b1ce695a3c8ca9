//! What the launch wrappers share: grids, and launching the kernel of a dtype.

use super::device::Device;
use super::memory::DeviceBuffer;
use crate::error::{Error, Result};
use cuda_std::launch::{Arguments, Kernels, LaunchConfig, Launcher, Value};

/// How a variant is launched: unsafe, for it relies on the checks that its operation made on the case.
pub(super) type Launch<C> = unsafe fn(&Device, &C) -> Result<()>;

/// Launches the entry of `kernels` that was made for `values`.
///
/// # Errors
/// [`Error::Request`] if there is none, or what the device says.
///
/// # Safety
/// The kernel's own contract, with the pointers to `u8` leading to values of the entry's types.
pub(super) unsafe fn launch<A: Arguments>(
    device: &impl Launcher<Error = Error>,
    kernels: &Kernels<A>,
    values: &[Value],
    config: &LaunchConfig,
    arguments: A,
) -> Result<()> {
    let entry = kernels.get(values).ok_or_else(|| {
        let name = kernels.instances().first().map_or("", |instance| instance.kernel.name);
        Error::Request(format!("{name}: there is no such kernel for {values:?}"))
    })?;
    // SAFETY: the caller's promise.
    unsafe { entry.launch(device, config, arguments) }
}

/// `value` as kernels take dimensions.
pub(super) fn dimension(op: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Request(format!("{op}: a dimension of {value} is over 32 bits")))
}

/// The error of a vector that has another length than the rows it goes with.
pub(super) fn expect_vector(op: &str, name: &str, vector: &DeviceBuffer<f32>, cols: usize) -> Result<()> {
    if vector.len() == cols {
        return Ok(());
    }
    Err(Error::Request(format!("{op}: {name} must have {cols} values, it has {}", vector.len())))
}

/// A one-dimensional grid for a grid-stride loop over `count` elements: a thread for each, but no more blocks than
/// keep the device busy.
pub(super) fn stride(device: &Device, count: usize, block_size: u32) -> LaunchConfig {
    const BLOCKS_PER_MULTIPROCESSOR: usize = 8;
    let busy = device.info().multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR;
    let blocks = count.div_ceil(block_size as usize).clamp(1, busy.max(1));
    LaunchConfig { grid: [blocks as u32, 1, 1], block: [block_size, 1, 1], shared_bytes: 0 }
}

/// A grid of `[rows, ceil(cols / block_size)]`: a thread for each element, no thread divides.
pub(super) fn elements_of_rows(rows: u32, cols: u32, block_size: u32) -> LaunchConfig {
    LaunchConfig { grid: [rows, cols.div_ceil(block_size), 1], block: [block_size, 1, 1], shared_bytes: 0 }
}

/// A grid of one block a row.
pub(super) fn block_per_row(rows: u32, block_size: u32) -> LaunchConfig {
    LaunchConfig { grid: [rows, 1, 1], block: [block_size, 1, 1], shared_bytes: 0 }
}

/// For variants that compute every case.
pub(super) fn always<C>(_: &C) -> Result<(), &'static str> {
    Ok(())
}
