//! The driver's functions that `cust` 0.3.2 calls, and those that `cust_raw` 0.11.3 declares and this repository's
//! crates call besides: streams that do not wait for the default stream, graphs, attributes of functions, memory of
//! other devices.

use cust_raw::*;
use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};

/// Defines functions that hand their arguments to the driver's function of that name, and its answer back through
/// [`answer`](crate::driver::answer).
macro_rules! define {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> CUresult {
            static SLOT: $crate::driver::Slot = $crate::driver::Slot::new();
            let status = match SLOT.address(stringify!($name)) {
                // SAFETY: the driver's function of this name takes these arguments, for which the caller vouches,
                // and answers with an integer.
                Ok(address) => unsafe {
                    std::mem::transmute::<*const c_void, unsafe extern "C" fn($($type),*) -> u32>(address)($($arg),*)
                },
                Err(status) => status,
            };
            $crate::driver::answer(status)
        }
    )*};
}

/// Defines functions, and refuses to compile where a signature is not the one that `cust_raw` declares.
macro_rules! define_declared {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {
        $(const _: unsafe extern "C" fn($($type),*) -> CUresult = cust_raw::$name;)*
        define! { $($name($($arg: $type),*);)* }
    };
}

define_declared! {
    cuArray3DCreate_v2(array: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR);
    cuArray3DGetDescriptor_v2(descriptor: *mut CUDA_ARRAY3D_DESCRIPTOR, array: CUarray);
    cuArrayDestroy(array: CUarray);
    cuCtxCreate_v2(context: *mut CUcontext, flags: c_uint, device: CUdevice);
    cuCtxDestroy_v2(context: CUcontext);
    cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);
    cuCtxGetApiVersion(context: CUcontext, version: *mut c_uint);
    cuCtxGetCacheConfig(config: *mut CUfunc_cache);
    cuCtxGetCurrent(context: *mut CUcontext);
    cuCtxGetDevice(device: *mut CUdevice);
    cuCtxGetFlags(flags: *mut c_uint);
    cuCtxGetLimit(value: *mut usize, limit: CUlimit);
    cuCtxGetSharedMemConfig(config: *mut CUsharedconfig);
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxSetCacheConfig(config: CUfunc_cache);
    cuCtxSetCurrent(context: CUcontext);
    cuCtxSetLimit(limit: CUlimit, value: usize);
    cuCtxSetSharedMemConfig(config: CUsharedconfig);
    cuCtxSynchronize();
    cuDestroyExternalMemory(memory: CUexternalMemory);
    cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuDevicePrimaryCtxReset_v2(device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: c_uint);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDriverGetVersion(version: *mut c_int);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventQuery(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuExternalMemoryGetMappedBuffer(
        address: *mut CUdeviceptr, memory: CUexternalMemory,
        descriptor: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC,
    );
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuFuncSetCacheConfig(function: CUfunction, config: CUfunc_cache);
    cuFuncSetSharedMemConfig(function: CUfunction, config: CUsharedconfig);
    cuGraphDestroy(graph: CUgraph);
    cuGraphExecDestroy(exec: CUgraphExec);
    cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    cuImportExternalMemory(
        memory: *mut CUexternalMemory, descriptor: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
    );
    cuInit(flags: c_uint);
    cuLaunchHostFunc(stream: CUstream, function: CUhostFn, data: *mut c_void);
    cuLaunchKernel(
        function: CUfunction, grid_dim_x: c_uint, grid_dim_y: c_uint, grid_dim_z: c_uint,
        block_dim_x: c_uint, block_dim_y: c_uint, block_dim_z: c_uint, shared_bytes: c_uint,
        stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void,
    );
    cuLinkAddData_v2(
        state: CUlinkState, kind: CUjitInputType, data: *mut c_void, size: usize, name: *const c_char,
        num_options: c_uint, options: *mut CUjit_option, values: *mut *mut c_void,
    );
    cuLinkComplete(state: CUlinkState, cubin: *mut *mut c_void, size: *mut usize);
    cuLinkCreate_v2(
        num_options: c_uint, options: *mut CUjit_option, values: *mut *mut c_void, state: *mut CUlinkState,
    );
    cuLinkDestroy(state: CUlinkState);
    cuMemAdvise(address: CUdeviceptr, count: usize, advice: CUmem_advise, device: CUdevice);
    cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize);
    cuMemAllocManaged(address: *mut CUdeviceptr, bytes: usize, flags: c_uint);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFreeAsync(address: CUdeviceptr, stream: CUstream);
    cuMemFreeHost(pointer: *mut c_void);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemPrefetchAsync(address: CUdeviceptr, count: usize, to: CUdevice, stream: CUstream);
    cuMemcpy2D_v2(copy: *const CUDA_MEMCPY2D);
    cuMemcpyAtoH_v2(to: *mut c_void, from: CUarray, offset: usize, bytes: usize);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize);
    cuMemcpyHtoA_v2(to: CUarray, offset: usize, from: *const c_void, bytes: usize);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize);
    cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream);
    cuMemsetD16_v2(to: CUdeviceptr, value: c_ushort, count: usize);
    cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
    cuMemsetD32_v2(to: CUdeviceptr, value: c_uint, count: usize);
    cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream);
    cuMemsetD8_v2(to: CUdeviceptr, value: c_uchar, count: usize);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuModuleGetGlobal_v2(address: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char);
    cuModuleLoad(module: *mut CUmodule, path: *const c_char);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, num_options: c_uint, options: *mut CUjit_option,
        values: *mut *mut c_void,
    );
    cuModuleUnload(module: CUmodule);
    cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize, function: CUfunction, blocks: c_int, block_size: c_int,
    );
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: CUfunction, block_size: c_int, dynamic_bytes: usize,
    );
    cuOccupancyMaxPotentialBlockSize(
        grid_size: *mut c_int, block_size: *mut c_int, function: CUfunction,
        shared_bytes: CUoccupancyB2DSize, dynamic_bytes: usize, limit: c_int,
    );
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuStreamGetFlags(stream: CUstream, flags: *mut c_uint);
    cuStreamGetPriority(stream: CUstream, priority: *mut c_int);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
}

// Newer than `cust_raw`; the configuration is a `CUlaunchConfig`, the map a `CUtensorMap`, and what has a number an enum of these.
define! {
    cuTensorMapEncodeTiled(
        map: *mut c_void, data_type: u32, rank: u32, address: *mut c_void, dimensions: *const u64, strides: *const u64,
        box_dimensions: *const u32, element_strides: *const u32, interleave: u32, swizzle: u32, l2_promotion: u32, fill: u32,
    );
    cuLaunchKernelEx(
        config: *const c_void, function: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void,
    );
}
