//! The values of matrices in blocks.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, launch};
use super::tensor::Activation;
use super::units::{UnitMatrix, Units};
use super::variant::{KernelChoice, select, variants};
use super::weight::{BlockMatrix, Values};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels};
use gpu_kernels::blocks::BLOCK_SIZE;
use gpu_kernels::decode::{DecodeArgs, eights, plain};
use gpu_kernels::units;

const OP: &str = "decode";

/// Rows of a matrix, and where their values go.
pub(super) struct Case {
    matrix: Matrix,
    dtype: Dtype,
    out: DevicePtrMut<u8>,
}

enum Matrix {
    Blocks(BlockRows),
    Units(Units),
}

/// `[rows, cols]` in blocks, as a file has them.
#[derive(Clone, Copy)]
pub(super) struct BlockRows {
    pub at: DevicePtr<u8>,
    pub format: MatrixFormat,
    pub rows: usize,
    pub cols: usize,
}

type Launch = unsafe fn(&Device, &Case) -> Result<()>;

variants! { Case, Launch;
    "eights" [eights]: in_blocks => |device, case| unsafe { launch_blocks(device, case, eights(), EIGHT) };
    "plain" [plain]: in_blocks => |device, case| unsafe { launch_blocks(device, case, plain(), 1) };
    "units" [units::decode]: in_units => launch_units;
}

/// Values of a thread.
const EIGHT: usize = 8;

fn in_blocks(case: &Case) -> Result<(), &'static str> {
    if matches!(case.matrix, Matrix::Blocks(_)) { Ok(()) } else { Err("the matrix was repacked") }
}

fn in_units(case: &Case) -> Result<(), &'static str> {
    if matches!(case.matrix, Matrix::Units(_)) { Ok(()) } else { Err("the matrix is as in the file") }
}

/// # Safety
/// `out` has room for the rows, which are in blocks; `kernels` decode `values` of them a thread.
unsafe fn launch_blocks(
    device: &Device,
    case: &Case,
    kernels: &'static Kernels<DecodeArgs>,
    values: usize,
) -> Result<()> {
    let Matrix::Blocks(rows) = case.matrix else { return Err(Error::Request(format!("{OP}: repacked"))) };
    // SAFETY: the caller's promise.
    unsafe { rows.decode(device, kernels, values, case.dtype, case.out) }
}

/// # Safety
/// `out` has room for the rows, which are in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let Matrix::Units(units) = case.matrix else { return Err(Error::Request(format!("{OP}: not repacked"))) };
    // SAFETY: the caller's promise.
    unsafe { units.decode(device, 0, units.rows, case.dtype, case.out) }
}

impl BlockRows {
    /// Queues decoding them to `out`, in `dtype`, with the fastest kernel.
    ///
    /// # Errors
    /// [`Error::Request`] if a dimension is beyond 32 bits, or what the device says.
    ///
    /// # Safety
    /// `out` has room for them, aligned to 16 bytes, and nothing else uses it.
    pub unsafe fn decode_eights(&self, device: &Device, dtype: Dtype, out: DevicePtrMut<u8>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.decode(device, eights(), EIGHT, dtype, out) }
    }

    /// # Safety
    /// As [`launch_blocks`].
    unsafe fn decode(
        &self,
        device: &Device,
        kernels: &'static Kernels<DecodeArgs>,
        values: usize,
        dtype: Dtype,
        out: DevicePtrMut<u8>,
    ) -> Result<()> {
        let (rows, cols) = (dimension(OP, self.rows)?, dimension(OP, self.cols)?);
        let arguments = DecodeArgs { cols, blocks: self.at, out };
        let config = elements_of_rows(rows, dimension(OP, self.cols / values)?, BLOCK_SIZE);
        let chosen = [self.format.name().into(), dtype.name().into()];
        // SAFETY: a row of blocks for each row, whose blocks are whole eights; the caller vouches for `out`.
        unsafe { launch(device, kernels, &chosen, &config, arguments) }
    }
}

/// The values of a matrix, exactly as the host decodes them, then rounded to the format of `out`: `[rows, cols]`.
///
/// # Errors
/// [`Error::Request`] if it is not one in blocks, or the shapes do not fit, or what the device says.
pub(crate) fn decode(
    device: &Device,
    choice: &KernelChoice,
    matrix: &Values,
    out: &mut Activation,
) -> Result<()> {
    let dtype = out.dtype;
    let (matrix, rows, cols) = match matrix {
        Values::Float(_) => return Err(Error::Request(format!("{OP}: expected a matrix in blocks"))),
        Values::Units(UnitMatrix { units, .. }) => (Matrix::Units(*units), units.rows, units.cols),
        &Values::Blocks(BlockMatrix { ref data, format, rows, cols }) => {
            (Matrix::Blocks(BlockRows { at: data.ptr(), format, rows, cols }), rows, cols)
        }
    };
    out.expect(OP, "out", dtype, rows, cols)?;
    let case = Case { matrix, dtype, out: out.ptr_mut() };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: `out` has room for the rows, checked above.
    unsafe { (variant.launch)(device, &case) }
}
