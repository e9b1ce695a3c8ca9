//! A device that is emulated on the CPU, behind [`Device`](super::Device).

use super::device_info::DeviceInfo;
use crate::error::{Error, Result};
use cuda_std::emulation::{Emulator, Options};
use cuda_std::launch::{Kernel, LaunchConfig, Launcher};
use std::ffi::c_void;

/// Memory that an emulated device has: for small models and kernel tests.
const TOTAL_MEMORY: usize = 8 << 30;

/// The emulator, with memory that ends.
pub(super) struct Emulated {
    emulator: Emulator,
}

impl Emulated {
    pub(super) fn new(options: Options) -> Self {
        Self { emulator: Emulator::new(options) }
    }

    /// A small Hopper: few multiprocessors, so that grids sized by the device stay small.
    pub(super) fn info() -> DeviceInfo {
        DeviceInfo {
            ordinal: 0,
            name: "emulated device".into(),
            compute_capability: (9, 0),
            multiprocessors: 2,
            threads_per_multiprocessor: 2048,
            total_memory: TOTAL_MEMORY,
            l2_cache: 50 << 20,
            shared_memory_per_block: 227 << 10,
            driver_version: (0, 0),
        }
    }

    pub(super) fn memory_info(&self) -> (usize, usize) {
        (TOTAL_MEMORY - self.emulator.allocated_bytes(), TOTAL_MEMORY)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        let (free, total) = self.memory_info();
        if bytes > free {
            return Err(Error::Memory(format!(
                "allocating {bytes} bytes on the emulated device: {free} of its {total} bytes are free"
            )));
        }
        Ok(self.emulator.allocate(bytes))
    }

    /// # Safety
    /// As [`Emulator::reach`].
    pub(super) unsafe fn reach(&self, address: u64, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.reach(address, bytes) }
    }

    /// # Safety
    /// The address is of [`Emulated::allocate`] and not used afterwards.
    pub(super) unsafe fn free(&self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.free(address) }
    }

    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.fill(to, byte, bytes) }
    }

    /// # Safety
    /// Both ranges are allocated.
    pub(super) unsafe fn copy(&self, from: u64, to: u64, bytes: usize) {
        let mut copied = vec![0; bytes];
        // SAFETY: the caller's promise.
        unsafe {
            self.emulator.read(from, &mut copied);
            self.emulator.write(to, &copied);
        }
    }

    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn write(&self, to: u64, from: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.write(to, from) }
    }

    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn read(&self, from: u64, to: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.read(from, to) }
    }

    /// # Safety
    /// As [`Launcher::launch`].
    pub(super) unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.launch(kernel, config, params) }
            .map_err(|report| Error::Device(report.to_string()))
    }
}
