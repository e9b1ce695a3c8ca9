//! The read bandwidth of the device, measured; and reading much memory to put other things out of the L2 cache.

use super::device::Device;
use super::launch::launch;
use super::memory::{DeviceBuffer, Whereabouts};
use super::timer::Timer;
use super::variant::Operation;
use crate::error::{Error, Result};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::read_bandwidth::{READ_THREADS, ReadBandwidthArgs, plain};
use std::rc::Rc;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single("read_bandwidth", &[gpu_kernels::read_bandwidth::plain().instances()])
}

/// Bytes to read: many times the L2 of any device. Less where less is free.
const BYTES: usize = 1 << 30;
/// Passes, of which the fastest counts: the ceiling is what the memory can do, not what it does on average.
const PASSES: usize = 5;

/// How many times the L2 a model's matrix is at least that the bandwidth is measured with: so little of it is still there when it is read
/// again.
const L2_CACHES: usize = 4;

/// Bytes a second that a kernel which only reads gets from the device's memory; takes a few milliseconds.
///
/// # Errors
/// [`Error::Memory`] if there is no room for a buffer larger than the L2, [`Error::Device`] from the device.
pub fn read_bandwidth(device: &Rc<Device>) -> Result<f64> {
    measure(device, Memory::new(device, BYTES)?)
}

/// The same where a model has been loaded, without memory of its own: of the largest of its matrices. Where all are small beside the L2, a
/// buffer of a few times that takes its place.
///
/// # Errors
/// As [`read_bandwidth`].
pub(super) fn read_bandwidth_of(device: &Rc<Device>, matrices: &[Whereabouts]) -> Result<f64> {
    let least = L2_CACHES * device.info().l2_cache;
    // SAFETY: nothing writes weights once they are loaded, and these are read only.
    let largest =
        matrices.iter().filter_map(|matrix| unsafe { matrix.buffer() }).max_by_key(DeviceBuffer::size);
    match largest.filter(|matrix| matrix.size() >= least) {
        Some(matrix) => measure(device, Memory::over(device, matrix)?),
        None => measure(device, Memory::new(device, least)?),
    }
}

fn measure(device: &Rc<Device>, mut memory: Memory) -> Result<f64> {
    let mut timer = Timer::new(device, 1)?;
    let mut fastest = f64::INFINITY;
    // The first pass also loads the kernel; it is not counted.
    for pass in 0..=PASSES {
        timer.start(0)?;
        memory.read()?;
        timer.stop(0)?;
        let seconds = timer.seconds(0)?;
        if pass > 0 {
            fastest = fastest.min(seconds);
        }
    }
    Ok(memory.bytes() as f64 / fastest)
}

/// A buffer larger than the L2 cache: reading it leaves nothing else there.
pub struct Memory {
    device: Rc<Device>,
    buffer: DeviceBuffer<u32>,
    out: DeviceBuffer<u32>,
    blocks: u32,
}

impl Memory {
    /// A buffer of `bytes`, or of half of what is free where that is less, and of more than twice the L2 cache.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for a buffer larger than the L2.
    pub fn new(device: &Rc<Device>, bytes: usize) -> Result<Self> {
        let (free, _) = device.memory_info()?;
        let least = 2 * device.info().l2_cache;
        let bytes = bytes.max(least + 0xFFFF).min(free / 2) & !0xFFFF;
        if bytes < least {
            return Err(Error::Memory(format!(
                "measuring the bandwidth needs a buffer larger than the L2 cache; only {free} bytes are free"
            )));
        }
        Self::over(device, DeviceBuffer::zeroed(device, bytes / 4)?)
    }

    /// A buffer of these words; those behind the last multiple of four are not read.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room.
    pub fn of_words(device: &Rc<Device>, words: &[u32]) -> Result<Self> {
        Self::over(device, DeviceBuffer::from_slice(device, words)?)
    }

    fn over(device: &Rc<Device>, buffer: DeviceBuffer<u32>) -> Result<Self> {
        let blocks = device.info().multiprocessors * 4;
        let out = DeviceBuffer::zeroed(device, blocks as usize)?;
        Ok(Self { device: device.clone(), buffer, out, blocks })
    }

    /// The exclusive or of all words that the last read has seen.
    ///
    /// # Errors
    /// [`Error::Device`] if it failed.
    pub fn seen(&self) -> Result<u32> {
        Ok(self.out.read(0, self.out.len())?.into_iter().fold(0, |seen, word| seen ^ word))
    }

    /// Bytes that [`Memory::read`] reads.
    pub fn bytes(&self) -> usize {
        self.buffer.size()
    }

    /// Queues reading all of it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn read(&mut self) -> Result<()> {
        let config = LaunchConfig { grid: [self.blocks, 1, 1], block: [READ_THREADS, 1, 1], shared_bytes: 0 };
        let arguments = ReadBandwidthArgs {
            num_words: (self.bytes() / 16) as u64,
            words: self.buffer.ptr().cast(),
            out: self.out.ptr_mut(),
        };
        // SAFETY: the buffer has `bytes / 16` words, aligned as every allocation is; `out` has one value a block.
        unsafe { launch(&*self.device, plain(), &[], &config, arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_std::emulation;

    #[test]
    fn a_matrix_is_read_where_it_is_as_long_as_it_is_there() {
        let device = Rc::new(Device::emulated(emulation::Options::default()));
        let bytes: Vec<u8> = (0..111 * 16).map(|i| ((i * 77) >> 3) as u8).collect();
        let expected = bytes.as_chunks().0.iter().fold(0, |seen, &word| seen ^ u32::from_ne_bytes(word));
        let matrix = DeviceBuffer::from_slice(&device, &bytes).unwrap();
        let place = matrix.whereabouts();
        // SAFETY: nothing writes it.
        let mut memory = Memory::over(&device, unsafe { place.buffer() }.unwrap()).unwrap();
        memory.read().unwrap();
        assert_eq!((memory.bytes(), memory.seen().unwrap()), (bytes.len(), expected));
        drop((matrix, memory));
        // SAFETY: as above.
        assert!(unsafe { place.buffer::<u32>() }.is_none());
    }
}
