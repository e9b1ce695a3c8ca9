//! What runs kernels: a GPU or the emulator. To a kernel's launcher they are the same.

use cuda_std::emulation::Emulator;
use cuda_std::launch::{DevicePtr, DevicePtrMut, Launcher};
use half::f16;
use std::fmt::Display;

/// Device memory and launches.
pub trait Machine: Launcher<Error: Display> {
    /// A new buffer of `bytes` bytes, aligned to 256.
    ///
    /// # Errors
    /// There is no memory left.
    fn allocate(&self, bytes: usize) -> Result<u64, Self::Error>;
    /// Copies to a buffer.
    ///
    /// # Errors
    /// The device failed.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Waits for what was launched and copies from a buffer.
    ///
    /// # Errors
    /// The device failed, now or in a launch before.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// A buffer with these values.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`write`](Self::write).
    fn upload<T: Plain>(&self, values: &[T]) -> Result<DevicePtrMut<T>, Self::Error> {
        let address = self.allocate(size_of_val(values))?;
        // SAFETY: plain values are their bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        self.write(address, bytes)?;
        Ok(DevicePtrMut::from_raw(address))
    }

    /// The first `count` values of a buffer.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn download<T: Plain>(&self, from: DevicePtr<T>, count: usize) -> Result<Vec<T>, Self::Error> {
        let mut bytes = vec![0; size_of::<T>() * count];
        self.read(from.as_raw(), &mut bytes)?;
        // SAFETY: as many bytes as a value has, whatever they are.
        let value = |bytes: &[u8]| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
        Ok(bytes.chunks_exact(size_of::<T>()).map(value).collect())
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
unsafe impl Plain for u32 {}
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
