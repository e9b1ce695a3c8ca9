//! Norm and projection.

use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector, launch};
use super::super::memory::DeviceBuffer;
use super::super::tensor::Tensor;
use super::super::units::{SPAN, UnitMatrix, Units};
use super::super::variant::{KernelChoice, select, variants};
use super::super::weight::{Run, Values, Weight};
use super::{
    MMA, StreamShape, UNITS, expect_eligible, f16_only, floats_only, lanes_fit, norm_fits, of_formats,
    persistent, units_only, values,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::ops::parts::RmsNorm;
use cuda_std::launch::{DevicePtr, Kernels, Value};
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
    /// Those of the last rows, where they are in units of another format.
    last: Option<Units>,
    /// `depth` is yet to be chosen.
    arguments: NormMatmulArgs,
}

variants! { Case, Launch<Case>;
    UNITS [in_units::units, in_units::mixed]: |case| units_only(case.units) => launch_units;
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

/// Rows of weights from which lanes are the faster ones: those of a head read as much as the memory gives. Before that a kernel's beginning counts, and
/// lanes take nearly all registers, so that the next one's blocks find no room until they end.
const MANY_ROWS: u32 = 1 << 16;

/// What is taken before the table's first where nothing is asked for.
fn preferred(case: &Case) -> Option<&'static str> {
    (case.arguments.rows < MANY_ROWS && f16_rows(case).is_ok()).then_some(MMA)
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
    let NormMatmulArgs { n, rows, last_rows, .. } = case.arguments;
    let [tiles, of_last] = [rows, last_rows].map(|rows| rows / gpu_kernels::units::ROWS);
    let all = tiles + of_last;
    let last = case.last.unwrap_or(units);
    let (stream, last_blocks) = units.stream_of_parts(device, all, [all, of_last], &last, n);
    let arguments = NormMatmulArgs { depth: stream.depth, last_blocks, ..case.arguments };
    let (kernels, values) = kernels_of(units.format, last.format, n);
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values, &stream.config, arguments) }
}

/// The kernels of `n` rows for units of a format and of another one behind them, and which of them.
fn kernels_of(
    format: MatrixFormat,
    last: MatrixFormat,
    n: u32,
) -> (&'static Kernels<NormMatmulArgs>, Vec<Value>) {
    of_formats([in_units::units(), in_units::mixed()], [format, last], n)
}

/// The weights of a run that are multiplied together with those of the run before it, `units`: they are in units of another format, and there is a kernel for both.
fn joined(units: Option<Units>, run: Option<&Run>) -> Result<Option<(Units, DevicePtr<u8>, u32)>> {
    let (Some(units), Some(run)) = (units, run) else { return Ok(None) };
    let (Values::Units(_), 1.0) = (&run.values, run.scale) else { return Ok(None) };
    let (_, weight, last) = of_run(run)?;
    let has_kernel = |last: &Units| {
        let (kernels, values) = kernels_of(units.format, last.format, 1);
        last.format != units.format && kernels.get(&values).is_some()
    };
    let rows = dimension(OP, run.rows)?;
    Ok(last.filter(has_kernel).map(|last| (last, weight, rows)))
}

/// # Safety
/// The case is whole, its weights f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<NormMatmulArgs>) -> Result<()> {
    let NormMatmulArgs { n, rows, cols, .. } = case.arguments;
    let tiles = rows.div_ceil(mma::COLUMNS_PER_TILE);
    let (config, depth) = StreamShape::new(device, tiles, cols, MAX_NORM_WARPS).normed(n);
    let arguments = NormMatmulArgs { depth, ..case.arguments };
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&[case.dtype], n), &config, arguments) }
}

/// Whether `rows` rows from the first of `units` on are in the order of the kernels for units, in tiles of their own.
pub(in super::super) fn are_in_order(units: Units, rows: usize) -> bool {
    units.span == SPAN && Units { rows, ..units }.start().is_some()
}

/// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`; a launch for each of `runs`, which are the weight's as
/// they are stored, or for two of two formats.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_matmul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    weight: &Weight,
    runs: &[Run],
    out: &mut Tensor,
) -> Result<()> {
    let cols = weight.cols;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", &norm.weight, cols)?;
    out.expect(OP, "out", n, weight.rows)?;
    let (mut first, out_stride) = (0, dimension(OP, out.cols)?);
    let mut runs = runs.iter().peekable();
    while let Some(run) = runs.next() {
        if run.scale != 1.0 {
            return Err(Error::Request(format!("{OP}: the weights must not be scaled, by {:e}", run.scale)));
        }
        let (dtype, weight, units) = of_run(run)?;
        expect_eligible(OP, n, dtype, cols)?;
        let last = joined(units, runs.peek().copied())?;
        let (last_units, last_weight, last_rows) = match last {
            Some((units, weight, rows)) => (Some(units), weight, rows),
            None => (None, weight, 0),
        };
        let arguments = NormMatmulArgs {
            n: dimension(OP, n)?,
            rows: dimension(OP, run.rows)?,
            cols: dimension(OP, cols)?,
            depth: 0,
            x: x.ptr(),
            norm: norm.weight.ptr(),
            eps: norm.eps,
            weight,
            out: out.ptr_mut().add(first),
            out_stride,
            last_rows,
            last_blocks: 0,
            last_weight,
        };
        let case = Case { dtype, units, last: last_units, arguments };
        let variant = select(OP, VARIANTS, &case, choice.get(OP).or(preferred(&case)))?;
        // SAFETY: the shapes were checked, and the columns of the run are some of out's, which is borrowed alone.
        unsafe { (variant.launch)(device, &case)? }
        first += run.rows;
        if last.is_some() {
            first += runs.next().map_or(0, |run| run.rows);
        }
    }
    Ok(())
}

/// What the kernels take inputs as, where the rows of a run begin, and what is known of them if they are in units.
fn of_run(run: &Run) -> Result<(Dtype, DevicePtr<u8>, Option<Units>)> {
    match run.values {
        Values::Float(matrix) => Ok((matrix.dtype, matrix.ptr(), None)),
        Values::Units(UnitMatrix { units, .. }) => {
            let units = Units { rows: run.rows, ..*units };
            let start = units.start().filter(|_| units.span == SPAN);
            let start = start.ok_or_else(|| {
                Error::Request(format!("{OP}: rows are not in their order, in tiles of their own"))
            })?;
            Ok((Dtype::F16, start, Some(units)))
        }
        Values::Blocks(_) => Err(Error::Request(format!("{OP}: the weights are as in the file"))),
    }
}
