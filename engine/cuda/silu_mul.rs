//! The gated activation of the MLP.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, elements_of_rows};
use super::tensor::Activation;
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::silu_mul::{
    BLOCK_SIZE, silu_mul_bf16_f32_plain, silu_mul_bf16_f32_vec8, silu_mul_f16_f32_plain,
    silu_mul_f16_f32_vec8, silu_mul_f16_plain, silu_mul_f16_vec8, silu_mul_f32_plain, silu_mul_f32_vec8,
};

pub(super) const OP: &str = "silu_mul";

/// gate_up `[rows, 2 * intermediate_size]`, out `[rows, intermediate_size]`, in formats that there is a kernel for; they do not
/// overlap.
pub(super) struct Case {
    formats: Formats,
    rows: u32,
    intermediate_size: u32,
    gate_up: DevicePtr<u8>,
    out: DevicePtrMut<u8>,
}

/// Of out and gate_up.
#[derive(Clone, Copy)]
enum Formats {
    F32,
    F16,
    F16F32,
    Bf16F32,
}

/// Calls the kernel of the formats.
macro_rules! launch {
    ($per_thread:literal, $f32:path, $f16:path, $f16_f32:path, $bf16_f32:path) => {
        |device, case| {
            let &Case { formats, rows, intermediate_size, gate_up, out } = case;
            let config = elements_of_rows(rows, intermediate_size / $per_thread, BLOCK_SIZE);
            let device = &Dependent(device);
            // SAFETY: one row of blocks for each row; the caller and `eligible` vouch for the case.
            unsafe {
                match formats {
                    Formats::F32 => $f32(device, &config, intermediate_size, gate_up.cast(), out.cast()),
                    Formats::F16 => $f16(device, &config, intermediate_size, gate_up.cast(), out.cast()),
                    Formats::F16F32 => {
                        $f16_f32(device, &config, intermediate_size, gate_up.cast(), out.cast())
                    }
                    Formats::Bf16F32 => {
                        $bf16_f32(device, &config, intermediate_size, gate_up.cast(), out.cast())
                    }
                }
            }
        }
    };
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: "vec8",
        kernels: &[],
        eligible: |case| {
            if case.intermediate_size.is_multiple_of(8) {
                Ok(())
            } else {
                Err("intermediate_size is not a multiple of 8")
            }
        },
        launch: launch!(
            8,
            silu_mul_f32_vec8,
            silu_mul_f16_vec8,
            silu_mul_f16_f32_vec8,
            silu_mul_bf16_f32_vec8
        ),
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: launch!(
            1,
            silu_mul_f32_plain,
            silu_mul_f16_plain,
            silu_mul_f16_f32_plain,
            silu_mul_bf16_f32_plain
        ),
    },
];

/// `out = silu(gate) * up`, each row of `gate_up` being `[gate; up]`: `[n, intermediate_size]`.
pub(super) fn silu_mul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    gate_up: &Activation,
    out: &mut Activation,
) -> Result<()> {
    let formats = match (out.dtype, gate_up.dtype) {
        (Dtype::F32, Dtype::F32) => Formats::F32,
        (Dtype::F16, Dtype::F16) => Formats::F16,
        (Dtype::F16, Dtype::F32) => Formats::F16F32,
        (Dtype::Bf16, Dtype::F32) => Formats::Bf16F32,
        (to, from) => {
            return Err(Error::Request(format!("{OP}: there is no kernel from {from} to {to}")));
        }
    };
    gate_up.expect(OP, "gate_up", gate_up.dtype, n, 2 * out.cols)?;
    out.expect(OP, "out", out.dtype, n, out.cols)?;
    let (rows, intermediate_size) = (dimension(OP, n)?, dimension(OP, out.cols)?);
    let case = Case { formats, rows, intermediate_size, gate_up: gate_up.ptr(), out: out.ptr_mut() };
    if rows == 0 || intermediate_size == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: both have `n` rows, checked above; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
