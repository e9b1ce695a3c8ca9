//! The first half of the MLP.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector};
use super::super::memory::DeviceBuffer;
use super::super::precise_dtype;
use super::super::tensor::{Activation, Tensor, Weight};
use super::super::variant::{KernelChoice, Variant, select};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, norm_fits, persistent};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::fused::mma::MAX_NORM_WARPS;
use gpu_kernels::fused::mma::norm_gate_up::{self as mma, *};
use gpu_kernels::fused::norm_gate_up::{self as lanes, *};
use gpu_kernels::fused::{MAX_ROWS as FEW, stage_bytes};

pub(super) const OP: &str = "norm_gate_up";

/// Arrays as the kernels describe them, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    n: u32,
    hidden_size: u32,
    intermediate_size: u32,
    x: DevicePtr<f32>,
    norm: DevicePtr<f32>,
    eps: f32,
    gate: DevicePtr<u8>,
    up: DevicePtr<u8>,
    out: DevicePtrMut<u8>,
}

/// Calls `$kernel` with the case's arguments and, before the arrays, the `$depth` of those that stream.
macro_rules! call {
    ($kernel:path, $device:expr, $config:expr, $case:expr $(, $depth:expr)?) => {
        $kernel(
            &Dependent($device),
            $config,
            $case.n,
            $case.hidden_size,
            $case.intermediate_size,
            $($depth,)?
            $case.x,
            $case.norm,
            $case.eps,
            $case.gate.cast(),
            $case.up.cast(),
            $case.out.cast(),
        )
    };
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: MMA,
        kernels: &["norm_gate_up_*_mma_one", "norm_gate_up_*_mma_few", "norm_gate_up_*_mma_eight"],
        eligible: |case| f16_only(case.dtype).and_then(|()| norm_fits(case.n, case.hidden_size)),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let tiles = case.intermediate_size.div_ceil(mma::COLUMNS_PER_TILE);
            let shape = StreamShape::new(device, tiles, case.hidden_size, MAX_NORM_WARPS);
            let (config, depth) = shape.normed(case.n);
            match case.n {
                1 => call!(norm_gate_up_f16_mma_one, device, &config, case, depth),
                2..=FEW => call!(norm_gate_up_f16_mma_few, device, &config, case, depth),
                _ => call!(norm_gate_up_f16_mma_eight, device, &config, case, depth),
            }
        },
    },
    Variant {
        name: "lanes",
        kernels: &["norm_gate_up_*_one", "norm_gate_up_*_few"],
        eligible: |case| lanes_fit(case.n, case.hidden_size),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let blocks = case.intermediate_size.div_ceil(lanes::COLUMNS_PER_BLOCK);
            let shared_bytes = stage_bytes(case.n, case.hidden_size);
            let config = persistent(device, blocks, 2, lanes::BLOCK_SIZE, shared_bytes);
            match (case.n, case.dtype) {
                (1, Dtype::F16) => call!(norm_gate_up_f16_one, device, &config, case),
                (1, _) => call!(norm_gate_up_bf16_one, device, &config, case),
                (_, Dtype::F16) => call!(norm_gate_up_f16_few, device, &config, case),
                _ => call!(norm_gate_up_bf16_few, device, &config, case),
            }
        },
    },
];

/// `y = rms_norm(x); out = silu(y · gateᵀ) * (y · upᵀ)`: `[n, intermediate_size]`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_gate_up(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &DeviceBuffer<f32>,
    eps: f32,
    gate: &Weight,
    up: &Weight,
    out: &mut Activation,
) -> Result<()> {
    let &Activation { dtype, rows, cols, .. } = &gate.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", norm, cols)?;
    up.0.expect(OP, "up", dtype, rows, cols)?;
    out.expect(OP, "out", precise_dtype(dtype), n, rows)?;
    let case = Case {
        dtype,
        n: dimension(OP, n)?,
        hidden_size: dimension(OP, cols)?,
        intermediate_size: dimension(OP, rows)?,
        x: x.ptr(),
        norm: norm.ptr(),
        eps,
        gate: gate.0.ptr(),
        up: up.0.ptr(),
        out: out.ptr_mut(),
    };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
