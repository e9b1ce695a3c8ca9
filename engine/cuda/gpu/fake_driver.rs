//! A driver for tests, compiled by them: device memory is the host's, kernels do nothing, and every call writes its name with what
//! matters of its arguments.
#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::ffi::c_void;
use std::ptr;

type Handle = *mut c_void;

/// Writes what was called, and succeeds.
fn call(what: &str) -> u32 {
    eprintln!("{what}");
    0
}

/// Writes what was called, hands a value over, and succeeds.
unsafe fn give<T>(what: &str, place: *mut T, value: T) -> u32 {
    unsafe { place.write(value) };
    call(what)
}

/// Some handle.
fn handle() -> Handle {
    ptr::without_provenance_mut(0x1000)
}

/// Memory that is never given back, for the process is short.
fn memory(bytes: usize) -> *mut u8 {
    Box::leak(vec![0xAAu8; bytes].into_boxed_slice()).as_mut_ptr()
}

fn at(address: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address as usize)
}

/// Functions that only write their names.
macro_rules! silent {
    ($($symbol:ident: $name:literal)*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $symbol() -> u32 {
                call($name)
            }
        )*
    };
}

silent! {
    cuInit: "Init"
    cuDevicePrimaryCtxRelease_v2: "PrimaryCtxRelease"
    cuCtxSetCurrent: "CtxSetCurrent"
    cuStreamDestroy_v2: "StreamDestroy"
    cuStreamSynchronize: "StreamSynchronize"
    cuModuleUnload: "ModuleUnload"
    cuMemFree_v2: "MemFree"
    cuMemFreeHost: "MemFreeHost"
    cuEventDestroy_v2: "EventDestroy"
    cuEventRecord: "EventRecord"
    cuEventSynchronize: "EventSynchronize"
    cuGraphDestroy: "GraphDestroy"
    cuGraphLaunch: "GraphLaunch"
    cuGraphExecDestroy: "GraphExecDestroy"
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    unsafe { give("DriverGetVersion", version, 13010) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    unsafe { give("DeviceGetCount", count, 1) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> u32 {
    unsafe { give(&format!("DeviceGet:{ordinal}"), device, ordinal) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut u8, _length: i32, _device: i32) -> u32 {
    unsafe { give("DeviceGetName", name.cast(), *b"a device\0") }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) -> u32 {
    unsafe { give("DeviceTotalMem", bytes, 1 << 36) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _device: i32) -> u32 {
    let known = [(16, 132), (38, 50 << 20), (39, 2048), (75, 9), (76, 0), (97, 227 << 10)];
    let Some((_, found)) = known.iter().find(|(known, _)| *known == attribute) else { return 1 };
    unsafe { give(&format!("DeviceGetAttribute:{attribute}"), value, *found) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _device: i32) -> u32 {
    unsafe { give("PrimaryCtxRetain", context, handle()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, flags: u32) -> u32 {
    unsafe { give(&format!("StreamCreate:{flags}"), stream, handle()) }
}

/// Refuses `.target refused…`; the first of two options is the log.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const u8,
    num_options: u32,
    options: *const u32,
    values: *const Handle,
) -> u32 {
    unsafe {
        call(&format!("ModuleLoadDataEx:{num_options}"));
        if !std::slice::from_raw_parts(image, b".target r".len()).eq(b".target r") {
            module.write(handle());
            return 0;
        }
        if num_options == 2 && (*options, *options.add(1)) == (5, 6) {
            values.read().cast::<[u8; 12]>().write(*b"line 1: no\n\0");
        }
    }
    218
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    _module: Handle,
    _name: *const u8,
) -> u32 {
    unsafe { give("ModuleGetFunction", function, handle()) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(_function: Handle, attribute: i32, value: i32) -> u32 {
    call(&format!("FuncSetAttribute:{attribute}={value}"))
}

/// There are 2^40 bytes less one, and 0xBAD of them are refused with a code that is not known yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    call(&format!("MemAlloc:{bytes}"));
    match bytes {
        0xBAD => return 1001,
        0x100_0000_0000.. => return 2,
        _ => unsafe { address.write(memory(bytes).expose_provenance() as u64) },
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(pointer: *mut Handle, bytes: usize) -> u32 {
    unsafe { give(&format!("MemAllocHost:{bytes}"), pointer, memory(bytes).cast()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, _on: Handle) -> u32 {
    unsafe { at(to).copy_from(from, bytes) };
    call(&format!("MemcpyHtoDAsync:{bytes}"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, _on: Handle) -> u32 {
    unsafe { to.copy_from(at(from), bytes) };
    call(&format!("MemcpyDtoHAsync:{bytes}"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _on: Handle) -> u32 {
    unsafe { at(to).write_bytes(value, bytes) };
    call(&format!("MemsetD8Async:{bytes}"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: u32) -> u32 {
    unsafe { give(&format!("EventCreate:{flags}"), event, handle()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, _from: Handle, _to: Handle) -> u32 {
    unsafe { give("EventElapsedTime", milliseconds, 1.5) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(_stream: Handle, mode: u32) -> u32 {
    call(&format!("StreamBeginCapture:{mode}"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(_stream: Handle, graph: *mut Handle) -> u32 {
    unsafe { give("StreamEndCapture", graph, handle()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut Handle, _graph: Handle, flags: u64) -> u32 {
    unsafe { give(&format!("GraphInstantiateWithFlags:{flags}"), exec, handle()) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(_: Handle, grid: u32, _: u32, _: u32, block: u32) -> u32 {
    call(&format!("LaunchKernel:{grid}x{block}"))
}

/// A `CUlaunchConfig`.
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
    attributes: *const u32,
    num_attributes: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(config: &Config) -> u32 {
    let Config { grid: [grid, ..], block: [block, ..], attributes, num_attributes: 1, .. } = *config else {
        return 1;
    };
    call(&format!("LaunchKernelEx:{grid}x{block}:{}", unsafe { *attributes }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, text: &mut *const u8) -> u32 {
    *text = match code {
        218 => c"CUDA_ERROR_INVALID_PTX".as_ptr().cast(),
        2 => c"CUDA_ERROR_OUT_OF_MEMORY".as_ptr().cast(),
        1001 => c"CUDA_ERROR_OF_TOMORROW".as_ptr().cast(),
        _ => return 1,
    };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_code: u32, text: &mut *const u8) -> u32 {
    *text = c"what it means".as_ptr().cast();
    0
}
