//! The device that kernels run on: a GPU, or one that is emulated on the CPU. What is known of it, its memory, launches.

use super::device_info::DeviceInfo;
use super::driver::{self, CUmodule, CUstream, check};
use super::emulated::Emulated;
use super::gpu::Gpu;
use crate::error::{Error, Result};
use cuda_std::emulation;
use cuda_std::launch::{Kernel, LaunchConfig, Launcher};
use std::ffi::{CStr, c_int, c_void};
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
    // SAFETY: no precondition.
    check(unsafe { driver::cuInit(0) }, "initialising the driver")?;
    let (mut count, mut version) = (0, 0);
    // SAFETY: both write one int.
    unsafe {
        check(driver::cuDeviceGetCount(&mut count), "counting the devices")?;
        check(driver::cuDriverGetVersion(&mut version), "asking for the driver's version")?;
    }
    let version = (version as u32 / 1000, version as u32 % 1000 / 10);
    (0..count).map(|ordinal| describe(ordinal, version)).collect()
}

fn describe(ordinal: c_int, driver_version: (u32, u32)) -> Result<DeviceInfo> {
    let mut name = [0; 256];
    let mut device = 0;
    let mut total_memory = 0;
    // SAFETY: each call writes one value, or at most 256 bytes with a final zero to `name`.
    unsafe {
        check(driver::cuDeviceGet(&mut device, ordinal), "opening the device")?;
        check(driver::cuDeviceGetName(name.as_mut_ptr(), 256, device), "asking for the device's name")?;
        check(driver::cuDeviceTotalMem_v2(&mut total_memory, device), "asking for the device's memory")?;
    }
    let attribute = |attribute: c_int| {
        let mut value = 0;
        // SAFETY: writes one int.
        let status = unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) };
        check(status, "asking for the device's properties").map(|()| value as u32)
    };
    Ok(DeviceInfo {
        ordinal: ordinal as u32,
        // SAFETY: cuDeviceGetName ended it with a zero.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        compute_capability: (
            attribute(driver::ATTRIBUTE_CAPABILITY_MAJOR)?,
            attribute(driver::ATTRIBUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(driver::ATTRIBUTE_MULTIPROCESSORS)?,
        total_memory,
        l2_cache: attribute(driver::ATTRIBUTE_L2_BYTES)? as usize,
        shared_memory_per_block: attribute(driver::ATTRIBUTE_SHARED_OPT_IN)? as usize,
        driver_version,
    })
}

/// Where memory lies and kernels run.
enum Backend {
    Gpu(Gpu),
    Emulated(Emulated),
}

/// A device in use. It stays on the thread that made it.
pub struct Device {
    info: DeviceInfo,
    backend: Backend,
}

impl Device {
    /// Opens `cuda:N`, or the first device where `ordinal` is `None`, and compiles the kernels for it (the driver
    /// keeps the result in its cache). `ptx` gives them for the target that [`DeviceInfo::target`] names, or for an older one.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, it is too old, or the driver refuses the kernels; the text has
    /// the driver's compile log.
    pub fn open(ordinal: Option<u32>, ptx: Ptx) -> Result<Self> {
        let info = find(ordinal)?;
        if let Some(path) = std::env::var_os(PTX_FILE) {
            let ptx = std::fs::read_to_string(&path).map_err(|error| Error::io(path, error))?;
            return Self::open_info(info, &ptx);
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
        Self::open_info(info, text)
    }

    fn open_info(info: DeviceInfo, ptx: &str) -> Result<Self> {
        let backend = Backend::Gpu(Gpu::open(&info, ptx)?);
        Ok(Self { info, backend })
    }

    /// A device whose kernels run on the CPU, thread by thread, and are checked while they do (see
    /// [`cuda_std::emulation`]). It has no cuBLAS and no speed worth measuring.
    pub fn emulated(options: emulation::Options) -> Self {
        Self { info: Emulated::info(), backend: Backend::Emulated(Emulated::new(options)) }
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
            Backend::Gpu(gpu) => gpu.stream(),
            Backend::Emulated(_) => ptr::null_mut(),
        }
    }

    /// The module of kernels; null where the device is emulated.
    pub(super) fn module(&self) -> CUmodule {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.module(),
            Backend::Emulated(_) => ptr::null_mut(),
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

    /// The address of `bytes` new bytes, aligned to 256.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has not enough.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.allocate(bytes),
            Backend::Emulated(emulated) => emulated.allocate(bytes),
        }
    }

    /// Gives memory back, after everything that was queued.
    ///
    /// # Safety
    /// The address is of [`Device::allocate`] and not used afterwards.
    pub(super) unsafe fn free(&self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.free(address),
                Backend::Emulated(emulated) => emulated.free(address),
            }
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
                Backend::Gpu(gpu) => gpu.fill(to, byte, bytes),
                Backend::Emulated(emulated) => {
                    emulated.fill(to, byte, bytes);
                    Ok(())
                }
            }
        }
    }

    /// Copies to the device and waits for it.
    ///
    /// # Safety
    /// Both ranges are allocated and initialised.
    pub(super) unsafe fn write(&self, to: u64, from: *const c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.write(to, from, bytes),
                Backend::Emulated(emulated) => {
                    emulated.write(to, from, bytes);
                    Ok(())
                }
            }
        }
    }

    /// Copies from the device, after everything queued before, and waits for it.
    ///
    /// # Safety
    /// Both ranges are allocated.
    pub(super) unsafe fn read(&self, from: u64, to: *mut c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.backend {
                Backend::Gpu(gpu) => gpu.read(from, to, bytes),
                Backend::Emulated(emulated) => {
                    emulated.read(from, to, bytes);
                    Ok(())
                }
            }
        }
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
    let wanted = ordinal.unwrap_or(0);
    devices.iter().find(|info| info.ordinal == wanted).cloned().ok_or_else(|| {
        Error::Device(format!(
            "cuda:{wanted} does not exist; this machine has {} device(s), numbered from 0",
            devices.len()
        ))
    })
}
