//! A GPU in use behind [`Device`](super::Device): context, stream, the module of kernels, memory. Everything here talks to
//! the driver.

use super::device_info::DeviceInfo;
use super::driver::{self, CUfunction, CUmodule, CUstream, check};
use crate::error::{Error, Result};
use cuda_std::launch::LaunchConfig;
use cudarc::driver::sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

/// Dynamic shared memory that every launch may use without asking.
const SHARED_BYTES_DEFAULT: u32 = 48 * 1024;
/// Room for what the driver's PTX compiler says.
const JIT_LOG_BYTES: usize = 16 * 1024;

/// For [`driver::FUNCTION_SHARED_CARVEOUT`]: per cent.
const ALL_SHARED: c_int = 100;

/// A kernel of the module.
struct Function {
    raw: CUfunction,
    /// Dynamic shared memory in bytes that it may be launched with.
    shared_limit: u32,
    /// Whether it was told to run beside others, see [`Gpu::launch_dependent`].
    is_chained: bool,
}

/// The primary context (the one that cuBLAS works in too), one stream, the kernels.
///
/// It stays on the thread that made it, for the driver's current context is the thread's.
pub(super) struct Gpu {
    module: CUmodule,
    stream: CUstream,
    functions: RefCell<HashMap<&'static str, Function>>,
    /// Whether the kernels are compiled for Hopper, where they may start while those before them still run.
    is_hopper: bool,
    /// Released last: fields drop in this order.
    _context: cust::context::Context,
}

impl Gpu {
    /// Makes a context on the device and compiles `ptx` for it (the driver keeps the result in its cache).
    pub(super) fn open(info: &DeviceInfo, ptx: &str) -> Result<Self> {
        let context = retain_primary_context(info)?;
        let mut stream = ptr::null_mut();
        // SAFETY: writes the handle; the context is current.
        check(
            unsafe { driver::cuStreamCreate(&mut stream, driver::STREAM_NON_BLOCKING) },
            "creating a stream",
        )?;
        let mut gpu = Self {
            module: ptr::null_mut(),
            stream,
            functions: RefCell::default(),
            is_hopper: ptx.contains(".target sm_90"),
            _context: context,
        };
        gpu.module = load_module(ptx)?;
        Ok(gpu)
    }

    pub(super) fn module(&self) -> CUmodule {
        self.module
    }

    pub(super) fn stream(&self) -> CUstream {
        self.stream
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this device's.
        check(unsafe { driver::cuStreamSynchronize(self.stream) }, "waiting for the device")
    }

    pub(super) fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes; the context is current on this thread.
        check(unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok((free, total))
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: writes the address. A size of 0 is refused by the driver, so an empty buffer takes a byte.
        check(
            unsafe { driver::cuMemAlloc_v2(&mut address, bytes.max(1)) },
            &format!("allocating {bytes} bytes on the device"),
        )?;
        Ok(address)
    }

