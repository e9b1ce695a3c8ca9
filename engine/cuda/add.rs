//! The residual addition.

use super::device::Device;
use super::launch::{Launch, always, launch, stride};
use super::tensor::Tensor;
use super::variant::{KernelChoice, select, variants};
use crate::error::Result;
use cuda_std::launch::Kernels;
use gpu_kernels::add::*;

pub(super) const OP: &str = "add";

/// `count` values at both addresses, which do not overlap.
pub(super) type Case = AddArgs;

/// # Safety
/// The case is one for the kernel, which takes `values` at a time.
unsafe fn launch_groups(
    device: &Device,
    case: &Case,
    kernels: &Kernels<AddArgs>,
    values: usize,
) -> Result<()> {
    let config = stride(device, case.count as usize / values, BLOCK_SIZE);
    // SAFETY: any grid does; the caller vouches for the case. Buffers are aligned to 256 bytes.
    unsafe { launch(device, kernels, &[], &config, *case) }
}

variants! { Case, Launch<Case>;
    "vec4" [vec4]: groups_of_4 => |device, case| unsafe { launch_groups(device, case, vec4(), 4) };
    "plain" [plain]: always => |device, case| unsafe { launch_groups(device, case, plain(), 1) };
}

fn groups_of_4(case: &Case) -> Result<(), &'static str> {
    if case.count.is_multiple_of(4) { Ok(()) } else { Err("the number of values is not a multiple of 4") }
}

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
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: both tensors have `n` rows of `cols` values; a `&mut` and a `&` are not the same tensor.
    unsafe { (variant.launch)(device, &case) }
}
