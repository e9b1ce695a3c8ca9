//! Buffers and launches for the tests.

use cuda_std::emulation::{Emulator, Options};
use cuda_std::prelude::*;

/// A device with a seed.
pub fn emulator(seed: u64) -> Emulator {
    Emulator::new(Options { seed, check: true })
}

/// A grid in one dimension.
pub fn grid(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

/// The same with dynamic shared memory.
pub fn with_shared(config: LaunchConfig, shared_bytes: u32) -> LaunchConfig {
    LaunchConfig { shared_bytes, ..config }
}

/// A buffer with these values.
pub fn buffer<T: Bits>(emulator: &Emulator, values: &[T]) -> DevicePtrMut<T> {
    let address = emulator.allocate(size_of_val(values));
    // SAFETY: a `Bits` type has no byte that is not initialised; the buffer is this long.
    unsafe {
        let bytes = std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values));
        emulator.write(address, bytes);
    }
    DevicePtrMut::from_raw(address)
}

/// The first `count` values of a buffer.
pub fn values<T: Bits + Default>(emulator: &Emulator, buffer: DevicePtrMut<T>, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    // SAFETY: every pattern of bytes is a `Bits` value.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), count * size_of::<T>());
        emulator.read(buffer.as_raw(), bytes);
    }
    values
}
