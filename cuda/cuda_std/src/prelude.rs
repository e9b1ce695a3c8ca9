//! `use cuda_std::prelude::*;`: what a kernel crate starts with, on both targets.

pub use half::{bf16, f16};

pub use crate::launch::{DevicePtr, DevicePtrMut, LaunchConfig, Launcher};
pub use crate::{
    Bits, Element, PackedElement, device,
    float::{GpuFloat, GpuFloatIntrinsics},
    kernel, kernel_args, shared,
    shared::Shared,
    shared::dynamic_shared,
    shared_array, thread, warp,
};
