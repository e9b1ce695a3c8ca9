//! Root mean square normalisation.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row, by_dtype, dimension, expect_vector};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::rms_norm::registers::*;
use gpu_kernels::rms_norm::*;

pub(super) const OP: &str = "rms_norm";

/// x and out `[rows, hidden_size]`, out of `dtype`; weight `[hidden_size]`; nothing overlaps.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    hidden_size: u32,
    x: DevicePtr<f32>,
    weight: DevicePtr<f32>,
    eps: f32,
    out: DevicePtrMut<u8>,
}

/// What reads four values at once may read: the sum's order depends on `hidden_size` alone, never on the batch.
fn groups_of_4(case: &Case) -> Result<(), &'static str> {
    if case.hidden_size.is_multiple_of(4) { Ok(()) } else { Err("hidden_size is not a multiple of 4") }
}

/// What keeps a row in registers may read.
fn fits_in_registers(case: &Case) -> Result<(), &'static str> {
    groups_of_4(case)?;
    if case.hidden_size <= MAX_HIDDEN_SIZE { Ok(()) } else { Err("hidden_size is over 4096") }
}

macro_rules! launch {
    ($f32:path, $f16:path, $bf16:path) => {
        |device, case| {
            let config = block_per_row(case.rows, BLOCK_SIZE);
            let &Case { hidden_size, x, weight, eps, out, .. } = case;
            let device = &Dependent(device);
            // SAFETY: a block for each row; the caller and `eligible` vouch for the case.
            unsafe {
                by_dtype!(
                    case.dtype,
                    $f32,
                    $f16,
                    $bf16,
                    (device, &config, hidden_size, x, weight, eps, out.cast())
                )
            }
        }
    };
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 3] = [
    Variant {
        name: "registers",
        kernels: &[],
        eligible: fits_in_registers,
        launch: launch!(rms_norm_f32_registers, rms_norm_f16_registers, rms_norm_bf16_registers),
    },
    Variant {
        name: "vec4",
        kernels: &[],
        eligible: groups_of_4,
        launch: launch!(rms_norm_f32_vec4, rms_norm_f16_vec4, rms_norm_bf16_vec4),
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: launch!(rms_norm_f32_plain, rms_norm_f16_plain, rms_norm_bf16_plain),
    },
];

/// Checks the shapes.
fn case(n: usize, x: &Tensor, weight: &DeviceBuffer<f32>, eps: f32, out: &mut Activation) -> Result<Case> {
    let dtype = out.dtype;
    x.expect(OP, "x", n, x.cols)?;
    expect_vector(OP, "weight", weight, x.cols)?;
    out.expect(OP, "out", dtype, n, x.cols)?;
    let (rows, hidden_size) = (dimension(OP, n)?, dimension(OP, x.cols)?);
    Ok(Case { dtype, rows, hidden_size, x: x.ptr(), weight: weight.ptr(), eps, out: out.ptr_mut() })
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
    if case.rows == 0 || case.hidden_size == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(hidden_size: u32) -> Case {
        Case {
            dtype: Dtype::Bf16,
            rows: 1,
            hidden_size,
            x: DevicePtr::from_raw(0),
            weight: DevicePtr::from_raw(0),
            eps: 1e-6,
            out: DevicePtrMut::from_raw(0),
        }
    }

    #[test]
    fn the_choice_depends_on_hidden_size_alone() {
        assert_eq!(select(OP, &VARIANTS, &case(896), None).unwrap().name, "registers");
        assert_eq!(select(OP, &VARIANTS, &case(8192), None).unwrap().name, "vec4");
        assert_eq!(select(OP, &VARIANTS, &case(111), None).unwrap().name, "plain");
        assert!(select(OP, &VARIANTS, &case(111), Some("vec4")).is_err());
    }

    #[test]
    fn registers_hold_rows_of_a_bounded_length() {
        for (hidden_size, fits) in
            [(896, true), (MAX_HIDDEN_SIZE, true), (MAX_HIDDEN_SIZE + 4, false), (897, false)]
        {
            assert_eq!(select(OP, &VARIANTS, &case(hidden_size), Some("registers")).is_ok(), fits);
        }
    }
}
