//! `use cuda_std::prelude::*;`: what a kernel crate starts with, on both targets.

pub use half::{bf16, f16};

pub use crate::launch::{DevicePtr, DevicePtrMut, LaunchConfig, Launcher};
pub use crate::{Bits, Element, PackedElement, device, kernel, shared_array};
#[cfg(target_arch = "nvptx64")]
pub use crate::{
    float::{GpuFloat, GpuFloatIntrinsics},
    shared,
    shared::Shared,
    shared::dynamic_shared,
    thread, warp,
};
