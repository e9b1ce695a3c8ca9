//! A GPU in use behind [`Device`](super::Device): context, stream, kernels, memory, all of them `cust`'s. Its bindings are called
//! where it has nothing: for what docs/rust-cuda.md lists.
//!
//! Each kernel is a module of its own, compiled when it is first launched: a model needs a tenth of all kernels, and the driver's
//! compiler takes half a minute for all of them.

use super::device_info::DeviceInfo;
use super::driver::{Answer, cuLaunchKernelEx};
use super::ptx;
use crate::error::{Error, Result};
use cuda_std::launch::LaunchConfig;
use cudarc::driver::sys as launch;
use cust::context::{Context, CurrentContext};
use cust::event::Event;
use cust::memory::{AsyncCopyDestination, DeviceBuffer, DevicePointer, DeviceSlice, mem_get_info};
use cust::module::Module;
use cust::stream::Stream;
use cust::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUstream};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::time::Instant;

/// Dynamic shared memory that every launch may use without asking.
const SHARED_BYTES_DEFAULT: u32 = 48 * 1024;
/// Room for what the driver's PTX compiler says.
const JIT_LOG_BYTES: usize = 16 * 1024;

/// For the preferred carveout of shared memory: per cent.
const ALL_SHARED: c_int = 100;

/// A kernel in use.
struct Function {
    /// Of `_module`; `cust`'s type borrows it, beside which it could not be kept.
    raw: CUfunction,
    /// Dynamic shared memory in bytes that it may be launched with.
    shared_limit: u32,
    /// Whether it was told to run beside others, see [`Gpu::launch_dependent`].
    is_chained: bool,
    _module: Module,
}

/// The primary context (the one that cuBLAS works in too), one stream, the kernels.
///
/// It stays on the thread that made it, for the driver's current context is the thread's.
pub(super) struct Gpu {
    // What is released, in this order, when the stream has come to its end.
    functions: RefCell<HashMap<&'static str, Function>>,
    stream: Stream,
    ptx: ptx::Module<'static>,
    /// Whether the kernels are compiled for Hopper, where they may start while those before them still run.
    is_hopper: bool,
    /// Those of devices whose memory kernels here reach.
    peers: RefCell<Vec<Context>>,
    /// What is queued is recorded.
    is_recording: Cell<bool>,
    context: Context,
}

impl Gpu {
    /// Makes a context on the device for the kernels of `ptx`, and compiles the shortest of them, to learn whether the driver takes
    /// this PTX at all.
    pub(super) fn open(info: &DeviceInfo, ptx: &'static str) -> Result<Self> {
        let context = retain_primary_context(info)?;
        let stream = non_blocking_stream()?;
        let ptx = ptx::Module::parse(ptx);
        let is_hopper = ptx.target().is_some_and(|target| target.starts_with("sm_90"));
        let gpu = Self {
            functions: RefCell::default(),
            stream,
            ptx,
            is_hopper,
            peers: RefCell::default(),
            is_recording: Cell::new(false),
            context,
        };
        if let Some(kernel) = gpu.ptx.shortest_entry() {
            gpu.compile(kernel)?;
        }
        Ok(gpu)
    }

    /// Compiles a kernel, with what it needs of the PTX (the driver keeps the result in its cache).
    pub(super) fn compile(&self, kernel: &str) -> Result<Module> {
        if !self.ptx.entries().any(|entry| entry == kernel) {
            return Err(Error::Device(format!("the PTX that this device runs has no kernel {kernel}")));
        }
        load_module(kernel, &self.ptx.only(|entry| entry == kernel))
    }

