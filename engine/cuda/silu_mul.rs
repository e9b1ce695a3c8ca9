//! The gated activation of the MLP.

use super::device::Device;
use super::launch::{Launch, always, by_dtype, stride};
use super::tensor::{Activation, Tensor};
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::silu_mul::{
    BLOCK_SIZE, silu_mul_bf16_plain, silu_mul_bf16_vec4, silu_mul_f16_plain, silu_mul_f16_vec4,
    silu_mul_f32_plain, silu_mul_f32_vec4,
};

pub(super) const OP: &str = "silu_mul";

/// `count` values at all addresses, `out` of `dtype`; they do not overlap.
pub(super) struct Case {
    dtype: Dtype,
    count: usize,
    gate: DevicePtr<f32>,
    up: DevicePtr<f32>,
    out: DevicePtrMut<u8>,
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
            by_dtype!(
                case.dtype,
                silu_mul_f32_vec4,
                silu_mul_f16_vec4,
                silu_mul_bf16_vec4,
                (device, &config, case.count as u64, case.gate, case.up, case.out.cast())
            )
        },
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        // SAFETY: any grid does.
        launch: |device, case| unsafe {
            let config = stride(device, case.count, BLOCK_SIZE);
            by_dtype!(
                case.dtype,
                silu_mul_f32_plain,
                silu_mul_f16_plain,
                silu_mul_bf16_plain,
                (device, &config, case.count as u64, case.gate, case.up, case.out.cast())
            )
        },
    },
];

/// `out = silu(gate) * up`: `[n, intermediate_size]`.
pub(super) fn silu_mul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    gate: &Tensor,
    up: &Tensor,
    out: &mut Activation,
) -> Result<()> {
    let (dtype, cols) = (out.dtype, gate.cols);
    gate.expect(OP, "gate", n, cols)?;
    up.expect(OP, "up", n, cols)?;
    out.expect(OP, "out", dtype, n, cols)?;
    let case = Case { dtype, count: n * cols, gate: gate.ptr(), up: up.ptr(), out: out.ptr_mut() };
    if case.count == 0 {
        return Ok(());
    }
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: all three have `n` rows of `cols` values, checked above; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
