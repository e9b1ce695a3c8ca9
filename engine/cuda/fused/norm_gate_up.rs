//! The first half of the MLP.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector, launch};
use super::super::memory::DeviceBuffer;
use super::super::precise_dtype;
use super::super::tensor::{Activation, Tensor};
use super::super::units::{self, Units};
use super::super::variant::{KernelChoice, select, variants};
use super::{
    MMA, StreamShape, UNITS, expect_eligible, f16_only, floats_only, lanes_fit, norm_fits, persistent,
    units_only, values,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::parts::RmsNorm;
use cuda_std::launch::Kernels;
use gpu_kernels::fused::mma::{MAX_NORM_WARPS, norm_gate_up as mma};
use gpu_kernels::fused::norm_gate_up::*;
use gpu_kernels::fused::stage_bytes;
use gpu_kernels::fused::units::norm_gate_up as in_units;

pub(crate) const OP: &str = "norm_gate_up";

/// What the kernels take, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows.
pub(super) struct Case {
    /// Of the weights, and of out.
    formats: [Dtype; 2],
    /// Gate, with up beside it, where they are in units.
    units: Option<Units>,
    /// `depth` is yet to be chosen.
    arguments: NormGateUpArgs,
}

variants! { Case, Launch<Case>;
    UNITS [in_units::units]: |case| units_only(case.units) => launch_units;
    MMA [mma::mma]: f16_rows => |device, case| unsafe { launch_mma(device, case, mma::mma()) };
    "lanes" [lanes]: few_rows => |device, case| unsafe { launch_lanes(device, case, lanes()) };
}

fn f16_rows(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units)?;
    f16_only(case.formats[0])?;
    norm_fits(case.arguments.n, case.arguments.hidden_size)
}

fn few_rows(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units)?;
    lanes_fit(case.arguments.n, case.arguments.hidden_size)
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let Some(units) = case.units else { return Err(Error::Request(format!("{OP}: not in units"))) };
    let NormGateUpArgs { n, intermediate_size, .. } = case.arguments;
    let stream = units.stream(device, intermediate_size / in_units::COLUMNS_PER_TILE, n);
    let arguments = NormGateUpArgs { depth: stream.depth, ..case.arguments };
    let values = units::values(&[units.format], n);
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), in_units::units(), &values, &stream.config, arguments) }
}

/// # Safety
/// The case is whole, and its formats are f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<NormGateUpArgs>) -> Result<()> {
    let NormGateUpArgs { n, hidden_size, intermediate_size, .. } = case.arguments;
    let tiles = intermediate_size.div_ceil(mma::COLUMNS_PER_TILE);
    let (config, depth) = StreamShape::new(device, tiles, hidden_size, MAX_NORM_WARPS).normed(n);
    let arguments = NormGateUpArgs { depth, ..case.arguments };
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&case.formats[..1], n), &config, arguments) }
}

/// # Safety
/// The case is whole, of few rows.
unsafe fn launch_lanes(device: &Device, case: &Case, kernels: &Kernels<NormGateUpArgs>) -> Result<()> {
    let NormGateUpArgs { n, hidden_size, intermediate_size, .. } = case.arguments;
    let blocks = intermediate_size.div_ceil(COLUMNS_PER_BLOCK);
    let config = persistent(device, blocks, 2, BLOCK_SIZE, stage_bytes(n, hidden_size));
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&case.formats, n), &config, case.arguments) }
}

/// Gate and up.
#[derive(Clone, Copy)]
pub(in super::super) enum GateUp<'a> {
    Floats([&'a Activation; 2]),
    /// Side by side.
    Units([Units; 2]),
}

impl GateUp<'_> {
    /// Whether a row of one shares a tile with that of the other.
    pub fn are_side_by_side(gate: Units, up: Units) -> bool {
        gate.is_followed_by(gate.rows, up) && gate.first == 0 && [gate.rows, up.rows] == [gate.span; 2]
    }
}

/// `y = rms_norm(x); out = silu(gate_scale · y · gateᵀ) * (up_scale · y · upᵀ)`: `[n, intermediate_size]`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_gate_up(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    weights: GateUp,
    [gate_scale, up_scale]: [f32; 2],
    out: &mut Activation,
) -> Result<()> {
    let (dtype, rows, cols, [gate, up], units) = match weights {
        GateUp::Floats([gate, up]) => {
            let &Activation { dtype, rows, cols, .. } = gate;
            up.expect(OP, "up", dtype, rows, cols)?;
            (dtype, rows, cols, [gate.ptr(), up.ptr()], None)
        }
        GateUp::Units([gate, up]) if GateUp::are_side_by_side(gate, up) => {
            (Dtype::F16, gate.rows, gate.cols, [gate.at; 2], Some(gate))
        }
        GateUp::Units(_) => return Err(Error::Request(format!("{OP}: gate and up are not side by side"))),
    };
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", &norm.weight, cols)?;
    out.expect(OP, "out", precise_dtype(dtype), n, rows)?;
    let arguments = NormGateUpArgs {
        n: dimension(OP, n)?,
        hidden_size: dimension(OP, cols)?,
        intermediate_size: dimension(OP, rows)?,
        depth: 0,
        x: x.ptr(),
        norm: norm.weight.ptr(),
        eps: norm.eps,
        gate_scale,
        up_scale,
        gate,
        up,
        out: out.ptr_mut(),
    };
    let case = Case { formats: [dtype, out.dtype], units, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
