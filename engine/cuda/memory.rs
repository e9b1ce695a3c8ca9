//! Device memory with an owner, and the pinned buffers that weights go up through.

use super::device::{Device, Memory};
use super::driver::Answer;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use cust::event::{Event, EventFlags};
use cust::memory::LockedBuffer;
use half::{bf16, f16};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::rc::{Rc, Weak};

/// Values that may be copied to and from the device byte by byte.
///
/// # Safety
/// Every bit pattern is a value, and there are no padding bytes.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: numbers of fixed size without padding, for which every bit pattern is a value.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above; a wrapper of u16.
unsafe impl Plain for f16 {}
// SAFETY: as above; a wrapper of u16.
unsafe impl Plain for bf16 {}

/// Memory of the device, freed on drop.
struct Allocation {
    /// There until then.
    memory: Option<Memory>,
    device: Rc<Device>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.device.free(memory);
        }
    }
}

/// `len` values in device memory, aligned to 256 bytes, freed on drop; a `part` of another buffer is
/// aligned as its offset is, and freed with the last of both.
pub struct DeviceBuffer<T> {
    address: u64,
    len: usize,
    memory: Rc<Allocation>,
    marker: PhantomData<T>,
}

/// Where a buffer is, for as long as it is there.
pub(super) struct Whereabouts {
    address: u64,
    bytes: usize,
    memory: Weak<Allocation>,
}

impl Whereabouts {
    /// The buffer, if it is still there, as whole values of another type.
    ///
    /// # Safety
    /// While one of both is written, nothing reads or writes what they share through the other.
    pub(super) unsafe fn buffer<T: Plain>(&self) -> Option<DeviceBuffer<T>> {
        let &Self { address, bytes, ref memory } = self;
        let len = bytes / size_of::<T>();
        Some(DeviceBuffer { address, len, memory: memory.upgrade()?, marker: PhantomData })
    }
}

impl<T: Plain> DeviceBuffer<T> {
    /// Allocates `len` values, all bytes zero.
    ///
    /// # Errors
    /// [`Error::Memory`] with the number of bytes if the device has not enough.
    pub fn zeroed(device: &Rc<Device>, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::Memory(format!("{len} values of {} bytes are more than the address space", size_of::<T>()))
        })?;
        let memory = device.allocate(bytes)?;
        let address = memory.address();
        let memory = Rc::new(Allocation { memory: Some(memory), device: device.clone() });
        let mut buffer = Self { address, len, memory, marker: PhantomData };
        buffer.fill(0)?;
        Ok(buffer)
    }

    /// The `len` values from `offset` on, in the same memory.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer.
    ///
    /// # Safety
    /// While one of both is written, nothing reads or writes what they share through the other.
    pub(super) unsafe fn part(&self, offset: usize, len: usize) -> Result<Self> {
        let address = self.range(offset, len)?;
        Ok(Self { address, len, memory: self.memory.clone(), marker: PhantomData })
    }

    /// Allocates a copy of `values`.
    ///
    /// # Errors
    /// [`Error::Memory`] as [`DeviceBuffer::zeroed`], [`Error::Device`] if the copy fails.
    pub fn from_slice(device: &Rc<Device>, values: &[T]) -> Result<Self> {
        let mut buffer = Self::zeroed(device, values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Where it is; keeps nothing there.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        Whereabouts { address: self.address, bytes: self.size(), memory: Rc::downgrade(&self.memory) }
    }

    /// Number of values.
    #[allow(clippy::len_without_is_empty)] // Buffers are sized for the largest batch and never empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The address, for kernels that read.
    pub fn ptr(&self) -> DevicePtr<T> {
        DevicePtr::from_raw(self.address)
    }

    /// The address, for kernels that write.
    pub fn ptr_mut(&mut self) -> DevicePtrMut<T> {
        DevicePtrMut::from_raw(self.address)
    }

    /// Queues setting every byte to `byte`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        // SAFETY: the range is this buffer's.
        unsafe { self.memory.device.fill(self.address, byte, self.size()) }
    }

    /// Copies `values` to `offset..` and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or the copy fails.
    pub fn write(&mut self, offset: usize, values: &[T]) -> Result<()> {
        let to = self.range(offset, values.len())?;
        // SAFETY: values without padding are bytes; the range has as many, and the copy is waited for.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values));
            self.memory.device.write(to, bytes)?;
        }
        self.memory.device.synchronize()
    }

    /// Copies the values from `offset..offset + len` to the host, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or an earlier kernel failed.
    pub fn read(&self, offset: usize, len: usize) -> Result<Vec<T>> {
        let from = self.range(offset, len)?;
        let mut values: Vec<T> = Vec::with_capacity(len);
        // SAFETY: the vector has room for `len` values, and every bit pattern is one: first zeros, so that they are
        // bytes to refer to, then those of the range, which has as many; the copy is waited for.
        unsafe {
            values.as_mut_ptr().write_bytes(0, len);
            values.set_len(len);
            let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len * size_of::<T>());
            self.memory.device.read(from, bytes)?;
        }
        self.memory.device.synchronize()?;
        Ok(values)
    }

    /// The address of value `offset`, if `len` values follow.
    fn range(&self, offset: usize, len: usize) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address + (offset * size_of::<T>()) as u64),
            _ => Err(Error::Device(format!(
                "values {offset}..{offset}+{len} of a device buffer that has {}",
                self.len
            ))),
        }
    }
}

