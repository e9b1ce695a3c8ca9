//! What runs kernels: a GPU or the emulator. To a kernel's launcher they are the same.

use cuda_std::emulation::Emulator;
use cuda_std::launch::{DevicePtr, DevicePtrMut, Launcher};
use half::f16;
use std::fmt::Display;

/// Device memory and launches.
pub trait Machine: Launcher<Error: Display> {
    /// A new buffer of `bytes` bytes, aligned to 256.
    fn allocate(&self, bytes: usize) -> Result<u64, Self::Error>;
    /// Copies to a buffer.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Waits for what was launched and copies from a buffer.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// A buffer with these values.
    fn upload<T: Plain>(&self, values: &[T]) -> Result<DevicePtrMut<T>, Self::Error> {
        let address = self.allocate(size_of_val(values))?;
        // SAFETY: plain values are their bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        self.write(address, bytes)?;
        Ok(DevicePtrMut::from_raw(address))
    }

    /// The first `count` values of a buffer.
    fn download(&self, from: DevicePtr<f32>, count: usize) -> Result<Vec<f32>, Self::Error> {
        let mut bytes = vec![0; 4 * count];
        self.read(from.as_raw(), &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_ne_bytes(bytes)).collect())
    }
}

/// Values without padding, all of whose bits mean something.
///
/// # Safety
/// They are that.
pub unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f16 {}

impl Machine for Emulator {
    fn allocate(&self, bytes: usize) -> Result<u64, Self::Error> {
        Ok(Emulator::allocate(self, bytes))
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Self::Error> {
        // SAFETY: a launch is over when it returns, so nobody uses the buffer.
        unsafe { Emulator::write(self, to, bytes) };
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Self::Error> {
        // SAFETY: as above.
        unsafe { Emulator::read(self, from, bytes) };
        Ok(())
    }
}
