//! What both halves of a mixture of experts share.

mod blocks;
mod warpgroups;
mod workspace;

use super::device::Device;
use super::fused::GateUp;
use super::tensor::{Activation, Tensor};
use super::units::{UnitShape, Units};
use super::variant::KernelChoice;
use super::weight::{BlockMatrix, Piece, Values, Weight};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
pub(super) use blocks::{Blocks, Matrix, ONE_BY_ONE, expected_experts};
use cuda_std::launch::DevicePtr;
use gpu_kernels::experts::FEW_ROWS;
use gpu_kernels::units::{Unit, float as units};
pub(super) use warpgroups::{Grouped, takes as are_arranged};
pub(super) use workspace::{Sorted, Workspace};

/// The variants of matrices in units.
pub(super) const UNITS: &str = "units";

/// The matrices of all experts, one below the other.
#[derive(Clone, Copy)]
pub(super) struct Matrices {
    pub place: Place,
    /// As kernels are named.
    pub format: &'static str,
    /// What their values are multiplied with.
    pub scale: f32,
    /// How many, not 0.
    pub count: usize,
}

/// Where matrices are.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Rows as they come.
    Rows(DevicePtr<u8>),
    Units(Units),
}

impl Place {
    /// Of matrices in units.
    pub fn units(self) -> Option<Units> {
        if let Self::Units(units) = self { Some(units) } else { None }
    }

    /// Of rows as they come.
    ///
    /// # Errors
    /// [`Error::Request`] if they were repacked.
    pub fn rows(self, op: &str) -> Result<DevicePtr<u8>> {
        match self {
            Self::Rows(data) => Ok(data),
            Self::Units(_) => Err(Error::Request(format!("{op}: the weights were repacked"))),
        }
    }
}

/// The number of experts that a row goes to and the values of each, neither 0, of `chosen` `[n, 2 * count]` and `inner` `[n, count * width]`.
///
/// # Errors
/// [`Error::Request`] if these are not their shapes.
pub(super) fn shape(op: &str, n: usize, chosen: &Tensor, inner: &Tensor) -> Result<(usize, usize)> {
    let count = chosen.cols / 2;
    chosen.expect(op, "chosen", n, 2 * count)?;
    inner.expect(op, "inner", n, inner.cols)?;
    if count == 0 || inner.cols == 0 || !inner.cols.is_multiple_of(count) {
        return Err(Error::Request(format!("{op}: {} columns of inner for {count} experts", inner.cols)));
    }
    Ok((count, inner.cols / count))
}

/// `weight` as matrices `[rows, cols]`.
///
/// # Errors
/// [`Error::Request`] if it is not some of those, in one format.
pub(super) fn matrices(op: &str, weight: &Weight, rows: usize, cols: usize) -> Result<Matrices> {
    let count = weight.rows.checked_div(rows).unwrap_or(0);
    if count == 0 || count * rows != weight.rows || cols == 0 || weight.cols != cols {
        return Err(Error::Request(format!(
            "{op}: the weights are [{}, {}]; expected matrices [{rows}, {cols}]",
            weight.rows, weight.cols
        )));
    }
    let [Piece { values, scales }] = &weight.pieces[..] else {
        return Err(Error::Request(format!("{op}: the weights must be of one format")));
    };
    let (place, format) = match values {
        Values::Float(Activation { data, dtype, .. }) => (Place::Rows(data.ptr()), dtype.name()),
        Values::Blocks(BlockMatrix { data, format, .. }) => (Place::Rows(data.ptr()), format.name()),
        Values::Units(matrix) => (Place::Units(matrix.units), matrix.units.format.name()),
    };
    Ok(Matrices { place, format, scale: scales.stored.get(), count })
}

/// Refuses gates and ups of another number of experts.
///
/// # Errors
/// [`Error::Request`] with both.
pub(super) fn expect_equal(op: &str, gates: usize, ups: usize) -> Result<()> {
    if gates == ups { Ok(()) } else { Err(Error::Request(format!("{op}: {gates} gates and {ups} experts"))) }
}

/// Whether the matrices of experts are to stay as in the file: a kernel was asked for that reads them so.
pub(super) fn stay_as_in_the_file(choice: &KernelChoice) -> bool {
    [super::experts_in::OP, super::experts_out::OP]
        .iter()
        .any(|op| choice.get(op).is_some_and(|name| name != UNITS))
}

/// The shape of the units of matrices of experts, if they are to be repacked: those of `rows` rows each, of which some that follow each other make a
/// tile, or half of one beside another matrix. Floats are repacked, too.
pub(super) fn shape_of_units(
    device: &Device,
    dtype: Dtype,
    format: MatrixFormat,
    [rows, cols]: [usize; 2],
    rows_of_tile: usize,
) -> Option<UnitShape> {
    let shape = match format.float() {
        Some(_) => UnitShape { cols: units::f16::COLS, bytes: units::f16::BYTES },
        None => UnitShape::of(format)?,
    };
    let is_whole = cols > 0 && cols.is_multiple_of(shape.cols as usize) && rows.is_multiple_of(rows_of_tile);
    (is_whole && rows > 0 && dtype == Dtype::F16 && device.has_bulk_copies()).then_some(shape)
}

/// Rows of an expert that kernels of units multiply at once where `n` rows come to `num_chosen` of `num_experts` each, of all `matrices` alike.
pub(super) fn rows_of_group(
    device: &Device,
    n: usize,
    [num_chosen, num_experts]: [usize; 2],
    matrices: &[Matrix],
) -> usize {
    let average = n * num_chosen / num_experts.max(1);
    warpgroups::rows_of_group(device, average, matrices).unwrap_or(FEW_ROWS) as usize
}

/// Gate and up, if they are in units side by side.
pub(super) fn side_by_side([gate, up]: [Place; 2]) -> Option<Units> {
    let (gate, up) = (gate.units()?, up.units()?);
    GateUp::are_side_by_side(gate, up).then_some(gate)
}

/// How the `n` rows of matrices in units were sorted; `None` where they go one by one.
///
/// # Errors
/// [`Error::Request`] if they must be sorted and were not, or there is no room for experts.
pub(super) fn sorted(
    op: &str,
    workspace: Option<&Workspace>,
    n: usize,
    matrices: &Matrices,
    num_chosen: usize,
) -> Result<Option<Sorted>> {
    if n <= ONE_BY_ONE {
        return Ok(None);
    }
    let workspace = workspace.ok_or_else(|| {
        Error::Request(format!("{op}: the operations were made for a model without experts"))
    })?;
    workspace.expect(op, matrices, num_chosen)?;
    workspace.sorted(op, n).map(Some)
}
