//! A launch with a pointer to another type, a read-only pointer to write to, and a number of another type.
use cuda_std::prelude::*;

#[kernel]
pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}

fn launch<L: Launcher>(
    launcher: &L,
    config: &LaunchConfig,
    x: DevicePtr<f32>,
    halves: DevicePtr<f16>,
    out: DevicePtrMut<f32>,
) {
    let _ = unsafe { scale(launcher, config, 1, halves, out) };
    let _ = unsafe { scale(launcher, config, 1, x, x) };
    let _ = unsafe { scale(launcher, config, 1.0, x, out) };
    let _ = unsafe { scale(launcher, config, 1, x) };
}

fn main() {}
