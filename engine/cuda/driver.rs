//! The driver calls of the engine's own, declared with integer results.
//!
//! `cust`'s bindings return an enum that knows the codes of CUDA 11.4; a newer driver answering with a newer code
//! would be undefined behaviour there. These declarations name the same symbols (exported by `cuda_driver`), so
//! every code is just a number, and the driver itself names it.

// Named so that the linker finds the driver's symbols in it.
extern crate cuda_driver as _;

use crate::error::{Error, Result};
// Exports the driver's symbols that are declared here and in `cust`'s bindings.
use cuda_driver as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A `CUresult`.
pub(super) type Status = u32;
/// A `CUdeviceptr`.
pub(super) type Address = u64;
pub(super) use cust::sys::{CUcontext, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream};

pub(super) const SUCCESS: Status = 0;
const OUT_OF_MEMORY: Status = 2;
/// What `cuda_driver` answers where there is no driver, and the driver where there is no device.
const NO_DEVICE: Status = 100;

/// `CU_STREAM_NON_BLOCKING`: no implicit waiting for the legacy default stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: other calls are allowed while a stream is recorded.
pub(super) const CAPTURE_RELAXED: c_uint = 2;
/// `CU_EVENT_DISABLE_TIMING`
pub(super) const EVENT_DISABLE_TIMING: c_uint = 2;

// `CUdevice_attribute`
pub(super) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
pub(super) const ATTRIBUTE_L2_BYTES: c_int = 38;
pub(super) const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
pub(super) const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
pub(super) const ATTRIBUTE_SHARED_OPT_IN: c_int = 97;

// `CUfunction_attribute`
pub(super) const FUNCTION_SHARED_BYTES: c_int = 1;
pub(super) const FUNCTION_LOCAL_BYTES: c_int = 3;
pub(super) const FUNCTION_REGISTERS: c_int = 4;
pub(super) const FUNCTION_MAX_DYNAMIC_SHARED: c_int = 8;
pub(super) const FUNCTION_SHARED_CARVEOUT: c_int = 9;

// `CUjit_option`
pub(super) const JIT_ERROR_LOG: c_uint = 5;
pub(super) const JIT_ERROR_LOG_BYTES: c_uint = 6;

unsafe extern "C" {
    pub(super) fn cuInit(flags: c_uint) -> Status;
    pub(super) fn cuDriverGetVersion(version: *mut c_int) -> Status;
    fn cuGetErrorName(status: Status, name: *mut *const c_char) -> Status;
    fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status;

    pub(super) fn cuDeviceGetCount(count: *mut c_int) -> Status;
    pub(super) fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status;
    pub(super) fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> Status;
    pub(super) fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Status;
    pub(super) fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> Status;
    pub(super) fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: c_int) -> Status;
    pub(super) fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status;
    pub(super) fn cuCtxSetCurrent(context: CUcontext) -> Status;

    pub(super) fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status;
    pub(super) fn cuMemAlloc_v2(address: *mut Address, bytes: usize) -> Status;
    pub(super) fn cuMemFree_v2(address: Address) -> Status;
    pub(super) fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> Status;
    pub(super) fn cuMemFreeHost(pointer: *mut c_void) -> Status;
    pub(super) fn cuMemcpyHtoDAsync_v2(
        to: Address,
        from: *const c_void,
        bytes: usize,
        on: CUstream,
    ) -> Status;
    pub(super) fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Address, bytes: usize, on: CUstream) -> Status;
    pub(super) fn cuMemsetD8Async(to: Address, value: u8, bytes: usize, on: CUstream) -> Status;

    pub(super) fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> Status;
    pub(super) fn cuStreamDestroy_v2(stream: CUstream) -> Status;
    pub(super) fn cuStreamSynchronize(stream: CUstream) -> Status;
    pub(super) fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint) -> Status;
    pub(super) fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> Status;
    pub(super) fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: u64) -> Status;
    pub(super) fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream) -> Status;
    pub(super) fn cuGraphExecDestroy(exec: CUgraphExec) -> Status;
    pub(super) fn cuGraphDestroy(graph: CUgraph) -> Status;
    pub(super) fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> Status;
    pub(super) fn cuEventDestroy_v2(event: CUevent) -> Status;
    pub(super) fn cuEventRecord(event: CUevent, stream: CUstream) -> Status;
    pub(super) fn cuEventSynchronize(event: CUevent) -> Status;
    pub(super) fn cuEventElapsedTime(milliseconds: *mut f32, from: CUevent, to: CUevent) -> Status;

    pub(super) fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        num_options: c_uint,
        options: *mut c_uint,
        values: *mut *mut c_void,
    ) -> Status;
    pub(super) fn cuModuleUnload(module: CUmodule) -> Status;
    pub(super) fn cuModuleGetFunction(
        function: *mut CUfunction,
        module: CUmodule,
        name: *const c_char,
    ) -> Status;
    pub(super) fn cuFuncSetAttribute(function: CUfunction, attribute: c_int, value: c_int) -> Status;
    pub(super) fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: CUfunction) -> Status;
    pub(super) fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: CUfunction,
        block_size: c_int,
        dynamic_shared_bytes: usize,
    ) -> Status;
    pub(super) fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Status;
}

/// `Ok` for success, else an error that says what was being done and how the driver names the code.
pub(super) fn check(status: Status, doing: &str) -> Result<()> {
    match status {
        SUCCESS => Ok(()),
        OUT_OF_MEMORY => Err(Error::Memory(format!("{doing}: {}", describe(status)))),
        NO_DEVICE => Err(Error::Device(
            "no NVIDIA GPU: the driver (libcuda.so.1) is not installed or reports no device; \
             use --device cpu"
                .into(),
        )),
        _ => Err(Error::Device(format!("{doing}: {}", describe(status)))),
    }
}

/// `CUDA_ERROR_… (700): an illegal memory access was encountered`
fn describe(status: Status) -> String {
    let text = |get: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
        let mut text = std::ptr::null();
        // SAFETY: the driver stores a pointer to a constant string of its own, or null for a code it does not know.
        unsafe {
            if get(status, &mut text) != SUCCESS || text.is_null() {
                return None;
            }
            Some(CStr::from_ptr(text).to_string_lossy())
        }
    };
    match (text(cuGetErrorName), text(cuGetErrorString)) {
        (Some(name), Some(what)) => format!("{name} ({status}): {what}"),
        _ => format!("CUDA error {status}"),
    }
}
