//! What a call of the driver says when it fails. Calls go through `cust`, or, where it has none, through its bindings
//! (`cust::sys`); both call the functions of `cuda_driver`, which keeps the code as the driver gave it.

use crate::error::{Error, Result};
use cudarc::driver::sys::CUlaunchConfig;
use cust::error::{CudaError, CudaResult};
use cust::sys::{CUfunction, CUresult};
use std::ffi::c_void;

unsafe extern "C" {
    /// Makes the map of a matrix by which kernels copy boxes of it: newer than `cust`'s bindings.
    pub(super) fn cuTensorMapEncodeTiled(
        map: *mut c_void,
        data_type: u32,
        rank: u32,
        address: *mut c_void,
        dimensions: *const u64,
        strides: *const u64,
        box_dimensions: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        l2_promotion: u32,
        fill: u32,
    ) -> CUresult;

    /// Launches a kernel with attributes: newer than `cust`'s bindings.
    pub(super) fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> CUresult;
}

/// The answer of a call that was just made.
pub(super) trait Answer {
    type Value;

    /// Its value, else an error that says what was being done and how the driver explains the code.
    fn doing(self, what: &str) -> Result<Self::Value>;
}

impl<T> Answer for CudaResult<T> {
    type Value = T;

    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| match error {
            // Of `cust`'s own making: no call was made.
            CudaError::InvalidMemoryAllocation | CudaError::OptixError => {
                Error::Device(format!("{what}: {error}"))
            }
            _ => failure(what),
        })
    }
}

impl Answer for CUresult {
    type Value = ();

    fn doing(self, what: &str) -> Result<()> {
        match self {
            CUresult::CUDA_SUCCESS => Ok(()),
            _ => Err(failure(what)),
        }
    }
}

/// The error of the call that failed last on this thread.
fn failure(what: &str) -> Error {
    let code = cuda_driver::last_error();
    let explained = || format!("{what}: {}", cuda_driver::describe(code));
    match code {
        OUT_OF_MEMORY => Error::Memory(explained()),
        NO_DEVICE => Error::Device(
            "no NVIDIA GPU: the driver (libcuda.so.1) is not installed or reports no device; \
             use --device cpu"
                .into(),
        ),
        _ => Error::Device(explained()),
    }
}

const OUT_OF_MEMORY: u32 = CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32;
/// What `cuda_driver` answers where there is no driver, and the driver where there is no device.
const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;
