//! Norms of the rows of a matrix.

use super::device::Device;
use super::launch::{dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::units::{UnitMatrix, Units};
use super::variant::{KernelChoice, select, variants};
use super::weight::{BlockMatrix, Values};
use crate::error::{Error, Result};
use cuda_std::launch::{Kernels, LaunchConfig, Value};
use gpu_kernels::row_norms::*;
use gpu_kernels::{blocks, units};

const OP: &str = "row_norms";

/// What the kernels take of a matrix in the format `format`.
pub(super) struct Case {
    format: Value,
    /// Values of 16 bytes of a float format; `None` where it is in blocks.
    per_word: Option<usize>,
    units: Option<Units>,
    arguments: RowNormsArgs,
}

type Launch = unsafe fn(&Device, &Case) -> Result<()>;

variants! { Case, Launch;
    "words" [words]: whole_words => |device, case| unsafe { launch_warps(device, case, words()) };
    "plain" [plain]: floats => |device, case| unsafe { launch_warps(device, case, plain()) };
    "units" [units::row_norms]: in_units => launch_units;
    "blocks" [blocks::row_norms]: in_blocks => |device, case| unsafe { launch_warps(device, case, blocks::row_norms()) };
}

fn floats(case: &Case) -> Result<(), &'static str> {
    if case.per_word.is_some() { Ok(()) } else { Err("the matrix is in blocks") }
}

fn in_blocks(case: &Case) -> Result<(), &'static str> {
    let blocks = case.per_word.is_none() && case.units.is_none();
    if blocks { Ok(()) } else { Err("the matrix is not in blocks as a file has them") }
}

fn in_units(case: &Case) -> Result<(), &'static str> {
    if case.units.is_some() { Ok(()) } else { Err("the matrix is not in units") }
}

fn whole_words(case: &Case) -> Result<(), &'static str> {
    floats(case)?;
    let whole = case.per_word.is_some_and(|values| (case.arguments.cols as usize).is_multiple_of(values));
    if whole { Ok(()) } else { Err("a row is not a multiple of 16 bytes") }
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let Some(units) = case.units else { return Err(Error::Request(format!("{OP}: not in units"))) };
    // SAFETY: the caller's promise.
    unsafe { units.row_norms(device, case.arguments.scale, case.arguments.out) }
}

/// # Safety
/// The case is whole and one for these kernels.
unsafe fn launch_warps(device: &Device, case: &Case, kernels: &Kernels<RowNormsArgs>) -> Result<()> {
    let grid = [case.arguments.rows.div_ceil(WARPS_PER_BLOCK), 1, 1];
    let config = LaunchConfig { grid, block: [BLOCK_THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: a warp for each row; buffers are aligned, so whole words are. The caller vouches for the case.
    unsafe { launch(device, kernels, &[case.format], &config, case.arguments) }
}

/// `out[r] = sqrt(Σ_c (matrix[r, c] · scale[c])²)` for the rows of the matrix.
pub(super) fn row_norms(
    device: &Device,
    choice: &KernelChoice,
    matrix: &Values,
    scale: &DeviceBuffer<f32>,
    out: &mut DeviceBuffer<f32>,
) -> Result<()> {
    let (weight, format, per_word, cols) = match matrix {
        Values::Float(matrix) => {
            (matrix.ptr(), matrix.dtype.name(), Some(16 / matrix.dtype.size()), matrix.cols)
        }
        Values::Blocks(BlockMatrix { data, format, cols, .. }) => (data.ptr(), format.name(), None, *cols),
        Values::Units(UnitMatrix { units, .. }) => (units.at, units.format.name(), None, units.cols),
    };
    let units = match matrix {
        Values::Units(matrix) => Some(matrix.units),
        _ => None,
    };
    expect_vector(OP, "scale", scale, cols)?;
    let rows = matrix.rows();
    if out.len() < rows {
        return Err(Error::Request(format!("{OP}: out must have {rows} values, it has {}", out.len())));
    }
    if rows == 0 {
        return Ok(());
    }
    let (rows, cols) = (dimension(OP, rows)?, dimension(OP, cols)?);
    let arguments = RowNormsArgs { rows, cols, weight, scale: scale.ptr(), out: out.ptr_mut() };
    let case = Case { format: format.into(), per_word, units, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the lengths were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
