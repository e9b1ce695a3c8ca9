//! One GPU: its properties, the primary context, the stream that everything runs on, and the module of kernels.

use super::driver::{self, CUfunction, CUmodule, CUstream, check};
use crate::error::{Error, Result};
use cuda_std::launch::{Kernel, LaunchConfig, Launcher};
use cudarc::driver::sys;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

/// PTX for every device of compute capability 8.0 and later.
const PTX_SM_80: &str = include_str!(concat!(env!("OUT_DIR"), "/gpu-kernels.sm_80.ptx"));
/// PTX for Hopper alone (compute capability 9.0): the `a` features do not run on any other device.
const PTX_SM_90A: &str = include_str!(concat!(env!("OUT_DIR"), "/gpu-kernels.sm_90a.ptx"));

/// The targets that the kernels are compiled for.
pub const PTX_TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// The PTX of a target as it is run, `None` if the kernels are not compiled for it.
pub fn ptx(target: &str) -> Option<&'static str> {
    static STRIPPED: [OnceLock<String>; PTX_TARGETS.len()] = [const { OnceLock::new() }; PTX_TARGETS.len()];
    let index = PTX_TARGETS.iter().position(|&known| known == target)?;
    let with_lines = ptx_with_lines(target)?;
    Some(STRIPPED[index].get_or_init(|| cuda_builder::without_line_info(with_lines)))
}

/// The PTX of a target with the source line of every instruction (`.loc`), for people; `None` as for [`ptx`].
pub fn ptx_with_lines(target: &str) -> Option<&'static str> {
    match target {
        "sm_80" => Some(PTX_SM_80),
        "sm_90a" => Some(PTX_SM_90A),
        _ => None,
    }
}

/// Environment variable that names a file of PTX to run instead of the embedded one: `lab watch` sets it.
pub const PTX_FILE: &str = "QERNEL_PTX_FILE";

/// Environment variable that makes a Hopper device run the PTX of older ones, `sm_80`: for tests.
const PTX_TARGET: &str = "QERNEL_PTX_TARGET";

/// Dynamic shared memory that every launch may use without asking.
const SHARED_BYTES_DEFAULT: u32 = 48 * 1024;
/// Room for what the driver's PTX compiler says.
const JIT_LOG_BYTES: usize = 16 * 1024;

/// What is known of a GPU without using it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DeviceInfo {
    /// The `N` of `cuda:N`, in the driver's order (see CUDA_VISIBLE_DEVICES).
    pub ordinal: u32,
    pub name: String,
    /// Major and minor, `(9, 0)` for Hopper.
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes.
    pub total_memory: usize,
    /// Bytes.
    pub l2_cache: usize,
    /// Bytes of shared memory a block may have once it asked.
    pub shared_memory_per_block: usize,
    /// CUDA version that the driver supports, as major and minor.
    pub driver_version: (u32, u32),
}

impl DeviceInfo {
    /// Which of the embedded PTX modules the device runs: `sm_90a` or `sm_80`.
    ///
    /// # Errors
    /// [`Error::Device`] if it is older than compute capability 8.0.
    pub fn target(&self) -> Result<&'static str> {
        target_for(self.compute_capability).ok_or_else(|| {
            let (major, minor) = self.compute_capability;
            Error::Device(format!(
                "{} (cuda:{}) has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later: \
                 use --device cpu",
                self.name, self.ordinal
            ))
        })
    }
}

/// The name of the PTX target that a device of this compute capability runs, `None` if it is too old.
fn target_for(capability: (u32, u32)) -> Option<&'static str> {
    match capability {
        (9, 0) => Some("sm_90a"),
        (8.., _) => Some("sm_80"),
        _ => None,
    }
}

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

/// A kernel of the module.
#[derive(Clone)]
struct Function {
    raw: CUfunction,
    /// Dynamic shared memory in bytes that it may be launched with.
    shared_limit: Cell<u32>,
}

/// A GPU in use: the primary context (the one that cuBLAS works in too), one stream, the kernels.
///
/// It stays on the thread that made it, for the driver's current context is the thread's.
pub struct Device {
    info: DeviceInfo,
    /// Whether the kernels are compiled for Hopper, where they may start while those before them still run.
    is_hopper: bool,
    pub(super) module: CUmodule,
    stream: CUstream,
    functions: RefCell<HashMap<&'static str, Function>>,
    /// Released last: fields drop in this order.
    context: cust::context::Context,
}

impl Device {
    /// Opens `cuda:N`, or the first device where `ordinal` is `None`, and compiles the kernels for it (the driver
    /// keeps the result in its cache).
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, it is too old, or the driver refuses the kernels; the text has
    /// the driver's compile log.
    pub fn open(ordinal: Option<u32>) -> Result<Self> {
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
        Self::open_info(info, ptx(target).expect("the kernels are compiled for both"))
    }

