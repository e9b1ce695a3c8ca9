//! The head.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector};
use super::super::memory::DeviceBuffer;
use super::super::tensor::{Activation, Tensor, Weight};
use super::super::variant::{KernelChoice, Variant, select};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, norm_fits, persistent};
use crate::dtype::Dtype;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::fused::mma::norm_matmul::{self as mma, *};
use gpu_kernels::fused::mma::{self as kernels, MAX_NORM_WARPS};
use gpu_kernels::fused::norm_matmul::{self as lanes, *};
use gpu_kernels::fused::stage_bytes;

pub(super) const OP: &str = "norm_matmul";

/// Arrays as the kernels describe them, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    n: u32,
    rows: u32,
    cols: u32,
    x: DevicePtr<f32>,
    norm: DevicePtr<f32>,
    eps: f32,
    weight: DevicePtr<u8>,
    out: DevicePtrMut<f32>,
}

/// Calls `$kernel` with the case's arguments and, before the arrays, the `$depth` of those that stream.
macro_rules! call {
    ($kernel:path, $device:expr, $config:expr, $case:expr $(, $depth:expr)?) => {
        $kernel(
            &Dependent($device),
            $config,
            $case.n,
            $case.rows,
            $case.cols,
            $($depth,)?
            $case.x,
            $case.norm,
            $case.eps,
            $case.weight.cast(),
            $case.out,
        )
    };
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: "lanes",
        kernels: &["norm_matmul_*_one", "norm_matmul_*_few"],
        eligible: |case| lanes_fit(case.n, case.cols),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let blocks = case.rows.div_ceil(lanes::COLUMNS_PER_BLOCK);
            let shared_bytes = stage_bytes(case.n, case.cols);
            let config = persistent(device, blocks, 2, lanes::BLOCK_SIZE, shared_bytes);
            match (case.n, case.dtype) {
                (1, Dtype::F16) => call!(norm_matmul_f16_one, device, &config, case),
                (1, _) => call!(norm_matmul_bf16_one, device, &config, case),
                (_, Dtype::F16) => call!(norm_matmul_f16_few, device, &config, case),
                _ => call!(norm_matmul_bf16_few, device, &config, case),
            }
        },
    },
    Variant {
        name: MMA,
        kernels: &["norm_matmul_*_mma_eight"],
        eligible: |case| f16_only(case.dtype).and_then(|()| norm_fits(kernels::MAX_ROWS, case.cols)),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let tiles = case.rows.div_ceil(mma::COLUMNS_PER_TILE);
            let shape = StreamShape::new(device, tiles, case.cols, MAX_NORM_WARPS);
            let (config, depth) = shape.normed(kernels::MAX_ROWS);
            call!(norm_matmul_f16_mma_eight, device, &config, case, depth)
        },
    },
];

/// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_matmul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &DeviceBuffer<f32>,
    eps: f32,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let &Activation { dtype, rows, cols, .. } = &weight.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", norm, cols)?;
    out.expect(OP, "out", n, rows)?;
    let case = Case {
        dtype,
        n: dimension(OP, n)?,
        rows: dimension(OP, rows)?,
        cols: dimension(OP, cols)?,
        x: x.ptr(),
        norm: norm.ptr(),
        eps,
        weight: weight.0.ptr(),
        out: out.ptr_mut(),
    };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