/// Page-locked host memory, which the device reads and writes by itself, at the full speed of the bus. For an emulated
/// device, ordinary memory.
pub struct PinnedBuffer {
    bytes: HostBytes,
    device: Rc<Device>,
}

enum HostBytes {
    /// The event is recorded after the last copy; one that never was counts as complete.
    Locked(LockedBuffer<u8>, Event),
    /// For copies that are over when they return.
    Ordinary(Box<[u8]>),
}

impl PinnedBuffer {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system will not lock that much.
    pub fn new(device: &Rc<Device>, len: usize) -> Result<Self> {
        let bytes = if device.is_emulated() {
            HostBytes::Ordinary(vec![0; len].into())
        } else {
            let bytes = LockedBuffer::new(&0, len);
            HostBytes::Locked(
                bytes.doing(&format!("allocating {len} bytes of pinned host memory"))?,
                Event::new(EventFlags::DISABLE_TIMING).doing("creating an event")?,
            )
        };
        Ok(Self { bytes, device: device.clone() })
    }

    /// The bytes, once the device no longer reads or writes them.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier copy or kernel failed.
    pub fn wait(&mut self) -> Result<&mut [u8]> {
        if let HostBytes::Locked(_, copied) = &self.bytes {
            copied.synchronize().doing("waiting for a copy")?;
        }
        Ok(self.bytes.as_mut())
    }

    /// Queues copying the first `len` bytes to `to`.
    ///
    /// # Errors
    /// [`Error::Device`] if the buffer is shorter, or from the driver.
    ///
    /// # Safety
    /// `to` has `len` bytes and stays allocated until the copy is over.
    pub unsafe fn copy_to(&mut self, len: usize, to: DevicePtrMut<u8>) -> Result<()> {
        let from = self.bytes.front(len)?;
        // SAFETY: the caller vouches for the target; the source is read before `wait` or drop goes on.
        unsafe { self.device.write(to.as_raw(), from)? };
        self.copied()
    }

    /// Queues copying `len` bytes at `from` to the front; [`PinnedBuffer::wait`] waits for it if
    /// [`PinnedBuffer::copied`] was called behind.
    ///
    /// # Errors
    /// [`Error::Device`] if the buffer is shorter, or from the driver.
    ///
    /// # Safety
    /// `from` has `len` bytes and stays allocated until the copy is over.
    pub unsafe fn copy_from(&mut self, len: usize, from: DevicePtr<u8>) -> Result<()> {
        let to = self.bytes.front(len)?;
        // SAFETY: the caller vouches for the source; the target is not read before a wait.
        unsafe { self.device.read(from.as_raw(), to) }
    }

    /// Lets [`PinnedBuffer::wait`] wait for all that was queued so far.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn copied(&mut self) -> Result<()> {
        match &self.bytes {
            HostBytes::Locked(_, copied) => self.device.record(copied),
            HostBytes::Ordinary(_) => Ok(()),
        }
    }
}

impl HostBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Locked(bytes, _) => bytes,
            Self::Ordinary(bytes) => bytes,
        }
    }

    fn front(&mut self, len: usize) -> Result<&mut [u8]> {
        let bytes = self.as_mut();
        let has = bytes.len();
        bytes.get_mut(..len).ok_or_else(|| Error::Device(format!("{len} bytes of a pinned buffer of {has}")))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // Lets the device finish with the bytes before they go; a failure leaves nothing to do.
        drop(self.device.synchronize());
    }
}

