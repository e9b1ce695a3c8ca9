//! Device memory with an owner, and the pinned buffers that weights go up through.

use super::device::Device;
use super::driver::{self, CUevent, check};
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::rc::Rc;

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
    address: u64,
    device: Rc<Device>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the address is this allocation's own.
        unsafe { self.device.free(self.address) }
    }
}

/// `len` values in device memory, aligned to 256 bytes, freed on drop; a [`part`](DeviceBuffer::part) of another buffer is
/// aligned as its offset is, and freed with the last of both.
pub struct DeviceBuffer<T> {
    address: u64,
    len: usize,
    memory: Rc<Allocation>,
    marker: PhantomData<T>,
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
        let memory = Rc::new(Allocation { address: device.allocate(bytes)?, device: device.clone() });
        let mut buffer = Self { address: memory.address, len, memory, marker: PhantomData };
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
        // SAFETY: both ranges have that many bytes, which are values without padding.
        unsafe { self.memory.device.write(to, values.as_ptr().cast(), size_of_val(values)) }
    }

    /// Copies the values from `offset..offset + len` to the host, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or an earlier kernel failed.
    pub fn read(&self, offset: usize, len: usize) -> Result<Vec<T>> {
        let from = self.range(offset, len)?;
        let mut values: Vec<T> = Vec::with_capacity(len);
        // SAFETY: the vector has room for `len` values, and all of them are written before the wait ends; every bit
        // pattern is a value.
        unsafe {
            self.memory.device.read(from, values.as_mut_ptr().cast(), len * size_of::<T>())?;
            values.set_len(len);
        }
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
    bytes: NonNull<u8>,
    len: usize,
    /// Recorded after the last copy; null where the device is emulated, whose copies are over when they return.
    copied: CUevent,
    device: Rc<Device>,
}

impl PinnedBuffer {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system will not lock that much.
    pub fn new(device: &Rc<Device>, len: usize) -> Result<Self> {
        if device.is_emulated() {
            let bytes = NonNull::from(Box::leak(vec![0u8; len].into_boxed_slice())).cast();
            return Ok(Self { bytes, len, copied: ptr::null_mut(), device: device.clone() });
        }
        let mut bytes = ptr::null_mut();
        let mut copied = ptr::null_mut();
        // SAFETY: each call writes one handle; the first is given back if the second fails.
        let bytes = unsafe {
            check(
                driver::cuMemAllocHost_v2(&mut bytes, len.max(1)),
                &format!("allocating {len} bytes of pinned host memory"),
            )?;
            let status = driver::cuEventCreate(&mut copied, driver::EVENT_DISABLE_TIMING);
            if let Err(error) = check(status, "creating an event") {
                driver::cuMemFreeHost(bytes);
                return Err(error);
            }
            ptr::write_bytes(bytes.cast::<u8>(), 0, len);
            NonNull::new(bytes.cast()).ok_or_else(|| Error::Memory("no pinned memory".into()))?
        };
        Ok(Self { bytes, len, copied, device: device.clone() })
    }

    /// The bytes, once the device no longer reads or writes them.
    ///
    /// # Errors
    /// [`Error::Device`] if an earlier copy or kernel failed.
    pub fn wait(&mut self) -> Result<&mut [u8]> {
        if !self.copied.is_null() {
            // SAFETY: the event is this buffer's; one that was never recorded counts as complete.
            check(unsafe { driver::cuEventSynchronize(self.copied) }, "waiting for a copy")?;
        }
        // SAFETY: `len` initialised bytes that nothing else refers to; the device is done with them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.len) })
    }

    /// Queues copying the first `len` bytes to `to`.
    ///
    /// # Errors
    /// [`Error::Device`] if the buffer is shorter, or from the driver.
    ///
    /// # Safety
    /// `to` has `len` bytes and stays allocated until the copy is over.
    pub unsafe fn copy_to(&mut self, len: usize, to: DevicePtrMut<u8>) -> Result<()> {
        self.expect_room(len)?;
        let from = self.bytes.as_ptr().cast();
        if self.copied.is_null() {
            // SAFETY: the caller vouches for the target.
            return unsafe { self.device.write(to.as_raw(), from, len) };
        }
        // SAFETY: the caller vouches for the target; the source is read before `wait` or drop goes on.
        let status = unsafe { driver::cuMemcpyHtoDAsync_v2(to.as_raw(), from, len, self.device.stream()) };
        check(status, "copying to the device")?;
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
        self.expect_room(len)?;
        let to = self.bytes.as_ptr().cast();
        if self.copied.is_null() {
            // SAFETY: the caller vouches for the source.
            return unsafe { self.device.read(from.as_raw(), to, len) };
        }
        // SAFETY: the caller vouches for the source; the target is not read before a wait.
        let status = unsafe { driver::cuMemcpyDtoHAsync_v2(to, from.as_raw(), len, self.device.stream()) };
        check(status, "copying from the device")
    }

    /// Lets [`PinnedBuffer::wait`] wait for all that was queued so far.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn copied(&mut self) -> Result<()> {
        if self.copied.is_null() {
            return Ok(());
        }
        // SAFETY: the event is this buffer's.
        check(unsafe { driver::cuEventRecord(self.copied, self.device.stream()) }, "recording an event")
    }

    fn expect_room(&self, len: usize) -> Result<()> {
        if len <= self.len {
            return Ok(());
        }
        Err(Error::Device(format!("{len} bytes of a pinned buffer of {}", self.len)))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: both are this buffer's own; the wait lets the device finish with it.
        unsafe {
            if self.copied.is_null() {
                drop(Box::from_raw(ptr::slice_from_raw_parts_mut(self.bytes.as_ptr(), self.len)));
                return;
            }
            driver::cuStreamSynchronize(self.device.stream());
            driver::cuEventDestroy_v2(self.copied);
            driver::cuMemFreeHost(self.bytes.as_ptr().cast());
        }
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
}
