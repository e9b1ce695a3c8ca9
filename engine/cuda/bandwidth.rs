//! The read bandwidth of the device, measured.

use super::device::Device;
use super::driver::{self, check};
use super::memory::DeviceBuffer;
use crate::error::{Error, Result};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::read_bandwidth::{READ_THREADS, read_bandwidth_u32_plain};
use std::rc::Rc;

/// Bytes to read: many times the L2 of any device. Less where less is free.
const BYTES: usize = 1 << 30;
/// Passes, of which the fastest counts: the ceiling is what the memory can do, not what it does on average.
const PASSES: usize = 5;

/// Bytes a second that a kernel which only reads gets from the device's memory; takes a few milliseconds.
///
/// # Errors
/// [`Error::Memory`] if there is no room for a buffer larger than the L2, [`Error::Device`] from the device.
pub(super) fn read_bandwidth(device: &Rc<Device>) -> Result<f64> {
    let (free, _) = device.memory_info()?;
    let bytes = BYTES.min(free / 2) & !0xFFFF;
    if bytes < 2 * device.info().l2_cache {
        return Err(Error::Memory(format!(
            "measuring the bandwidth needs a buffer larger than the L2 cache; only {free} bytes are free"
        )));
    }
    let buffer: DeviceBuffer<u32> = DeviceBuffer::zeroed(device, bytes / 4)?;
    let blocks = device.info().multiprocessors * 4;
    let mut out: DeviceBuffer<u32> = DeviceBuffer::zeroed(device, blocks as usize)?;
    let config = LaunchConfig { grid: [blocks, 1, 1], block: [READ_THREADS, 1, 1], shared_bytes: 0 };
    let mut timer = Timer::new(device)?;
    let mut fastest = f64::INFINITY;
    // The first pass also loads the kernel; it is not counted.
    for pass in 0..=PASSES {
        timer.start()?;
        // SAFETY: the buffer has `bytes / 16` words, aligned as every allocation is; `out` has one value a block.
        unsafe {
            let words = buffer.ptr().cast();
            read_bandwidth_u32_plain(&**device, &config, (bytes / 16) as u64, words, out.ptr_mut())?;
        }
        let seconds = timer.stop()?;
        if pass > 0 {
            fastest = fastest.min(seconds);
        }
    }
    Ok(bytes as f64 / fastest)
}

/// Time between two points of the device's stream, by the device's clock.
struct Timer {
    device: Rc<Device>,
    from: driver::CUevent,
    to: driver::CUevent,
}

impl Timer {
    fn new(device: &Rc<Device>) -> Result<Self> {
        let mut timer = Self { device: device.clone(), from: std::ptr::null_mut(), to: std::ptr::null_mut() };
        // SAFETY: each call writes one handle; drop destroys those that were made.
        unsafe {
            check(driver::cuEventCreate(&mut timer.from, 0), "creating an event")?;
            check(driver::cuEventCreate(&mut timer.to, 0), "creating an event")?;
        }
        Ok(timer)
    }

    fn start(&mut self) -> Result<()> {
        // SAFETY: event and stream are alive.
        check(unsafe { driver::cuEventRecord(self.from, self.device.stream()) }, "recording an event")
    }

    /// Waits, and answers the seconds since `start`.
    fn stop(&mut self) -> Result<f64> {
        let mut milliseconds = 0.0f32;
        // SAFETY: events and stream are alive; the last call writes one float.
        unsafe {
            check(driver::cuEventRecord(self.to, self.device.stream()), "recording an event")?;
            check(driver::cuEventSynchronize(self.to), "waiting for the device")?;
            check(driver::cuEventElapsedTime(&mut milliseconds, self.from, self.to), "reading the time")?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for event in [self.from, self.to] {
            if !event.is_null() {
                // SAFETY: the event is this timer's own.
                unsafe { driver::cuEventDestroy_v2(event) };
            }
        }
    }
}