    /// [`Device::open`] with other kernels than those that the program carries, such as `lab watch` has just compiled.
    /// A launch of one that is not in `ptx` is an error.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_with_ptx(ordinal: Option<u32>, ptx: &str) -> Result<Self> {
        Self::open_info(find(ordinal)?, ptx)
    }

    fn open_info(info: DeviceInfo, ptx: &str) -> Result<Self> {
        let is_hopper = ptx.contains(".target sm_90");
        let context = retain_primary_context(&info)?;
        let mut stream = ptr::null_mut();
        // SAFETY: writes the handle; the context is current.
        check(
            unsafe { driver::cuStreamCreate(&mut stream, driver::STREAM_NON_BLOCKING) },
            "creating a stream",
        )?;
        let mut device =
            Self { info, is_hopper, module: ptr::null_mut(), stream, functions: RefCell::default(), context };
        device.module = load_module(ptx)?;
        Ok(device)
    }

    /// Properties of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The stream that every operation is queued on, for libraries that take one.
    pub fn stream(&self) -> CUstream {
        self.stream
    }

    /// The primary context, retained as long as this device lives.
    pub fn context(&self) -> &cust::context::Context {
        &self.context
    }

    /// Waits for everything that was queued; a fault of an earlier kernel shows here.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's name of the fault.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this device's.
        check(unsafe { driver::cuStreamSynchronize(self.stream) }, "waiting for the device")
    }

    /// Bytes of device memory: free now, and in all.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver does not answer.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes; the context is current on this thread.
        check(unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok((free, total))
    }

    /// The kernel of that name, looked up in the module once.
    fn function(&self, name: &'static str) -> Result<CUfunction> {
        if let Some(function) = self.functions.borrow().get(name) {
            return Ok(function.raw);
        }
        let c_name = CString::new(name).map_err(|_| Error::Device(format!("kernel name {name:?}")))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero, the handle is written.
        check(
            unsafe { driver::cuModuleGetFunction(&mut raw, self.module, c_name.as_ptr()) },
            &format!("looking up the kernel {name}"),
        )?;
        self.functions
            .borrow_mut()
            .insert(name, Function { raw, shared_limit: Cell::new(SHARED_BYTES_DEFAULT) });
        Ok(raw)
    }

    /// Lets the kernel have `bytes` of dynamic shared memory, if that is more than it may have already.
    fn allow_shared(&self, name: &'static str, raw: CUfunction, bytes: u32) -> Result<()> {
        let functions = self.functions.borrow();
        let limit = &functions[name].shared_limit;
        if bytes <= limit.get() {
            return Ok(());
        }
        // SAFETY: the function is of this module.
        check(
            unsafe { driver::cuFuncSetAttribute(raw, driver::FUNCTION_MAX_DYNAMIC_SHARED, bytes as c_int) },
            &format!(
                "asking for {bytes} bytes of shared memory for {name} (the device has {})",
                self.info.shared_memory_per_block
            ),
        )?;
        limit.set(bytes);
        Ok(())
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
        let kernel = kernel.name;
        let function = self.function(kernel)?;
        if config.shared_bytes > SHARED_BYTES_DEFAULT {
            self.allow_shared(kernel, function, config.shared_bytes)?;
        }
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
        let device = self.0;
        if !device.is_hopper {
            // SAFETY: the caller's promise.
            return unsafe { device.launch(kernel, config, params) };
        }
        let kernel = kernel.name;
        let function = device.function(kernel)?;
        if config.shared_bytes > SHARED_BYTES_DEFAULT {
            device.allow_shared(kernel, function, config.shared_bytes)?;
        }
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
            hStream: device.stream.cast(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller vouches for the parameters and the kernel's contract; function and stream are of this
        // device, and the driver copies configuration and parameters before it returns.
        let status =
            unsafe { sys::cuLaunchKernelEx(&launch, function.cast(), params.as_mut_ptr(), ptr::null_mut()) };
        check(status as driver::Status, &format!("launching {kernel} with {config:?}"))
    }
}

impl Drop for Device {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_gets_the_newest_ptx_it_runs() {
        assert_eq!(target_for((7, 5)), None);
        assert_eq!(target_for((8, 0)), Some("sm_80"));
        assert_eq!(target_for((8, 9)), Some("sm_80"));
        assert_eq!(target_for((9, 0)), Some("sm_90a"));
        assert_eq!(target_for((10, 0)), Some("sm_80"));
        assert_eq!(target_for((12, 0)), Some("sm_80"));
    }

    #[test]
    fn an_old_device_is_refused_with_its_numbers() {
        let info = DeviceInfo {
            ordinal: 1,
            name: "Tesla T4".into(),
            compute_capability: (7, 5),
            multiprocessors: 40,
            total_memory: 16 << 30,
            l2_cache: 4 << 20,
            shared_memory_per_block: 64 << 10,
            driver_version: (12, 4),
        };
        let text = info.target().unwrap_err().to_string();
        assert!(text.contains("Tesla T4 (cuda:1)") && text.contains("7.5") && text.contains("8.0"), "{text}");
    }
}
