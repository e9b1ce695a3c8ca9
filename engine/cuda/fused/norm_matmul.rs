//! The head.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector, launch};
use super::super::memory::DeviceBuffer;
use super::super::tensor::{Activation, Tensor};
use super::super::units::{self, SPAN, Units};
use super::super::variant::{KernelChoice, select, variants};
use super::{
    MMA, StreamShape, UNITS, expect_eligible, f16_only, floats_only, lanes_fit, norm_fits, persistent,
    units_only, values,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::parts::RmsNorm;
use cuda_std::launch::Kernels;
use gpu_kernels::fused::mma::{MAX_NORM_WARPS, MAX_ROWS, norm_matmul as mma};
use gpu_kernels::fused::norm_matmul::*;
use gpu_kernels::fused::stage_bytes;
use gpu_kernels::fused::units::norm_matmul as in_units;

pub(crate) const OP: &str = "norm_matmul";

/// What the kernels take, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    /// The weights, where they are in units.
    units: Option<Units>,
    /// `depth` is yet to be chosen.
    arguments: NormMatmulArgs,
}

variants! { Case, Launch<Case>;
    UNITS [in_units::units]: |case| units_only(case.units) => launch_units;
    "lanes" [lanes]: few_rows => |device, case| unsafe { launch_lanes(device, case, lanes()) };
    MMA [mma::mma]: f16_rows => |device, case| unsafe { launch_mma(device, case, mma::mma()) };
}

fn few_rows(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units)?;
    lanes_fit(case.arguments.n, case.arguments.cols)
}

fn f16_rows(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units)?;
    f16_only(case.dtype)?;
    norm_fits(MAX_ROWS, case.arguments.cols)
}

/// # Safety
/// The case is whole, of few rows.
unsafe fn launch_lanes(device: &Device, case: &Case, kernels: &Kernels<NormMatmulArgs>) -> Result<()> {
    let NormMatmulArgs { n, rows, cols, .. } = case.arguments;
    let config = persistent(device, rows.div_ceil(COLUMNS_PER_BLOCK), 2, BLOCK_SIZE, stage_bytes(n, cols));
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&[case.dtype], n), &config, case.arguments) }
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let Some(units) = case.units else { return Err(Error::Request(format!("{OP}: not in units"))) };
    let n = case.arguments.n;
    let stream = units.stream(device, case.arguments.rows / gpu_kernels::units::ROWS, n);
    let arguments = NormMatmulArgs { depth: stream.depth, ..case.arguments };
    let values = units::values(&[units.format], n);
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), in_units::units(), &values, &stream.config, arguments) }
}

/// # Safety
/// The case is whole, its weights f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<NormMatmulArgs>) -> Result<()> {
    // There is one kernel, for the most rows.
    let n = MAX_ROWS;
    let NormMatmulArgs { rows, cols, .. } = case.arguments;
    let tiles = rows.div_ceil(mma::COLUMNS_PER_TILE);
    let (config, depth) = StreamShape::new(device, tiles, cols, MAX_NORM_WARPS).normed(n);
    let arguments = NormMatmulArgs { depth, ..case.arguments };
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&[case.dtype], n), &config, arguments) }
}

/// The weights of the head.
#[derive(Clone, Copy)]
pub(in super::super) enum HeadWeight<'a> {
    Float(&'a Activation),
    Units(Units),
}

/// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_matmul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    weight: HeadWeight,
    out: &mut Tensor,
) -> Result<()> {
    let (dtype, rows, cols) = match weight {
        HeadWeight::Float(&Activation { dtype, rows, cols, .. }) => (dtype, rows, cols),
        HeadWeight::Units(Units { rows, cols, span: SPAN, .. }) => (Dtype::F16, rows, cols),
        HeadWeight::Units(_) => return Err(Error::Request(format!("{OP}: the rows are not in their order"))),
    };
    let (weight, units) = match weight {
        HeadWeight::Float(weight) => (weight.ptr(), None),
        HeadWeight::Units(units) => (units.at, Some(units)),
    };
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", &norm.weight, cols)?;
    out.expect(OP, "out", n, rows)?;
    let arguments = NormMatmulArgs {
        n: dimension(OP, n)?,
        rows: dimension(OP, rows)?,
        cols: dimension(OP, cols)?,
        depth: 0,
        x: x.ptr(),
        norm: norm.weight.ptr(),
        eps: norm.eps,
        weight,
        out: out.ptr_mut(),
    };
    let case = Case { dtype, units, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