    /// # Safety
    /// The address is of [`Gpu::allocate`] and not used afterwards.
    pub(super) unsafe fn free(&self, address: u64) {
        // SAFETY: what is queued on the stream may still use it until the wait.
        unsafe {
            driver::cuStreamSynchronize(self.stream);
            driver::cuMemFree_v2(address);
        }
    }

    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { driver::cuMemsetD8Async(to, byte, bytes, self.stream) }, "filling device memory")
    }

    /// # Safety
    /// Both ranges are allocated.
    pub(super) unsafe fn write(&self, to: u64, from: *const c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; the source outlives the copy, for it is waited for.
        check(
            unsafe { driver::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream) },
            "copying to the device",
        )?;
        self.synchronize()
    }

    /// # Safety
    /// Both ranges are allocated.
    pub(super) unsafe fn read(&self, from: u64, to: *mut c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; the copy is waited for.
        let status = unsafe { driver::cuMemcpyDtoHAsync_v2(to, from, bytes, self.stream) };
        check(status, "copying from the device")?;
        self.synchronize()
    }

    /// The kernel of that name, looked up in the module once, allowed to have `shared_bytes` of dynamic shared memory and, if
    /// `chained`, fit to run beside others.
    fn function(&self, name: &'static str, shared_bytes: u32, chained: bool) -> Result<CUfunction> {
        let mut functions = self.functions.borrow_mut();
        let function = match functions.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Function {
                raw: find_function(self.module, name)?,
                shared_limit: SHARED_BYTES_DEFAULT,
                is_chained: false,
            }),
        };
        if shared_bytes > function.shared_limit {
            // SAFETY: the function is of this module.
            let status = unsafe {
                driver::cuFuncSetAttribute(
                    function.raw,
                    driver::FUNCTION_MAX_DYNAMIC_SHARED,
                    shared_bytes as c_int,
                )
            };
            check(status, &format!("asking for {shared_bytes} bytes of shared memory for {name}"))?;
            function.shared_limit = shared_bytes;
        }
        if chained && !function.is_chained {
            // SAFETY: the function is of this module.
            let status = unsafe {
                driver::cuFuncSetAttribute(function.raw, driver::FUNCTION_SHARED_CARVEOUT, ALL_SHARED)
            };
            check(status, &format!("asking for all shared memory beside {name}"))?;
            function.is_chained = true;
        }
        Ok(function.raw)
    }

    /// Lets the kernel start while the ones before it still run, where the device can. For that, all such kernels want the same
    /// division of a multiprocessor's memory between L1 and shared: it changes only where nothing runs.
    ///
    /// # Safety
    /// As [`Launcher::launch`](cuda_std::launch::Launcher::launch); the kernel waits itself for those before it.
    pub(super) unsafe fn launch_dependent(
        &self,
        kernel: &'static str,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        if !self.is_hopper {
            // SAFETY: the caller's promise.
            return unsafe { self.launch(kernel, config, params) };
        }
        let function = self.function(kernel, config.shared_bytes, true)?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let launch = sys::CUlaunchConfig {
            gridDimX: config.grid[0],
            gridDimY: config.grid[1],
            gridDimZ: config.grid[2],
            blockDimX: config.block[0],
            blockDimY: config.block[1],
            blockDimZ: config.block[2],
            sharedMemBytes: config.shared_bytes,
            hStream: self.stream.cast(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller vouches for the parameters and the kernel's contract; function and stream are of this
        // device, and the driver copies configuration and parameters before it returns.
        let status =
            unsafe { sys::cuLaunchKernelEx(&launch, function.cast(), params.as_mut_ptr(), ptr::null_mut()) };
        check(status as driver::Status, &format!("launching {kernel} with {config:?}"))
    }

    /// # Safety
    /// As [`Launcher::launch`](cuda_std::launch::Launcher::launch).
    pub(super) unsafe fn launch(
        &self,
        kernel: &'static str,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        let function = self.function(kernel, config.shared_bytes, false)?;
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        // SAFETY: the caller vouches for the parameters and the kernel's contract; function and stream are of this
        // device, and the driver copies the parameters before it returns.
        let status = unsafe {
            driver::cuLaunchKernel(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                config.shared_bytes,
                self.stream,
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        if status == driver::SUCCESS {
            return Ok(());
        }
        check(status, &format!("launching {kernel} with {config:?}"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: both handles are this device's own and are not used again. Failures leave nothing to do.
        unsafe {
            driver::cuStreamSynchronize(self.stream);
            if !self.module.is_null() {
                driver::cuModuleUnload(self.module);
            }
            driver::cuStreamDestroy_v2(self.stream);
        }
    }
}

/// Retains the primary context and makes it current.
fn retain_primary_context(info: &DeviceInfo) -> Result<cust::context::Context> {
    let doing = || format!("creating a context on {} (cuda:{})", info.name, info.ordinal);
    let mut raw = ptr::null_mut();
    let mut device = 0;
    // SAFETY: each call writes one handle. This is the call that fails where a device is taken by another process
    // or broken, with codes that cust does not know; so it is made here first, and cust's own cannot fail then.
    unsafe {
        check(driver::cuDeviceGet(&mut device, info.ordinal as c_int), &doing())?;
        check(driver::cuDevicePrimaryCtxRetain(&mut raw, device), &doing())?;
    }
    let context = cust::device::Device::get_device(info.ordinal).and_then(cust::context::Context::new);
    // SAFETY: gives back the reference taken above; cust's own keeps the context alive and current.
    unsafe {
        driver::cuDevicePrimaryCtxRelease_v2(device);
    }
    let context = context.map_err(|error| Error::Device(format!("{}: {error}", doing())))?;
    // SAFETY: the context is alive.
    check(unsafe { driver::cuCtxSetCurrent(context.as_raw()) }, &doing())?;
    Ok(context)
}

/// The kernel of that name in a module of the current context.
pub(super) fn find_function(module: CUmodule, name: &str) -> Result<CUfunction> {
    let c_name = CString::new(name).map_err(|_| Error::Device(format!("kernel name {name:?}")))?;
    let mut raw = ptr::null_mut();
    // SAFETY: the module is loaded, the name ends with a zero, the handle is written.
    check(
        unsafe { driver::cuModuleGetFunction(&mut raw, module, c_name.as_ptr()) },
        &format!("looking up the kernel {name}"),
    )?;
    Ok(raw)
}

/// Compiles PTX for the current context's device.
fn load_module(ptx: &str) -> Result<CUmodule> {
    let ptx = CString::new(ptx).map_err(|_| Error::Device("the PTX has a zero byte".into()))?;
    let mut log = vec![0u8; JIT_LOG_BYTES];
    let mut options = [driver::JIT_ERROR_LOG, driver::JIT_ERROR_LOG_BYTES];
    // The driver takes integer options by value, in the pointer's place.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(JIT_LOG_BYTES)];
    let mut module = ptr::null_mut();
    // SAFETY: the image ends with a zero; options and values have two entries; the log has the given size.
    let status = unsafe {
        driver::cuModuleLoadDataEx(
            &mut module,
            ptx.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    check(status, "loading the kernels").map(|()| module).map_err(|error| {
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        match error {
            Error::Device(what) if !log.trim().is_empty() => Error::Device(format!("{what}\n{}", log.trim())),
            error => error,
        }
    })
}