    /// Lets kernels here read and write the memory of another device.
    pub(super) fn reach(&self, own: u32, peer: u32) -> Result<()> {
        let device = |ordinal| cust::device::Device::get_device(ordinal).doing("opening the device");
        let (own_device, peer_device) = (device(own)?, device(peer)?);
        let mut can = 0;
        // SAFETY: writes one int.
        unsafe { sys::cuDeviceCanAccessPeer(&mut can, own_device.as_raw(), peer_device.as_raw()) }
            .doing("asking for access between devices")?;
        if can == 0 {
            return Err(Error::Device(format!(
                "cuda:{own} cannot reach the memory of cuda:{peer}: ranks need GPUs that are peers (nvidia-smi topo -p2p rw)"
            )));
        }
        // Makes the peer's context current.
        let context = Context::new(peer_device);
        CurrentContext::set_current(&self.context).doing("returning to the device's context")?;
        let context = context.doing("retaining the context of another device")?;
        // SAFETY: both contexts are retained.
        match unsafe { sys::cuCtxEnablePeerAccess(context.as_raw(), 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
            status => status.doing(&format!("letting cuda:{own} reach the memory of cuda:{peer}"))?,
        }
        self.peers.borrow_mut().push(context);
        Ok(())
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Says that what is queued from now on is recorded, or no longer.
    pub(super) fn is_recording(&self) -> bool {
        self.is_recording.get()
    }

    pub(super) fn set_recording(&self, is_recording: bool) {
        self.is_recording.set(is_recording);
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().doing("waiting for the device")
    }

    pub(super) fn record(&self, event: &Event) -> Result<()> {
        event.record(&self.stream).doing("recording an event")
    }

    pub(super) fn memory_info(&self) -> Result<(usize, usize)> {
        mem_get_info().doing("asking for free memory")
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<DeviceBuffer<u8>> {
        // SAFETY: who allocates fills it. A size of 0 is refused, so an empty buffer takes a byte.
        unsafe { DeviceBuffer::uninitialized(bytes.max(1)) }
            .doing(&format!("allocating {bytes} bytes on the device"))
    }

    /// # Safety
    /// The range is allocated.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { slice(to, bytes).set_8_async(byte, &self.stream) }.doing("filling device memory")
    }

    /// # Safety
    /// Both ranges are allocated and stay so until the copy is over; they do not overlap.
    pub(super) unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { slice(to, bytes).async_copy_from(&slice(from, bytes), &self.stream) }
            .doing("copying on the device")
    }

    /// # Safety
    /// The range is allocated, and stays so, as the bytes do, until the copy is over.
    pub(super) unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { slice(to, from.len()).async_copy_from(from, &self.stream) }.doing("copying to the device")
    }

