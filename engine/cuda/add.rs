//! The residual addition.

use super::device::Device;
use super::launch::{Launch, always, launch, stride};
use super::tensor::Tensor;
use super::variant::{KernelChoice, Variant, select};
use crate::error::Result;
use cuda_std::launch::Kernels;
use gpu_kernels::add::{AddArgs, BLOCK_SIZE, plain, vec4};

pub(super) const OP: &str = "add";

/// `count` values at both addresses, which do not overlap.
pub(super) type Case = AddArgs;

/// # Safety
/// The case is one for the kernel, which takes `values` at a time.
unsafe fn launch_groups(
    device: &Device,
    kernels: &Kernels<AddArgs>,
    case: &Case,
    values: usize,
) -> Result<()> {
    let config = stride(device, case.count as usize / values, BLOCK_SIZE);
    // SAFETY: any grid does; the caller vouches for the case. Buffers are aligned to 256 bytes.
    unsafe { launch(device, kernels, &[], &config, *case) }
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
        launch: |device, case| unsafe { launch_groups(device, &vec4, case, 4) },
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: |device, case| unsafe { launch_groups(device, &plain, case, 1) },
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
    let case = AddArgs { count: (n * cols) as u64, delta: delta.ptr(), x: x.ptr_mut() };
    if case.count == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: both tensors have `n` rows of `cols` values; a `&mut` and a `&` are not the same tensor.
    unsafe { (variant.launch)(device, &case) }
}
