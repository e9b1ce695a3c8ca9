//! The device that kernels run on: a GPU, or one that is emulated on the CPU. What is known of it, its memory, launches.

use super::device_info::DeviceInfo;
use super::driver::Answer;
use super::emulated::Emulated;
use super::gpu::Gpu;
use crate::error::{Error, Result};
use cuda_std::emulation;
use cuda_std::launch::{Kernel, LaunchConfig, Launcher};
use cust::CudaApiVersion;
use cust::device::DeviceAttribute;
use cust::event::Event;
use cust::sys::{self, CUdevice_attribute, CUstream};
use std::ffi::c_void;
use std::ptr;

/// The PTX of a target, `sm_80` or `sm_90a`: see [`Device::open`].
pub type Ptx = fn(&str) -> Option<&'static str>;

/// Environment variable that names a file of PTX to run instead of the embedded one: `lab watch` sets it.
pub const PTX_FILE: &str = "QERNEL_PTX_FILE";

/// Environment variable that makes a Hopper device run the PTX of older ones, `sm_80`: for tests.
const PTX_TARGET: &str = "QERNEL_PTX_TARGET";

/// All GPUs of this machine.
///
/// # Errors
/// [`Error::Device`] if there is no driver or no device.
pub fn probe() -> Result<Vec<DeviceInfo>> {
    cust::init(cust::CudaFlags::empty()).doing("initialising the driver")?;
    let version = CudaApiVersion::get().doing("asking for the driver's version")?;
    let version = (version.major() as u32, version.minor() as u32);
    let count = cust::device::Device::num_devices().doing("counting the devices")?;
    (0..count).map(|ordinal| describe(ordinal, version)).collect()
}

fn describe(ordinal: u32, driver_version: (u32, u32)) -> Result<DeviceInfo> {
    let device = cust::device::Device::get_device(ordinal).doing("opening the device")?;
    let attribute = |attribute| {
        let value = device.get_attribute(attribute).doing("asking for the device's properties")?;
        Ok::<_, Error>(value as u32)
    };
    Ok(DeviceInfo {
        ordinal,
        name: device.name().doing("asking for the device's name")?,
        compute_capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        ),
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        threads_per_multiprocessor: attribute(DeviceAttribute::MaxThreadsPerMultiprocessor)?,
        total_memory: device.total_memory().doing("asking for the device's memory")?,
        l2_cache: attribute(DeviceAttribute::L2CacheSize)? as usize,
        shared_memory_per_block: shared_memory_per_block(device)?,
        driver_version,
    })
}

/// The PCI address of a device, as the system writes it: `0000:18:00.0`.
///
/// # Errors
/// [`Error::Device`] if there is no such device.
pub fn pci_address(ordinal: u32) -> Result<String> {
    let device = cust::device::Device::get_device(ordinal).doing("opening the device")?;
    let attribute = |attribute| device.get_attribute(attribute).doing("asking for the device's address");
    let domain = attribute(DeviceAttribute::PciDomainId)?;
    let [bus, slot] = [attribute(DeviceAttribute::PciBusId)?, attribute(DeviceAttribute::PciDeviceId)?];
    Ok(format!("{domain:04x}:{bus:02x}:{slot:02x}.0"))
}

/// Bytes of shared memory that a block may ask for: an attribute that `cust` does not list.
fn shared_memory_per_block(device: cust::device::Device) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let mut bytes = 0;
    // SAFETY: writes one int.
    let status = unsafe { sys::cuDeviceGetAttribute(&mut bytes, attribute, device.as_raw()) };
    status.doing("asking for the device's properties").map(|()| bytes as usize)
}

/// Where memory lies and kernels run.
enum Backend {
    Gpu(Gpu),
    Emulated(Emulated),
}

/// Device memory. A GPU's is freed on drop, an emulated device's by [`Device::free`].
pub(super) enum Memory {
    Gpu(cust::memory::DeviceBuffer<u8>),
    Emulated(u64),
}

impl Memory {
    pub(super) fn address(&self) -> u64 {
        match self {
            Self::Gpu(buffer) => buffer.as_device_ptr().as_raw(),
            Self::Emulated(address) => *address,
        }
    }
}

/// A device in use. It stays on the thread that made it.
pub struct Device {
    info: DeviceInfo,
    /// Whether its kernels may use what compute capability 9.0 has.
    is_hopper: bool,
    backend: Backend,
}

