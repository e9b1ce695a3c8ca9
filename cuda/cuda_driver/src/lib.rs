//! Lets `cust` link and the program start where there is no NVIDIA driver, and keeps it sound where the driver is newer.
//!
//! `cust` calls the driver's functions (`cuInit`, `cuMemAlloc_v2`, …) as external symbols, which the linker would take
//! from `libcuda.so`: then a machine without a driver can neither link nor start the program. This crate defines those
//! symbols itself. Each calls the driver's function of that name, looked up in `libcuda.so.1` when it is first called;
//! without a driver it answers `CUDA_ERROR_NO_DEVICE`, and with a driver that is too old to have the function,
//! `CUDA_ERROR_NOT_FOUND`.
//!
//! The bindings of `cust` have the result as a Rust enum, made for CUDA 11.4. A code that it does not have is handed over
//! as `CUDA_ERROR_UNKNOWN`; [`last_error`] says what it was and [`describe`] what it means. Other enums that
//! come back from the driver are caches' and banks' preferences, of which there are no new ones, and the format of an
//! array, which `cust` chose itself.
//!
//! A program uses it by naming it once (`extern crate cuda_driver as _;` or any use of [`status`]); the published
//! `find_cuda_helper`, which would ask the linker for `-lcuda`, is replaced by this repository's through
//! `[patch.crates-io]`.
//!
//! The driver is looked for on Linux. Elsewhere every function answers that there is no device.

mod driver;
mod functions;

pub use driver::{describe, last_error, status};
