//! Products with matrices in blocks: few rows by a kernel that decodes as it reads, more by the library, which gets some rows of the
//! weights at a time, decoded to the format of x.

use super::{CUBLAS, OP as MATMUL, Tools};
use crate::cublas::Product;
use crate::device::Dependent;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::launch::{always, dimension, elements_of_rows, launch};
use crate::precise_dtype;
use crate::tensor::Activation;
use crate::variant::{KernelChoice, select, variants};
use crate::weight::{BlockMatrix, Run};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig, Value};
use gpu_kernels::blocks::{self, DecodeArgs, MATMUL_THREADS, MatmulArgs, ROWS_PER_WARP, WARPS_PER_BLOCK};

pub(crate) const OP: &str = "matmul_blocks";

/// The kernel that decodes as it reads.
const INLINE: &str = "inline";

/// Rows up to which [`INLINE`] is taken where nothing is asked for: the weights are read once for every four rows.
const FEW_ROWS: usize = 8;

/// Values of the weights that are decoded at a time, at most: 64 MiB of f16.
const TILE_VALUES: usize = 32 << 20;

/// Bytes of decoded weights at a time, for a matrix of `values` values and an x of `dtype` or f32.
pub(crate) fn decoded_bytes(values: usize, dtype: Dtype) -> usize {
    values.min(TILE_VALUES) * precise_dtype(dtype).size()
}

/// weight `[rows, cols]` in blocks, x `[n, cols]` of `x_dtype`, out f32 `[n, rows]` in rows of `out_stride` values; out overlaps neither.
pub(crate) struct Case {
    format: MatrixFormat,
    x_dtype: Dtype,
    n: usize,
    rows: usize,
    cols: usize,
    x: DevicePtr<u8>,
    weight: DevicePtr<u8>,
    row_bytes: usize,
    out: DevicePtrMut<f32>,
    out_stride: usize,
    /// Add to `out` instead of replacing it.
    accumulate: bool,
    /// What sums are multiplied with.
    scale: f32,
    /// Whether cuBLAS was opened.
    has_cublas: bool,
}

type Launch = unsafe fn(&mut Tools, &Case) -> Result<()>;

variants! { Case, Launch;
    CUBLAS [blocks::decode]: is_open => by_library;
    INLINE [blocks::matmul]: always => by_kernel;
}

fn is_open(case: &Case) -> Result<(), &'static str> {
    if case.has_cublas { Ok(()) } else { Err("cuBLAS is not open: the device is emulated") }
}

/// Queues `out = scale · x · weightᵀ`, or with `accumulate` adds that to `out`, for the rows of `run` from the first of `matrix` on; `out` is
/// in rows of `out_stride` values.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit, or what the device says.
///
/// # Safety
/// `out` has these rows, and nothing else uses it.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) unsafe fn multiply(
    tools: &mut Tools,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    (matrix, run): (&BlockMatrix, &Run),
    out: DevicePtrMut<f32>,
    out_stride: usize,
    accumulate: bool,
) -> Result<()> {
    let &BlockMatrix { ref data, format, rows: of_piece, cols } = matrix;
    let rows = run.rows;
    x.expect(OP, "x", x.dtype, n, cols)?;
    let case = Case {
        format,
        x_dtype: x.dtype,
        n,
        rows,
        cols,
        x: x.ptr(),
        weight: data.ptr(),
        row_bytes: data.len() / of_piece.max(1),
        out,
        out_stride,
        accumulate,
        scale: x.scale * run.scale,
        has_cublas: tools.cublas.is_some(),
    };
    // Who asks for a product without the library means these too.
    let of_floats = choice.get(MATMUL).filter(|&name| name != CUBLAS).map(|_| INLINE);
    let preferred = (n <= FEW_ROWS).then_some(INLINE);
    let variant = select(OP, VARIANTS, &case, choice.get(OP).or(of_floats).or(preferred))?;
    // SAFETY: the shapes of x and the weights were checked; the caller vouches for `out`.
    unsafe { (variant.launch)(tools, &case) }
}

fn values(case: &Case) -> [Value; 2] {
    [case.format.name().into(), case.x_dtype.name().into()]
}

/// # Safety
/// The case's ranges have the sizes that it says.
unsafe fn by_kernel(tools: &mut Tools, case: &Case) -> Result<()> {
    let arguments = MatmulArgs {
        n: dimension(OP, case.n)?,
        rows: dimension(OP, case.rows)?,
        cols: dimension(OP, case.cols)?,
        out_stride: dimension(OP, case.out_stride)?,
        accumulate: case.accumulate.into(),
        scale: case.scale,
        x: case.x,
        weight: case.weight,
        out: case.out,
    };
    let grid = [arguments.rows.div_ceil(WARPS_PER_BLOCK), arguments.n.div_ceil(ROWS_PER_WARP), 1];
    let config = LaunchConfig { grid, block: [MATMUL_THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: a warp for each row of weights and four rows of x; the caller vouches for the arrays.
    unsafe { launch(&Dependent(tools.device), blocks::matmul(), &values(case), &config, arguments) }
}

/// # Safety
/// As [`by_kernel`].
unsafe fn by_library(tools: &mut Tools, case: &Case) -> Result<()> {
    let &Case { x_dtype, n, rows, cols, x, weight, row_bytes, out, out_stride, accumulate, scale, .. } = case;
    let Some(cublas) = tools.cublas else {
        return Err(Error::Device("cuBLAS was not opened: --kernel chose another matmul".into()));
    };
    let decoded = tools.decoded.ptr_mut();
    let tile = tools.decoded.len() / (cols * x_dtype.size()).max(1);
    if tile == 0 {
        return Err(Error::Request(format!("{OP}: there is no room for a row of {cols} decoded values")));
    }
    for first in (0..rows).step_by(tile) {
        let rows = tile.min(rows - first);
        let arguments =
            DecodeArgs { cols: dimension(OP, cols)?, blocks: weight.add(first * row_bytes), out: decoded };
        let config = elements_of_rows(dimension(OP, rows)?, arguments.cols, blocks::BLOCK_SIZE);
        let product = Product {
            dtype: x_dtype,
            n,
            rows,
            cols,
            x,
            weight: decoded.into(),
            out: out.add(first).cast(),
            out_stride,
            out_dtype: Dtype::F32,
            accumulate,
            scale,
        };
        // SAFETY: there is room for the tile; what is queued runs in order; the caller vouches for x and out.
        unsafe {
            launch(&**tools.device, blocks::decode(), &values(case), &config, arguments)?;
            cublas.matmul(&product)?;
        }
    }
    Ok(())
}
