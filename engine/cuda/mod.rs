//! [`Ops`](crate::ops::Ops) on an NVIDIA GPU: Rust kernels, and cuBLAS for the large matrix products.

mod cublas;
mod device;
mod driver;
mod memory;
mod variant;

pub use cublas::{Cublas, WORKSPACE_BYTES};
pub use device::{Device, DeviceInfo, probe};
pub use memory::{DeviceBuffer, PinnedBuffer, Plain, Uploader};
pub use variant::{KernelChoice, Variant, is_ineligible};

/// Every operation that has kernels to choose from, with the names of its variants in order of preference.
pub fn kernels() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![]
}
