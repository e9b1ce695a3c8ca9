//! The residual addition.

use super::device::Device;
use super::launch::{Launch, always, stride};
use super::tensor::Tensor;
use super::variant::{KernelChoice, Variant, select};
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::add::{BLOCK_SIZE, add_f32_plain, add_f32_vec4};

pub(super) const OP: &str = "add";

/// `count` values at both addresses, which do not overlap.
pub(super) struct Case {
    count: usize,
    delta: DevicePtr<f32>,
    x: DevicePtrMut<f32>,
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: "vec4",
        kernels: &[],
        eligible: |case| {
            if case.count.is_multiple_of(4) {
                Ok(())
            } else {
                Err("the number of values is not a multiple of 4")
            }
        },
        // SAFETY: buffers are aligned to 256 bytes; any grid does.
        launch: |device, case| unsafe {
            let config = stride(device, case.count / 4, BLOCK_SIZE);
            add_f32_vec4(device, &config, case.count as u64, case.delta, case.x)
        },
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        // SAFETY: any grid does.
        launch: |device, case| unsafe {
            let config = stride(device, case.count, BLOCK_SIZE);
            add_f32_plain(device, &config, case.count as u64, case.delta, case.x)
        },
    },
];

/// `x += delta`: `[n, cols]`.
pub(super) fn add(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &mut Tensor,
    delta: &Tensor,
) -> Result<()> {
    let cols = x.cols;
    x.expect(OP, "x", n, cols)?;
    delta.expect(OP, "delta", n, cols)?;
    let case = Case { count: n * cols, delta: delta.ptr(), x: x.ptr_mut() };
    if case.count == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: both tensors have `n` rows of `cols` values; a `&mut` and a `&` are not the same tensor.
    unsafe { (variant.launch)(device, &case) }
}
