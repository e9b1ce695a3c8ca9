//! What NVIDIA's management library (NVML) says of a device: power, clocks, and who uses it. The driver brings the library; it is loaded when
//! it is asked for.

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CString, OsStr, c_char, c_int, c_uint, c_void};
use std::ptr;

/// How a device is at the moment. What the library does not tell is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Milliwatts that it may take, and those that it may take by itself.
    pub power_limit: Option<u32>,
    pub usual_power_limit: Option<u32>,
    /// MHz of its multiprocessors, and the most that they can have.
    pub clock: Option<u32>,
    pub most_clock: Option<u32>,
    /// Why the clock is not higher, a bit a reason (`nvmlClocksEventReason…`).
    pub reasons: Option<u64>,
    /// Processes that compute on it.
    pub processes: Option<u32>,
}

const SUCCESS: c_int = 0;
const INSUFFICIENT_SIZE: c_int = 7;
/// `NVML_CLOCK_SM`.
const CLOCK_SM: c_uint = 1;

/// Its functions return a code, and are named here with the arguments that they have in `nvml.h`.
type Device = *mut c_void;

/// The condition of the device at a PCI address such as `0000:18:00.0`.
///
/// # Errors
/// [`Error::Device`] where there is no such library, or no such device.
pub fn condition(address: &str) -> Result<Condition> {
    condition_by("libnvidia-ml.so.1".as_ref(), address)
}

/// As [`condition`], by the library of this name.
fn condition_by(name: &OsStr, address: &str) -> Result<Condition> {
    let missing = |what: &str| Error::Device(format!("{}: {what}", name.display()));
    // SAFETY: loading it runs its initialisers, as for any program that is linked with it.
    let library = unsafe { Library::new(name) }.map_err(|_| missing("it could not be loaded"))?;
    let library = Nvml(library);
    // SAFETY: these are the functions' signatures, here and below.
    let init = unsafe { library.call::<unsafe extern "C" fn() -> c_int>("nvmlInit_v2", |init| init()) };
    init.ok_or_else(|| missing("it could not be started"))?;
    let address = CString::new(address).map_err(|_| missing("no such address"))?;
    let mut device: Device = ptr::null_mut();
    let by_address = "nvmlDeviceGetHandleByPciBusId_v2";
    // SAFETY: reads a text that ends with 0 and writes a handle.
    let found = unsafe {
        library.call::<unsafe extern "C" fn(*const c_char, *mut Device) -> c_int>(by_address, |get| {
            get(address.as_ptr(), &mut device)
        })
    };
    found.ok_or_else(|| missing("it does not know the device"))?;
    Ok(Condition {
        power_limit: library.number(device, "nvmlDeviceGetPowerManagementLimit"),
        usual_power_limit: library.number(device, "nvmlDeviceGetPowerManagementDefaultLimit"),
        clock: library.clock(device, "nvmlDeviceGetClockInfo"),
        most_clock: library.clock(device, "nvmlDeviceGetMaxClockInfo"),
        reasons: library.reasons(device),
        processes: library.processes(device),
    })
}

/// The library, which was started.
struct Nvml(Library);

impl Nvml {
    /// Calls a function, if the library has it; `None` where its answer is no success.
    ///
    /// # Safety
    /// `F` is the function's signature, and the call keeps to what it demands.
    unsafe fn call<F: Copy>(&self, name: &str, call: impl FnOnce(F) -> c_int) -> Option<()> {
        // SAFETY: the caller's.
        let function = unsafe { self.0.get::<F>(name) }.ok()?;
        (call(*function) == SUCCESS).then_some(())
    }

    fn number(&self, device: Device, name: &str) -> Option<u32> {
        let mut value: c_uint = 0;
        // SAFETY: the device is the library's, and one number is written.
        unsafe {
            self.call::<unsafe extern "C" fn(Device, *mut c_uint) -> c_int>(name, |get| {
                get(device, &mut value)
            })?;
        }
        Some(value)
    }

    fn clock(&self, device: Device, name: &str) -> Option<u32> {
        let mut value: c_uint = 0;
        // SAFETY: as for `number`; the second argument is one of the library's kinds of clocks.
        unsafe {
            self.call::<unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> c_int>(name, |get| {
                get(device, CLOCK_SM, &mut value)
            })?;
        }
        Some(value)
    }

