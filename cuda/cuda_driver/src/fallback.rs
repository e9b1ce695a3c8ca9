//! What the functions answer when the driver does not.

use std::ffi::{CStr, c_char};

/// `CUDA_SUCCESS`, `CUDA_ERROR_INVALID_VALUE` and `CUDA_ERROR_NOT_FOUND` of the driver API.
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 1;
const NOT_FOUND: u32 = 500;

/// Stands for every function where there is no driver.
///
/// The C calling conventions of both architectures leave the stack to the caller, so it serves for every signature.
pub(crate) extern "C" fn no_device() -> u32 {
    crate::NO_DEVICE
}

/// Stands for a function that the installed driver is too old to have.
pub(crate) extern "C" fn not_found() -> u32 {
    NOT_FOUND
}

/// Stands for `cuGetErrorString`: `cust` asks it when an error is printed, and could not even say that there is no driver.
pub(crate) unsafe extern "C" fn error_string(error: u32, text: *mut *const c_char) -> u32 {
    let message = match error {
        SUCCESS => c"no error",
        crate::NO_DEVICE => c"no CUDA-capable device is detected: there is no NVIDIA driver",
        NOT_FOUND => c"the NVIDIA driver does not have this function",
        _ => c"a CUDA error that only the NVIDIA driver could explain, and there is none",
    };
    // SAFETY: the caller passes what it would pass to the driver's function.
    unsafe { answer(text, message) }
}

/// Stands for `cuGetErrorName`.
pub(crate) unsafe extern "C" fn error_name(error: u32, text: *mut *const c_char) -> u32 {
    let name = match error {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        crate::NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    // SAFETY: the caller passes what it would pass to the driver's function.
    unsafe { answer(text, name) }
}

/// # Safety
/// `text` is null or can be written.
unsafe fn answer(text: *mut *const c_char, message: &'static CStr) -> u32 {
    if text.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and so writable as the caller promises.
    unsafe { text.write(message.as_ptr()) };
    SUCCESS
}
