//! The driver's library: where it is, the addresses of its functions, and what their answers mean.

use cust_raw::CUresult;
use libloading::Library;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

const SUCCESS: u32 = 0;
/// `CUDA_ERROR_NO_DEVICE`, for every function where there is no driver.
const NO_DEVICE: u32 = 100;
/// `CUDA_ERROR_NOT_FOUND`, for a function that the installed driver is too old to have.
const NOT_FOUND: u32 = 500;

/// Where the driver's library is looked for: the loader's own search first, then the folders in which containers, WSL
/// and NixOS put it without telling the loader.
const LIBRARIES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
];

struct Driver {
    library: Library,
    /// Which of [`LIBRARIES`] it is.
    name: &'static str,
}

fn driver() -> &'static Result<Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            return Err("no NVIDIA driver is looked for on this platform: only on Linux".into());
        }
        for name in LIBRARIES {
            // SAFETY: loading the driver runs its initialisers, which is what a program linked with it would do too.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Ok(Driver { library, name });
            }
        }
        Err(format!("no NVIDIA driver: none of {} could be loaded", LIBRARIES.join(", ")))
    })
}

/// Whether the driver's library was found: its name, or where it was looked for. It says nothing about devices.
pub fn status() -> Result<&'static str, &'static str> {
    driver().as_ref().map(|driver| driver.name).map_err(String::as_str)
}

/// The address of one of the driver's functions; null before its first call.
pub(crate) struct Slot(AtomicPtr<c_void>);

impl Slot {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The address of the function of this name, or the code to answer with where there is none.
    #[inline]
    pub(crate) fn address(&self, name: &str) -> Result<*const c_void, u32> {
        let address = self.0.load(Ordering::Acquire);
        if address.is_null() { self.look_up(name) } else { Ok(address) }
    }

    #[cold]
    fn look_up(&self, name: &str) -> Result<*const c_void, u32> {
        let driver = driver().as_ref().map_err(|_| NO_DEVICE)?;
        // SAFETY: the symbol is only carried as an address here; the caller knows its signature.
        let symbol = unsafe { driver.library.get::<*const c_void>(name) };
        let address = symbol.map_or(ptr::null(), |symbol| *symbol);
        if address.is_null() {
            return Err(NOT_FOUND);
        }
        self.0.store(address.cast_mut(), Ordering::Release);
        Ok(address)
    }
}

thread_local! {
    /// See [`last_error`].
    static LAST_ERROR: Cell<u32> = const { Cell::new(SUCCESS) };
}

/// The code of this thread's last call that did not succeed, as the driver gave it; 0 before the first. For the place
/// where such a call was just made: `cust` knows fewer codes than its bindings, and those fewer than a driver of today.
pub fn last_error() -> u32 {
    LAST_ERROR.get()
}

/// The driver's answer for `cust_raw`'s bindings: their enum, in which a code that it does not have would be undefined
/// behaviour, so that such a code becomes `CUDA_ERROR_UNKNOWN`.
#[inline]
pub(crate) fn answer(status: u32) -> CUresult {
    if status == SUCCESS { CUresult::CUDA_SUCCESS } else { failure(status) }
}

#[cold]
fn failure(status: u32) -> CUresult {
    LAST_ERROR.set(status);
    if is_known(status) {
        // SAFETY: the enum is represented by an integer of this size, and has this value.
        unsafe { std::mem::transmute::<u32, CUresult>(status) }
    } else {
        CUresult::CUDA_ERROR_UNKNOWN
    }
}

/// Whether the enum of `cust_raw` 0.11.3 has this code: CUDA 11.4's 87. Cargo.toml asks for this version and no other.
fn is_known(status: u32) -> bool {
    matches!(
        status,
        0..=8 | 34 | 100..=102 | 200..=202 | 205..=224 | 300..=304 | 400..=401 | 500 | 600 | 700..=705 | 708..=720
            | 800..=809 | 900..=911 | 999
    )
}

/// A text of the driver's about a code; `None` without a driver or where it does not know the code.
fn text(slot: &Slot, function: &str, code: u32) -> Option<&'static CStr> {
    type Text = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let address = slot.address(function).ok()?;
    let mut text = ptr::null();
    // SAFETY: both functions that tell about codes have this signature; what they store is null or a constant string.
    unsafe {
        let status = std::mem::transmute::<*const c_void, Text>(address)(code, &mut text);
        (status == SUCCESS && !text.is_null()).then(|| CStr::from_ptr(text))
    }
}

fn explanation(code: u32) -> Option<&'static CStr> {
    static SLOT: Slot = Slot::new();
    text(&SLOT, "cuGetErrorString", code)
}

/// A code as the driver explains it, `CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered`, or
/// just its number.
pub fn describe(code: u32) -> String {
    static SLOT: Slot = Slot::new();
    match (text(&SLOT, "cuGetErrorName", code), explanation(code)) {
        (Some(name), Some(what)) => {
            format!("{} ({code}): {}", name.to_string_lossy(), what.to_string_lossy())
        }
        _ => format!("CUDA error {code}"),
    }
}

/// `cust` asks for a text when it prints an error, and panics if there is none: so there is one without a driver too.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    if text.is_null() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let message = explanation(error as u32).unwrap_or(match error {
        CUresult::CUDA_SUCCESS => c"no error",
        CUresult::CUDA_ERROR_NO_DEVICE => c"no CUDA-capable device is detected: there is no NVIDIA driver",
        CUresult::CUDA_ERROR_NOT_FOUND => c"the NVIDIA driver does not have this function",
        _ => c"a CUDA error that the NVIDIA driver does not explain",
    });
    // SAFETY: not null, and so writable as the caller promises.
    unsafe { text.write(message.as_ptr()) };
    CUresult::CUDA_SUCCESS
}