impl Device {
    /// Opens `cuda:N`, or the first device where `ordinal` is `None`. A kernel is compiled for it when it is first launched (the
    /// driver keeps the result in its cache). `ptx` gives them for the target that [`DeviceInfo::target`] names, or for an older one.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, it is too old, or the driver refuses the kernels; the text has
    /// the driver's compile log.
    pub fn open(ordinal: Option<u32>, ptx: Ptx) -> Result<Self> {
        let info = find(ordinal)?;
        if let Some(path) = std::env::var_os(PTX_FILE) {
            let ptx = std::fs::read_to_string(&path).map_err(|error| Error::io(path, error))?;
            return Self::open_kept(info, ptx);
        }
        let target = match (info.target()?, std::env::var(PTX_TARGET).as_deref()) {
            ("sm_90a", Err(_) | Ok("sm_90a")) => "sm_90a",
            (_, Err(_) | Ok("sm_80")) => "sm_80",
            (target, Ok(asked)) => {
                return Err(Error::Device(format!(
                    "{PTX_TARGET}: expected sm_80 or what this device runs, {target}; found {asked:?}"
                )));
            }
        };
        let text =
            ptx(target).ok_or_else(|| Error::Device(format!("the kernels are not compiled for {target}")))?;
        Self::open_info(info, target == "sm_90a", text)
    }

