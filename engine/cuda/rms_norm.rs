//! Root mean square normalisation, alone and fused with the residual addition before it.

use super::add_bias::expect_vector;
use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row, by_dtype, dimension};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::add_rms_norm::{
    self as fused, add_rms_norm_bf16_plain, add_rms_norm_bf16_registers, add_rms_norm_bf16_vec4,
    add_rms_norm_f16_plain, add_rms_norm_f16_registers, add_rms_norm_f16_vec4, add_rms_norm_f32_plain,
    add_rms_norm_f32_registers, add_rms_norm_f32_vec4,
};
use gpu_kernels::rms_norm::registers::*;
use gpu_kernels::rms_norm::{self as alone, *};

pub(super) const OP: &str = "rms_norm";
pub(super) const FUSED: &str = "add_rms_norm";

// One eligibility stands for both operations.
const _: () = assert!(MAX_HIDDEN_SIZE == fused::MAX_HIDDEN_SIZE);

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

/// A [`Case`] whose x is written too, and delta `[rows, hidden_size]`.
pub(super) struct FusedCase {
    delta: DevicePtr<f32>,
    x: DevicePtrMut<f32>,
    norm: Case,
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

macro_rules! launch_alone {
    ($f32:path, $f16:path, $bf16:path) => {
        |device, case| {
            let config = block_per_row(case.rows, alone::BLOCK_SIZE);
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

macro_rules! launch_fused {
    ($f32:path, $f16:path, $bf16:path) => {
        |device, case| {
            let config = block_per_row(case.norm.rows, fused::BLOCK_SIZE);
            let &FusedCase { delta, x, norm: Case { hidden_size, weight, eps, out, .. } } = case;
            let device = &Dependent(device);
            // SAFETY: a block for each row; the caller and `eligible` vouch for the case.
            unsafe {
                by_dtype!(
                    case.norm.dtype,
                    $f32,
                    $f16,
                    $bf16,
                    (device, &config, hidden_size, delta, weight, eps, x, out.cast())
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
        launch: launch_alone!(rms_norm_f32_registers, rms_norm_f16_registers, rms_norm_bf16_registers),
    },
    Variant {
        name: "vec4",
        kernels: &[],
        eligible: groups_of_4,
        launch: launch_alone!(rms_norm_f32_vec4, rms_norm_f16_vec4, rms_norm_bf16_vec4),
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: launch_alone!(rms_norm_f32_plain, rms_norm_f16_plain, rms_norm_bf16_plain),
    },
];

pub(super) const FUSED_VARIANTS: [Variant<FusedCase, Launch<FusedCase>>; 3] = [
    Variant {
        name: "registers",
        kernels: &[],
        eligible: |case| fits_in_registers(&case.norm),
        launch: launch_fused!(
            add_rms_norm_f32_registers,
            add_rms_norm_f16_registers,
            add_rms_norm_bf16_registers
        ),
    },
    Variant {
        name: "vec4",
        kernels: &[],
        eligible: |case| groups_of_4(&case.norm),
        launch: launch_fused!(add_rms_norm_f32_vec4, add_rms_norm_f16_vec4, add_rms_norm_bf16_vec4),
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: launch_fused!(add_rms_norm_f32_plain, add_rms_norm_f16_plain, add_rms_norm_bf16_plain),
    },
];

/// Checks the shapes.
fn case(
    op: &str,
    n: usize,
    x: &Tensor,
    weight: &DeviceBuffer<f32>,
    eps: f32,
    out: &mut Activation,
) -> Result<Case> {
    let dtype = out.dtype;
    x.expect(op, "x", n, x.cols)?;
    expect_vector(op, "weight", weight, x.cols)?;
    out.expect(op, "out", dtype, n, x.cols)?;
    let (rows, hidden_size) = (dimension(op, n)?, dimension(op, x.cols)?);
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
    let case = case(OP, n, x, weight, eps, out)?;
    if case.rows == 0 || case.hidden_size == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}

/// The operands of [`add_rms_norm`].
pub(super) struct AddRmsNorm<'a> {
    pub x: &'a mut Tensor,
    pub delta: &'a Tensor,
    pub weight: &'a DeviceBuffer<f32>,
    pub eps: f32,
    pub out: &'a mut Activation,
}

/// `x += delta; out = rms_norm(x)`: `[n, hidden_size]`.
pub(super) fn add_rms_norm(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    operands: AddRmsNorm,
) -> Result<()> {
    let AddRmsNorm { x, delta, weight, eps, out } = operands;
    let norm = case(FUSED, n, x, weight, eps, out)?;
    delta.expect(FUSED, "delta", n, x.cols)?;
    if norm.rows == 0 || norm.hidden_size == 0 {
        return Ok(());
    }
    let case = FusedCase { delta: delta.ptr(), x: x.ptr_mut(), norm };
    let variant = select(FUSED, &FUSED_VARIANTS, &case, choice.get(FUSED))?;
    // SAFETY: the shapes were checked; x and out are borrowed alone.
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