    fn reasons(&self, device: Device) -> Option<u64> {
        let mut value = 0_u64;
        // The older name, which newer drivers have too.
        let name = "nvmlDeviceGetCurrentClocksThrottleReasons";
        // SAFETY: as for `number`.
        unsafe {
            self.call::<unsafe extern "C" fn(Device, *mut u64) -> c_int>(name, |get| {
                get(device, &mut value)
            })?;
        }
        Some(value)
    }

    /// Asks for none of them: their number is told all the same.
    fn processes(&self, device: Device) -> Option<u32> {
        let mut count: c_uint = 0;
        let name = "nvmlDeviceGetComputeRunningProcesses_v3";
        let mut code = SUCCESS;
        // SAFETY: as for `number`; with room for no process none is written.
        unsafe {
            self.call::<unsafe extern "C" fn(Device, *mut c_uint, *mut c_void) -> c_int>(name, |get| {
                code = get(device, &mut count, ptr::null_mut());
                if code == INSUFFICIENT_SIZE { SUCCESS } else { code }
            })?;
        }
        Some(count)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // What is wrong with its end changes nothing.
        // SAFETY: the function's signature.
        let _ =
            unsafe { self.call::<unsafe extern "C" fn() -> c_int>("nvmlShutdown", |shutdown| shutdown()) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {

    use super::*;
    use std::process::Command;

    /// A library with some of the functions, for one device: two processes compute on it, and its usual power is not told.
    const LIBRARY: &str = r#"
        use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
        #[unsafe(no_mangle)] extern "C" fn nvmlInit_v2() -> c_int { 0 }
        #[unsafe(no_mangle)] extern "C" fn nvmlShutdown() -> c_int { 0 }
        #[unsafe(no_mangle)] unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(address: *const c_char, device: *mut usize) -> c_int {
            unsafe { *device = 7 };
            if unsafe { CStr::from_ptr(address) } == c"0000:18:00.0" { 0 } else { 6 }
        }
        #[unsafe(no_mangle)] unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(device: usize, limit: *mut c_uint) -> c_int {
            unsafe { *limit = 350_000 };
            if device == 7 { 0 } else { 2 }
        }
        #[unsafe(no_mangle)] extern "C" fn nvmlDeviceGetPowerManagementDefaultLimit(_: usize, _: *mut c_uint) -> c_int { 3 }
        #[unsafe(no_mangle)] unsafe extern "C" fn nvmlDeviceGetClockInfo(_: usize, kind: c_uint, clock: *mut c_uint) -> c_int {
            unsafe { *clock = 345 + kind };
            0
        }
        #[unsafe(no_mangle)] unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(_: usize, reasons: *mut u64) -> c_int {
            unsafe { *reasons = 0x24 };
            0
        }
        #[unsafe(no_mangle)] unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(_: usize, count: *mut c_uint, _: *mut c_void) -> c_int {
            let room = unsafe { *count };
            unsafe { *count = 2 };
            if room == 0 { 7 } else { 0 }
        }
    "#;

    #[test]
    fn what_the_library_does_not_tell_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let [source, library] = ["nvml.rs", "libnvml.so"].map(|name| folder.path().join(name));
        std::fs::write(&source, LIBRARY).unwrap();
        let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        compiler.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(&source);
        assert!(compiler.status().unwrap().success());
        let found = condition_by(library.as_os_str(), "0000:18:00.0").unwrap();
        let expected = Condition {
            power_limit: Some(350_000),
            usual_power_limit: None,
            clock: Some(346),
            most_clock: None,
            reasons: Some(0x24),
            processes: Some(2),
        };
        assert_eq!(found, expected);
        let message =
            |library: &OsStr, address: &str| condition_by(library, address).unwrap_err().to_string();
        assert!(message(library.as_os_str(), "0000:19:00.0").contains("does not know the device"));
        assert!(message("libabsent.so".as_ref(), "0000:18:00.0").contains("could not be loaded"));
        assert!(message(library.as_os_str(), "a\0b").contains("no such address"));
    }
}