    /// As [`Device::open`], for the kernels of a text in PTX for the target that [`DeviceInfo::target`] names. It is kept as long as the program
    /// runs.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_text(ordinal: Option<u32>, ptx: String) -> Result<Self> {
        Self::open_kept(find(ordinal)?, ptx)
    }

    /// For kernels of a text that nobody else keeps.
    fn open_kept(info: DeviceInfo, ptx: String) -> Result<Self> {
        let is_hopper = info.target()? == "sm_90a";
        Self::open_info(info, is_hopper, ptx.leak())
    }

    fn open_info(info: DeviceInfo, is_hopper: bool, ptx: &'static str) -> Result<Self> {
        let backend = Backend::Gpu(Gpu::open(&info, ptx)?);
        Ok(Self { info, is_hopper, backend })
    }

    /// A device whose kernels run on the CPU, thread by thread, and are checked while they do (see
    /// [`cuda_std::emulation`]). It has no cuBLAS and no speed worth measuring.
    pub fn emulated(options: emulation::Options) -> Self {
        Self { info: Emulated::info(), is_hopper: true, backend: Backend::Emulated(Emulated::new(options)) }
    }

    /// An emulated device without the kernels that say `requires = "sm_90"`, as a GPU of compute capability 8.0.
    pub fn emulated_without_bulk_copies(options: emulation::Options) -> Self {
        Self { is_hopper: false, ..Self::emulated(options) }
    }

    /// Whether it has the kernels that say `requires = "sm_90"`: bulk copies. Matrices are repacked into units for those alone.
    pub fn has_bulk_copies(&self) -> bool {
        self.is_hopper
    }

    /// Whether it has the kernels that say `requires = "sm_90a"`: instructions of a warpgroup.
    pub fn has_wgmma(&self) -> bool {
        self.is_hopper
    }

    /// Whether what is launched is being recorded, and not run.
    pub(super) fn is_recording(&self) -> bool {
        self.gpu().is_some_and(Gpu::is_recording)
    }

    /// Whether the device is emulated.
    pub fn is_emulated(&self) -> bool {
        matches!(self.backend, Backend::Emulated(_))
    }

    /// Properties of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The stream that every operation is queued on, for libraries that take one; null where the device is emulated.
    pub fn stream(&self) -> CUstream {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.stream().as_inner(),
            Backend::Emulated(_) => ptr::null_mut(),
        }
    }

    /// The GPU, `None` where the device is emulated.
    pub(super) fn gpu(&self) -> Option<&Gpu> {
        match &self.backend {
            Backend::Gpu(gpu) => Some(gpu),
            Backend::Emulated(_) => None,
        }
    }

    /// Waits for everything that was queued; a fault of an earlier kernel shows here.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's name of the fault.
    pub fn synchronize(&self) -> Result<()> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.synchronize(),
            Backend::Emulated(_) => Ok(()),
        }
    }

    /// Bytes of device memory: free now, and in all.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver does not answer.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.memory_info(),
            Backend::Emulated(emulated) => Ok(emulated.memory_info()),
        }
    }

    /// Lets kernels of this device read and write buffers of device `peer`; of an emulated one those that are given, address and bytes.
    ///
    /// # Errors
    /// [`Error::Device`] if the devices do not reach each other's memory.
    ///
    /// # Safety
    /// The buffers are there as long as kernels are launched here that touch them.
    pub(super) unsafe fn reach(&self, peer: u32, buffers: &[(u64, usize)]) -> Result<()> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.reach(self.info.ordinal, peer),
            Backend::Emulated(emulated) => {
                // SAFETY: the caller's promise; kernels touch them by atomic operations.
                buffers.iter().for_each(|&(address, bytes)| unsafe { emulated.reach(address, bytes) });
                Ok(())
            }
        }
    }

    /// `bytes` new bytes, aligned to 256.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has not enough.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Memory> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.allocate(bytes).map(Memory::Gpu),
            Backend::Emulated(emulated) => emulated.allocate(bytes).map(Memory::Emulated),
        }
    }

    /// Gives memory back, after everything that was queued.
    pub(super) fn free(&self, memory: Memory) {
        match (&self.backend, memory) {
            (Backend::Gpu(gpu), Memory::Gpu(buffer)) => {
                // Where something failed, the next call says so; the memory goes all the same.
                drop(gpu.synchronize());
                drop(buffer);
            }
            // SAFETY: the address is of `allocate`, and gone with the value.
            (Backend::Emulated(emulated), Memory::Emulated(address)) => unsafe { emulated.free(address) },
            _ => unreachable!("memory of another device"),
        }
    }

    /// Queues setting `bytes` bytes to `byte`.
    ///
    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.fill(to, byte, bytes)?,
                Backend::Emulated(emulated) => emulated.fill(to, byte, bytes),
            }
        }
        Ok(())
    }

    /// Queues copying from one place of the device to another.
    ///
    /// # Safety
    /// Both ranges are allocated and stay so until the copy is over; they do not overlap.
    pub(super) unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.copy(from, to, bytes)?,
                Backend::Emulated(emulated) => emulated.copy(from, to, bytes),
            }
        }
        Ok(())
    }

    /// As [`Device::copy`] from memory of another device, which this one reaches.
    ///
    /// # Safety
    /// As [`Device::copy`].
    pub(super) unsafe fn copy_from_peer(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; memory of an emulated device is the host's.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.copy(from, to, bytes)?,
                Backend::Emulated(emulated) => {
                    emulated.write(to, std::slice::from_raw_parts(from as *const u8, bytes));
                }
            }
        }
        Ok(())
    }

    /// Queues copying to the device.
    ///
    /// # Safety
    /// The range is allocated, and stays so, as the bytes do, until the copy is over.
    pub(super) unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.write(to, from)?,
                Backend::Emulated(emulated) => emulated.write(to, from),
            }
        }
        Ok(())
    }

    /// Queues copying from the device.
    ///
    /// # Safety
    /// The range is allocated, and stays so, as the bytes do, until the copy is over.
    pub(super) unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.read(from, to)?,
                Backend::Emulated(emulated) => emulated.read(from, to),
            }
        }
        Ok(())
    }

    /// Records an event behind all that was queued; where the device is emulated, that is over.
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        self.gpu().map_or(Ok(()), |gpu| gpu.record(event))
    }
}

impl Launcher for Device {
    type Error = Error;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller vouches for the parameters and the kernel's contract.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.launch(kernel.name, config, params),
                Backend::Emulated(emulated) => emulated.launch(kernel, config, params),
            }
        }
    }
}

/// Launches kernels that may start while the ones before them still run, and wait for them themselves
/// (`griddepcontrol`, compute capability 9.0). On other devices they start when those have ended.
pub(super) struct Dependent<'a>(pub &'a Device);

impl Launcher for Dependent<'_> {
    type Error = Error;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller vouches for the parameters and the kernel's contract.
        unsafe {
            match &self.0.backend {
                Backend::Gpu(gpu) => gpu.launch_dependent(kernel.name, config, params),
                Backend::Emulated(emulated) => emulated.launch(kernel, config, params),
            }
        }
    }
}

/// `cuda:N`, or the first device.
fn find(ordinal: Option<u32>) -> Result<DeviceInfo> {
    let devices = probe()?;
    let requested = ordinal.unwrap_or(0);
    devices.iter().find(|info| info.ordinal == requested).cloned().ok_or_else(|| {
        Error::Device(format!(
            "cuda:{requested} does not exist; this machine has {} device(s), numbered from 0",
            devices.len()
        ))
    })
}
