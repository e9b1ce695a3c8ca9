//! Projections back to the residual stream.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension};
use super::super::tensor::{Activation, Tensor, Weight};
use super::super::variant::{KernelChoice, Variant, select};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, persistent, rows_of_kernel};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::fused::matmul_add::*;
use gpu_kernels::fused::mma::matmul_add::{self as mma, *};
use gpu_kernels::fused::mma::{MAX_MATMUL_WARPS, batch, matmul_shared_bytes};
use gpu_kernels::fused::{MAX_ROWS as FEW, WORD, stage_bytes};

pub(super) const OP: &str = "matmul_add";

/// Arrays as the kernels describe them, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights of `dtype`, x of it or, where that
/// is bf16, f32.
pub(super) struct Case {
    dtype: Dtype,
    x_dtype: Dtype,
    n: u32,
    rows: u32,
    cols: u32,
    x: DevicePtr<u8>,
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
            $case.x.cast(),
            $case.weight.cast(),
            $case.out,
        )
    };
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: MMA,
        kernels: &["matmul_add_*_mma_one", "matmul_add_*_mma_few", "matmul_add_*_mma_eight"],
        eligible: |case| f16_only(case.dtype),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let tiles = case.rows.div_ceil(mma::COLUMNS_PER_TILE);
            let half = case.cols.div_ceil(2).next_multiple_of(WORD);
            let shape = StreamShape::new(device, tiles, half, MAX_MATMUL_WARPS);
            let batch = batch(tiles, shape.blocks);
            let (config, depth) =
                shape.config(matmul_shared_bytes(shape.warps, rows_of_kernel(case.n), batch));
            match case.n {
                1 => call!(matmul_add_f16_mma_one, device, &config, case, depth),
                2..=FEW => call!(matmul_add_f16_mma_few, device, &config, case, depth),
                _ => call!(matmul_add_f16_mma_eight, device, &config, case, depth),
            }
        },
    },
    Variant {
        name: "lanes",
        kernels: &[
            "matmul_add_*_short_one",
            "matmul_add_*_long_one",
            "matmul_add_*_short_few",
            "matmul_add_*_long_few",
        ],
        eligible: |case| lanes_fit(case.n, case.cols),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let long = case.cols >= LONG_COLS;
            let (block, lanes) =
                if long { (LONG_BLOCK_SIZE, LONG_LANES) } else { (SHORT_BLOCK_SIZE, SHORT_LANES) };
            let blocks = case.rows.div_ceil(block / lanes);
            let resident = if long { 2 } else { 4 };
            let config = &persistent(device, blocks, resident, block, stage_bytes(case.n, case.cols));
            match (case.dtype, case.x_dtype, long, case.n) {
                (Dtype::F16, _, false, 1) => call!(matmul_add_f16_f16_short_one, device, config, case),
                (Dtype::F16, _, true, 1) => call!(matmul_add_f16_f16_long_one, device, config, case),
                (Dtype::F16, _, false, _) => call!(matmul_add_f16_f16_short_few, device, config, case),
                (Dtype::F16, _, true, _) => call!(matmul_add_f16_f16_long_few, device, config, case),
                (_, Dtype::F32, false, 1) => call!(matmul_add_bf16_f32_short_one, device, config, case),
                (_, Dtype::F32, true, 1) => call!(matmul_add_bf16_f32_long_one, device, config, case),
                (_, Dtype::F32, false, _) => call!(matmul_add_bf16_f32_short_few, device, config, case),
                (_, Dtype::F32, true, _) => call!(matmul_add_bf16_f32_long_few, device, config, case),
                (_, _, false, 1) => call!(matmul_add_bf16_bf16_short_one, device, config, case),
                (_, _, true, 1) => call!(matmul_add_bf16_bf16_long_one, device, config, case),
                (_, _, false, _) => call!(matmul_add_bf16_bf16_short_few, device, config, case),
                (_, _, true, _) => call!(matmul_add_bf16_bf16_long_few, device, config, case),
            }
        },
    },
];

/// `out += x · weightᵀ`: `[n, in_features] -> [n, out_features]`.
pub(in super::super) fn matmul_add(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let &Activation { dtype, rows, cols, .. } = &weight.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", x.dtype, n, cols)?;
    out.expect(OP, "out", n, rows)?;
    if x.dtype != dtype && (x.dtype, dtype) != (Dtype::F32, Dtype::Bf16) {
        return Err(Error::Request(format!("{OP}: x is {} and the weights are {dtype}", x.dtype)));
    }
    let case = Case {
        dtype,
        x_dtype: x.dtype,
        n: dimension(OP, n)?,
        rows: dimension(OP, rows)?,
        cols: dimension(OP, cols)?,
        x: x.ptr(),
        weight: weight.0.ptr(),
        out: out.ptr_mut(),
    };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked, out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