/// Bytes of each of the two buffers of an [`Uploader`].
const CHUNK: usize = 16 << 20;

/// Brings weights to the device: the host fills one pinned buffer while the device reads the other.
pub struct Uploader {
    buffers: [PinnedBuffer; 2],
    next: usize,
}

impl Uploader {
    /// Allocates the two buffers.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system will not lock that much.
    pub fn new(device: &Rc<Device>) -> Result<Self> {
        Ok(Self { buffers: [PinnedBuffer::new(device, CHUNK)?, PinnedBuffer::new(device, CHUNK)?], next: 0 })
    }

    /// Queues copying `bytes` to the front of `target`.
    ///
    /// # Errors
    /// [`Error::Device`] if the target is shorter, or from the driver.
    pub fn upload(&mut self, bytes: &[u8], target: &mut DeviceBuffer<u8>) -> Result<()> {
        target.range(0, bytes.len())?;
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            let buffer = &mut self.buffers[self.next];
            let staged = &mut buffer.wait()?[..chunk.len()];
            // Several threads: one alone, taking page faults of the memory map, is slower than the bus.
            staged
                .par_chunks_mut(1 << 20)
                .zip(chunk.par_chunks(1 << 20))
                .for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the target has room for all of `bytes`, checked above.
            unsafe { buffer.copy_to(chunk.len(), target.ptr_mut().add(i * CHUNK))? };
            self.next ^= 1;
        }
        Ok(())
    }

    /// Puts what the ranges hold behind `bytes`, one behind the other, after everything queued before: the device fills one buffer while the host reads the other.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier kernel failed, or from the driver.
    ///
    /// # Safety
    /// The ranges are of buffers of the device.
    pub(super) unsafe fn download(&mut self, ranges: &[Bytes], bytes: &mut Vec<u8>) -> Result<()> {
        let mut pieces = ranges.iter().flat_map(|range| range.pieces()).peekable();
        // Of the other buffer.
        let mut pending = 0;
        loop {
            let buffer = &mut self.buffers[self.next];
            let device = buffer.device.clone();
            let room = buffer.wait()?;
            let mut filled = 0;
            while let Some(piece) = pieces.next_if(|piece| filled + piece.len <= room.len()) {
                // SAFETY: the caller's promise; nobody reads these bytes before the wait.
                unsafe { device.read(piece.address, &mut room[filled..filled + piece.len])? };
                filled += piece.len;
            }
            buffer.copied()?;
            self.next ^= 1;
            bytes.extend_from_slice(&self.buffers[self.next].wait()?[..pending]);
            pending = filled;
            if filled == 0 {
                return Ok(());
            }
        }
    }

    /// Queues copying `bytes` to the ranges, one behind the other, which have as many.
    ///
    /// # Errors
    /// [`Error::Device`] from the driver.
    ///
    /// # Safety
    /// The ranges are of buffers of the device, which stay until the copies are over.
    pub(super) unsafe fn scatter(&mut self, mut bytes: &[u8], ranges: &[Bytes]) -> Result<()> {
        let mut pieces = ranges.iter().flat_map(|range| range.pieces()).peekable();
        while pieces.peek().is_some() {
            let buffer = &mut self.buffers[self.next];
            let device = buffer.device.clone();
            let room = buffer.wait()?;
            let mut filled = 0;
            while let Some(piece) = pieces.next_if(|piece| filled + piece.len <= room.len()) {
                let of_piece = &mut room[filled..filled + piece.len];
                let (front, rest) = bytes.split_at(piece.len);
                of_piece.copy_from_slice(front);
                // SAFETY: the caller's promise; the bytes stay as they are until the next wait.
                unsafe { device.write(piece.address, of_piece)? };
                (bytes, filled) = (rest, filled + piece.len);
            }
            buffer.copied()?;
            self.next ^= 1;
        }
        Ok(())
    }
}

/// A range of device memory.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    pub address: u64,
    pub len: usize,
}

impl Bytes {
    /// In pieces that fit into a buffer of an [`Uploader`].
    fn pieces(self) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(CHUNK).map(move |first| Self {
            address: self.address + first as u64,
            len: (self.len - first).min(CHUNK),
        })
    }
}
