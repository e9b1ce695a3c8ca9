//! Lets `cust` link and the program start where there is no NVIDIA driver.
//!
//! `cust` calls the driver's functions (`cuInit`, `cuMemAlloc_v2`, …) as external symbols, which the linker would take
//! from `libcuda.so`: then a machine without a driver can neither link nor start the program. This crate defines those
//! symbols itself. Each is a jump to the driver's function of that name, looked up in `libcuda.so.1` when it is first
//! called; without a driver it answers `CUDA_ERROR_NO_DEVICE`, and with a driver that is too old to have the function,
//! `CUDA_ERROR_NOT_FOUND`.
//!
//! A program uses it by naming it once (`extern crate cuda_driver as _;` or any use of [`status`]); the published
//! `find_cuda_helper`, which would ask the linker for `-lcuda`, is replaced by this repository's through
//! `[patch.crates-io]`.
//!
//! Linux on x86-64 and aarch64. Elsewhere every function answers that there is no device.

mod fallback;
mod functions;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod trampoline;

/// `CUDA_ERROR_NO_DEVICE` of the driver API.
const NO_DEVICE: u32 = 100;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use trampoline::status;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod absent {
    macro_rules! define {
        ($($name:ident)*) => {
            // The caller cleans the stack up, so a function without parameters serves for every signature.
            $(
                #[unsafe(no_mangle)]
                extern "C" fn $name() -> u32 {
                    crate::NO_DEVICE
                }
            )*
        };
    }
    crate::functions::for_each_function!(define);

    /// Whether the driver's library was found; the error says where it was looked for.
    pub fn status() -> Result<&'static str, &'static str> {
        Err("no NVIDIA driver is looked for on this platform: only on Linux, on x86-64 and aarch64")
    }
}
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub use absent::status;
