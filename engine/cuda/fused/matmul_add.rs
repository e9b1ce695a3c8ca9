//! Projections back to the residual stream.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, launch};
use super::super::tensor::{Activation, Tensor};
use super::super::variant::{KernelChoice, select, variants};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, persistent, rows_of_kernel, values};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::Kernels;
use gpu_kernels::fused::matmul_add::*;
use gpu_kernels::fused::mma::{MAX_MATMUL_WARPS, batch, matmul_add as mma, matmul_shared_bytes};
use gpu_kernels::fused::{WORD, stage_bytes};

pub(super) const OP: &str = "matmul_add";

/// What the kernels take, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows.
pub(super) struct Case {
    /// Of the weights, and of x: the same or, where that is bf16, f32.
    formats: [Dtype; 2],
    /// `depth` is yet to be chosen.
    arguments: MatmulAddArgs,
}

variants! { Case, Launch<Case>;
    MMA [mma::mma]: f16_weights => |device, case| unsafe { launch_mma(device, case, mma::mma()) };
    "lanes" [short, long]: few_rows => launch_lanes;
}

fn f16_weights(case: &Case) -> Result<(), &'static str> {
    f16_only(case.formats[0])
}

fn few_rows(case: &Case) -> Result<(), &'static str> {
    lanes_fit(case.arguments.n, case.arguments.cols)
}

/// # Safety
/// The case is whole, and its formats are f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<MatmulAddArgs>) -> Result<()> {
    let MatmulAddArgs { n, rows, cols, .. } = case.arguments;
    let tiles = rows.div_ceil(mma::COLUMNS_PER_TILE);
    let half = cols.div_ceil(2).next_multiple_of(WORD);
    let shape = StreamShape::new(device, tiles, half, MAX_MATMUL_WARPS);
    let batch = batch(tiles, shape.blocks);
    let (config, depth) = shape.config(matmul_shared_bytes(shape.warps, rows_of_kernel(n), batch));
    let arguments = MatmulAddArgs { depth, ..case.arguments };
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&case.formats[..1], n), &config, arguments) }
}

/// # Safety
/// The case is whole, of few rows.
unsafe fn launch_lanes(device: &Device, case: &Case) -> Result<()> {
    let MatmulAddArgs { n, rows, cols, .. } = case.arguments;
    let (kernels, block, lanes, resident) = if cols >= LONG_COLS {
        (long(), LONG_BLOCK_SIZE, LONG_LANES, 2)
    } else {
        (short(), SHORT_BLOCK_SIZE, SHORT_LANES, 4)
    };
    let blocks = rows.div_ceil(block / lanes);
    let config = persistent(device, blocks, resident, block, stage_bytes(n, cols));
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&case.formats, n), &config, case.arguments) }
}

/// `out += scale · x · weightᵀ`, where `scale` is that of x too: `[n, in_features] -> [n, out_features]`.
pub(in super::super) fn matmul_add(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    (weight, scale): (&Activation, f32),
    out: &mut Tensor,
) -> Result<()> {
    let &Activation { dtype, rows, cols, .. } = weight;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", x.dtype, n, cols)?;
    out.expect(OP, "out", n, rows)?;
    if x.dtype != dtype && (x.dtype, dtype) != (Dtype::F32, Dtype::Bf16) {
        return Err(Error::Request(format!("{OP}: x is {} and the weights are {dtype}", x.dtype)));
    }
    let arguments = MatmulAddArgs {
        n: dimension(OP, n)?,
        rows: dimension(OP, rows)?,
        cols: dimension(OP, cols)?,
        depth: 0,
        scale: x.scale * scale,
        x: x.ptr(),
        weight: weight.ptr(),
        out: out.ptr_mut(),
    };
    let case = Case { formats: [dtype, x.dtype], arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked, out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