    /// # Safety
    /// The range is allocated, and stays so, as the bytes do, until the copy is over.
    pub(super) unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { slice(from, to.len()).async_copy_to(to, &self.stream) }.doing("copying from the device")
    }

    /// The kernel of that name, compiled once, allowed to have `shared_bytes` of dynamic shared memory and, if
    /// `chained`, fit to run beside others.
    fn function(&self, name: &'static str, shared_bytes: u32, chained: bool) -> Result<CUfunction> {
        let mut functions = self.functions.borrow_mut();
        let function = match functions.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                // Loading may wait until the device is idle, with a lock of the driver that another device's thread needs for what
                // this one's kernels wait for.
                if !self.peers.borrow().is_empty() && !self.is_recording.get() {
                    self.synchronize()?;
                }
                let start = Instant::now();
                let module = self.compile(name)?;
                tracing::debug!(kernel = name, milliseconds = start.elapsed().as_millis() as u64, "compiled");
                let raw = module.get_function(name).doing(&format!("looking up the kernel {name}"))?.to_raw();
                let shared_limit = SHARED_BYTES_DEFAULT;
                place.insert(Function { raw, shared_limit, is_chained: false, _module: module })
            }
        };
        if shared_bytes > function.shared_limit {
            // SAFETY: the function's module is loaded.
            let status = unsafe {
                sys::cuFuncSetAttribute(
                    function.raw,
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes as c_int,
                )
            };
            status.doing(&format!("asking for {shared_bytes} bytes of shared memory for {name}"))?;
            function.shared_limit = shared_bytes;
        }
        if chained && !function.is_chained {
            // SAFETY: the function's module is loaded.
            let status = unsafe {
                sys::cuFuncSetAttribute(
                    function.raw,
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                    ALL_SHARED,
                )
            };
            status.doing(&format!("asking for all shared memory beside {name}"))?;
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
        let mut attribute = launch::CUlaunchAttribute {
            id: launch::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: launch::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config_with_attribute = launch::CUlaunchConfig {
            gridDimX: config.grid[0],
            gridDimY: config.grid[1],
            gridDimZ: config.grid[2],
            blockDimX: config.block[0],
            blockDimY: config.block[1],
            blockDimZ: config.block[2],
            sharedMemBytes: config.shared_bytes,
            hStream: self.stream.as_inner().cast(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller vouches for the parameters and the kernel's contract; function and stream are of this
        // device, and the driver copies configuration and parameters before it returns.
        let status = unsafe {
            cuLaunchKernelEx(&config_with_attribute, function, params.as_mut_ptr(), ptr::null_mut())
        };
        launched(status, kernel, config)
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
            sys::cuLaunchKernel(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                config.shared_bytes,
                self.stream.as_inner(),
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        launched(status, kernel, config)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // A failure leaves nothing to do.
        let _ = self.stream.synchronize();
    }
}

/// Whether a launch was queued; what it was is only written down if not.
fn launched(status: sys::CUresult, kernel: &str, config: &LaunchConfig) -> Result<()> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        _ => status.doing(&format!("launching {kernel} with {config:?}")),
    }
}

/// Retains the primary context and makes it current.
fn retain_primary_context(info: &DeviceInfo) -> Result<Context> {
    let context = cust::device::Device::get_device(info.ordinal).and_then(Context::new).and_then(|context| {
        // `Context::new` does not look whether this worked.
        CurrentContext::set_current(&context)?;
        Ok(context)
    });
    context.doing(&format!("creating a context on {} (cuda:{})", info.name, info.ordinal))
}

/// A stream that never waits for the legacy default stream. `Stream::new` drops that flag.
fn non_blocking_stream() -> Result<Stream> {
    let mut raw = ptr::null_mut();
    // SAFETY: writes the handle; the context is current.
    let status = unsafe { sys::cuStreamCreate(&mut raw, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
    status.doing("creating a stream")?;
    // SAFETY: a `Stream` is a struct of the handle alone. If it was more, its size would be another, and this would not compile.
    Ok(unsafe { std::mem::transmute::<CUstream, Stream>(raw) })
}

/// Bytes of device memory.
///
/// # Safety
/// The range is allocated while the value is used.
unsafe fn slice(address: u64, bytes: usize) -> DeviceSlice<u8> {
    // SAFETY: the caller's promise.
    unsafe { DeviceSlice::from_raw_parts_mut(DevicePointer::from_raw(address), bytes) }
}

/// Compiles the PTX of a kernel for the current context's device.
fn load_module(kernel: &str, ptx: &str) -> Result<Module> {
    let ptx = CString::new(ptx).map_err(|_| Error::Device("the PTX has a zero byte".into()))?;
    Module::from_ptx_cstr(&ptx, &[]).doing(&format!("loading the kernel {kernel}")).map_err(|error| {
        let log = compile_log(&ptx);
        match error {
            Error::Device(what) if !log.is_empty() => Error::Device(format!("{what}\n{log}")),
            error => error,
        }
    })
}

/// What the driver's compiler says of PTX that it refuses: `cust` cannot ask for it, so it is compiled once more.
fn compile_log(ptx: &CStr) -> String {
    let mut log = vec![0u8; JIT_LOG_BYTES];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes integer options by value, in the pointer's place.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(JIT_LOG_BYTES)];
    let mut module = ptr::null_mut();
    // SAFETY: the image ends with a zero; options and values have two entries; the log has the given size. A module that
    // there is after all is given back.
    unsafe {
        let image = ptx.as_ptr().cast();
        let status =
            sys::cuModuleLoadDataEx(&mut module, image, 2, options.as_mut_ptr(), values.as_mut_ptr());
        if status == sys::CUresult::CUDA_SUCCESS {
            sys::cuModuleUnload(module);
        }
    }
    CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
