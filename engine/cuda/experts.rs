//! What both halves of a mixture of experts check.

use super::tensor::{Activation, Tensor};
use super::weight::{BlockMatrix, Piece, Values, Weight};
use crate::error::{Error, Result};
use cuda_std::launch::DevicePtr;

/// The matrices of all experts, one below the other.
pub(super) struct Matrices {
    pub data: DevicePtr<u8>,
    /// As kernels are named.
    pub format: &'static str,
    /// What their values are multiplied with.
    pub scale: f32,
    /// How many, not 0.
    pub count: usize,
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
    let (data, format) = match values {
        Values::Float(Activation { data, dtype, .. }) => (data.ptr(), dtype.name()),
        Values::Blocks(BlockMatrix { data, format, .. }) => (data.ptr(), format.name()),
        Values::Units(_) => {
            return Err(Error::Request(format!(
                "{op}: the weights must be as in the file, they were repacked"
            )));
        }
    };
    Ok(Matrices { data, format, scale: scales.stored.get(), count })
}

/// Refuses gates and ups of another number of experts.
///
/// # Errors
/// [`Error::Request`] with both.
pub(super) fn expect_equal(op: &str, gates: usize, ups: usize) -> Result<()> {
    if gates == ups { Ok(()) } else { Err(Error::Request(format!("{op}: {gates} gates and {ups} experts"))) }
}
