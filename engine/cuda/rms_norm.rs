//! Root mean square normalisation.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::Kernels;
use gpu_kernels::rms_norm::*;

pub(super) const OP: &str = "rms_norm";

/// What the kernels take for `rows` rows, out of `dtype`; nothing overlaps.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    arguments: RmsNormArgs,
}

/// What reads four values at once may read: the sum's order depends on `hidden_size` alone, never on the batch.
fn groups_of_4(case: &Case) -> Result<(), &'static str> {
    if case.arguments.hidden_size.is_multiple_of(4) {
        Ok(())
    } else {
        Err("hidden_size is not a multiple of 4")
    }
}

/// What keeps a row in registers may read.
fn fits_in_registers(case: &Case) -> Result<(), &'static str> {
    groups_of_4(case)?;
    if case.arguments.hidden_size <= MAX_HIDDEN_SIZE { Ok(()) } else { Err("hidden_size is over 4096") }
}

/// # Safety
/// The case is one for the kernel.
unsafe fn launch_rows(device: &Device, case: &Case, kernels: &Kernels<RmsNormArgs>) -> Result<()> {
    let config = block_per_row(case.rows, BLOCK_SIZE);
    // SAFETY: a block for each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

variants! { Case, Launch<Case>;
    "registers" [registers]: fits_in_registers => |device, case| unsafe { launch_rows(device, case, registers()) };
    "vec4" [vec4]: groups_of_4 => |device, case| unsafe { launch_rows(device, case, vec4()) };
    "plain" [plain]: always => |device, case| unsafe { launch_rows(device, case, plain()) };
}

/// Checks the shapes.
fn case(n: usize, x: &Tensor, weight: &DeviceBuffer<f32>, eps: f32, out: &mut Activation) -> Result<Case> {
    let dtype = out.dtype;
    x.expect(OP, "x", n, x.cols)?;
    expect_vector(OP, "weight", weight, x.cols)?;
    out.expect(OP, "out", dtype, n, x.cols)?;
    let (rows, hidden_size) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    let (x, weight, out) = (x.ptr(), weight.ptr(), out.ptr_mut());
    Ok(Case { dtype, rows, arguments: RmsNormArgs { hidden_size, x, weight, eps, out } })
}

/// `out = x / sqrt(mean(x²) + eps) * weight`: `[n, hidden_size]`.
pub(super) fn rms_norm(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    weight: &DeviceBuffer<f32>,
    eps: f32,
    out: &mut Activation,
) -> Result<()> {
    let case = case(n, x, weight, eps, out)?;
    if case.rows == 0 || case.arguments.hidden_size == 0 {
        return Ok(());
    }
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_std::launch::{DevicePtr, DevicePtrMut};

    fn case(hidden_size: u32) -> Case {
        let (x, out) = (DevicePtr::from_raw(0), DevicePtrMut::from_raw(0));
        let arguments = RmsNormArgs { hidden_size, x, weight: x, eps: 1e-6, out };
        Case { dtype: Dtype::Bf16, rows: 1, arguments }
    }

    #[test]
    fn the_choice_depends_on_hidden_size_alone() {
        assert_eq!(select(OP, VARIANTS, &case(896), None).unwrap().name, "registers");
        assert_eq!(select(OP, VARIANTS, &case(8192), None).unwrap().name, "vec4");
        assert_eq!(select(OP, VARIANTS, &case(111), None).unwrap().name, "plain");
        assert!(select(OP, VARIANTS, &case(111), Some("vec4")).is_err());
    }

    #[test]
    fn registers_hold_rows_of_a_bounded_length() {
        for (hidden_size, fits) in
            [(896, true), (MAX_HIDDEN_SIZE, true), (MAX_HIDDEN_SIZE + 4, false), (897, false)]
        {
            assert_eq!(select(OP, VARIANTS, &case(hidden_size), Some("registers")).is_ok(), fits);
        }
    }
}
