//! Products with matrices in blocks: few rows by a kernel that decodes as it reads, more by the library, which gets some rows of the
//! weights at a time, decoded to the format of x.

use super::{CUBLAS, OP as MATMUL, Tools};
use crate::cublas::Product;
use crate::decode::BlockRows;
use crate::device::{Dependent, Device};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::launch::{dimension, launch};
use crate::precise_dtype;
use crate::tensor::Activation;
use crate::units::{HalvesPlan, Tensor, UnitMatrix, Units};
use crate::variant::{KernelChoice, select, variants};
use crate::weight::{BlockMatrix, Run, Values};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::blocks::few_rows::{
    self, MATMUL_THREADS, MMA_ROWS, MatmulArgs, ROWS_PER_WARP, WARPS_PER_BLOCK,
};
use gpu_kernels::decode;
use gpu_kernels::fused::units::matmul_add;
use gpu_kernels::units;

pub(crate) const OP: &str = "matmul_blocks";

/// The kernel that decodes as it reads, a value at a time.
const INLINE: &str = "inline";

/// The kernel that decodes eight values at a time, for inputs of more digits or a wider range than f16.
const EIGHTS: &str = "eights";

/// The kernel that multiplies what was repacked.
const UNITS: &str = "units";

/// The kernels that decode units in registers, for tensor cores.
const HALVES: &str = "halves";

/// The same for the tensor cores' instruction of a warpgroup.
const WGMMA: &str = "wgmma";

/// The kernel that decodes eight values at a time to f16, for tensor cores.
const MMA: &str = "mma";

/// Rows up to which [`MMA`] or [`EIGHTS`] is taken where nothing is asked for: with it the weights are read once for so many.
const FEW_ROWS: usize = 8;

/// The same of [`UNITS`], with which they are read once for eight.
const FEW_ROWS_OF_UNITS: usize = 8;

/// Rows up to which [`HALVES`] takes less than decoding for the library does.
const SOME_ROWS_OF_HALVES: usize = 192;

/// Rows up to which [`WGMMA`] does.
const SOME_ROWS_OF_WGMMA: usize = 256;

/// Values of the weights that are decoded at a time, at most: 288 MiB of f16, all of gate and up of a model of 7 B parameters.
const TILE_VALUES: usize = 144 << 20;

/// Whether the kernel that is asked for takes matrices as files have them.
pub(crate) fn stay_as_in_the_file(choice: &KernelChoice) -> bool {
    choice.get(OP).is_some_and(|name| [INLINE, EIGHTS, MMA].contains(&name))
}

/// Bytes of decoded weights at a time, for a matrix of `values` values and an x of `dtype` or f32.
pub(crate) fn decoded_bytes(values: usize, dtype: Dtype) -> usize {
    values.min(TILE_VALUES) * precise_dtype(dtype).size()
}

/// Where a matrix is.
#[derive(Clone, Copy)]
enum Place {
    /// Blocks of that many bytes a row.
    Blocks(DevicePtr<u8>, usize),
    Units(Units),
}

/// weight `[rows, cols]` in blocks, x `[n, cols]` of `x_dtype`, out f32 `[n, rows]` in rows of `out_stride` values; out overlaps neither.
pub(crate) struct Case {
    format: MatrixFormat,
    x_dtype: Dtype,
    n: usize,
    rows: usize,
    cols: usize,
    x: DevicePtr<u8>,
    weight: Place,
    out: DevicePtrMut<f32>,
    out_stride: usize,
    /// Add to `out` instead of replacing it.
    accumulate: bool,
    /// What sums are multiplied with.
    scale: f32,
    /// Whether cuBLAS was opened.
    has_cublas: bool,
    /// How units are decoded in registers, where there is a kernel for so many rows and it may be taken.
    halves: Option<HalvesPlan>,
    /// Likewise.
    wgmma: Option<HalvesPlan>,
}

type Launch = unsafe fn(&mut Tools, &Case) -> Result<()>;

variants! { Case, Launch;
    CUBLAS [decode::eights, units::decode]: is_open => by_library;
    UNITS [matmul_add::units]: is_repacked => by_units;
    WGMMA [units::warpgroups::wgmma]: has_wgmma => |tools, case| unsafe { by_halves(tools, case, case.wgmma) };
    HALVES [units::halves::halves]: has_halves => |tools, case| unsafe { by_halves(tools, case, case.halves) };
    MMA [few_rows::mma]: is_f16_as_in_the_file => by_mma;
    EIGHTS [few_rows::eights]: is_wide_as_in_the_file => by_eights;
    INLINE [few_rows::inline]: is_as_in_the_file => by_inline;
}

fn is_repacked(case: &Case) -> Result<(), &'static str> {
    match case.weight {
        Place::Units(_) if case.x_dtype == Dtype::F16 => Ok(()),
        Place::Units(_) => Err("x is not f16"),
        Place::Blocks(..) => Err("the weights are as in the file"),
    }
}

fn has_halves(case: &Case) -> Result<(), &'static str> {
    is_repacked(case)?;
    if case.halves.is_some() { Ok(()) } else { Err("there is no kernel for so many rows") }
}

fn has_wgmma(case: &Case) -> Result<(), &'static str> {
    is_repacked(case)?;
    if case.wgmma.is_some() {
        Ok(())
    } else {
        Err("the device has no wgmma, or there is no kernel for so many rows")
    }
}

fn is_as_in_the_file(case: &Case) -> Result<(), &'static str> {
    match case.weight {
        Place::Blocks(..) => Ok(()),
        Place::Units(_) => Err("the weights were repacked"),
    }
}

fn is_f16_as_in_the_file(case: &Case) -> Result<(), &'static str> {
    is_as_in_the_file(case)?;
    if case.x_dtype == Dtype::F16 { Ok(()) } else { Err("x is not f16") }
}

fn is_wide_as_in_the_file(case: &Case) -> Result<(), &'static str> {
    is_as_in_the_file(case)?;
    if case.x_dtype == Dtype::F16 { Err("x is f16, for which there is mma") } else { Ok(()) }
}

fn is_open(case: &Case) -> Result<(), &'static str> {
    if case.has_cublas { Ok(()) } else { Err("cuBLAS is not open: the device is emulated") }
}

/// Queues `out = scale · x · weightᵀ`, or with `accumulate` adds that to `out`, for the rows of `run`, which are in blocks; `out` is
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
    run: &Run<'_>,
    out: DevicePtrMut<f32>,
    out_stride: usize,
    accumulate: bool,
) -> Result<()> {
    let (weight, format, cols) = match run.values {
        Values::Blocks(BlockMatrix { data, format, rows, cols }) => {
            (Place::Blocks(data.ptr(), data.len() / rows.max(&1)), *format, *cols)
        }
        Values::Units(UnitMatrix { units, .. }) => (Place::Units(*units), units.format, units.cols),
        Values::Float(_) => return Err(Error::Request(format!("{OP}: the weights are floats"))),
    };
    let rows = run.rows;
    x.expect(OP, "x", x.dtype, n, cols)?;
    let info = tools.device.info();
    let plan = |tensor, variant| match weight {
        Place::Units(units) if n > FEW_ROWS_OF_UNITS || choice.get(OP) == Some(variant) => {
            units.plan_of_halves(tensor, info, [n, rows])
        }
        _ => None,
    };
    let case = Case {
        format,
        x_dtype: x.dtype,
        n,
        rows,
        cols,
        x: x.ptr(),
        weight,
        out,
        out_stride,
        accumulate,
        scale: x.scale * run.scale,
        has_cublas: tools.cublas.is_some(),
        halves: plan(Tensor::Mma, HALVES),
        wgmma: tools.device.has_wgmma().then(|| plan(Tensor::Wgmma, WGMMA)).flatten(),
    };
    // Who asks for a product without the library means these too.
    let by_kernel = match (weight, case.x_dtype) {
        (Place::Units(_), _) => UNITS,
        (Place::Blocks(..), Dtype::F16) => MMA,
        (Place::Blocks(..), _) => EIGHTS,
    };
    let of_floats = choice.get(MATMUL).filter(|&name| name != CUBLAS).map(|_| by_kernel);
    let few = if by_kernel == UNITS { FEW_ROWS_OF_UNITS } else { FEW_ROWS };
    let preferred = match n {
        _ if n <= few => Some(by_kernel),
        _ if n <= SOME_ROWS_OF_WGMMA && has_wgmma(&case).is_ok() => Some(WGMMA),
        _ if n <= SOME_ROWS_OF_HALVES && has_halves(&case).is_ok() => Some(HALVES),
        _ => None,
    };
    let variant = select(OP, VARIANTS, &case, choice.get(OP).or(of_floats).or(preferred))?;
    // SAFETY: the shapes of x and the weights were checked; the caller vouches for `out`.
    unsafe { (variant.launch)(tools, &case) }
}

fn values(case: &Case) -> [Value; 2] {
    [case.format.name().into(), case.x_dtype.name().into()]
}

/// # Safety
/// The case's ranges have the sizes that it says.
unsafe fn by_units(tools: &mut Tools, case: &Case) -> Result<()> {
    let &Case { n, rows, x, scale, out, out_stride, accumulate, .. } = case;
    let Place::Units(units) = case.weight else { return Err(Error::Request(format!("{OP}: not repacked"))) };
    // SAFETY: the caller's promise.
    unsafe { units.multiply(tools.device, tools.slices, [n, rows], x, scale, (out, out_stride), accumulate) }
}

/// # Safety
/// As [`by_units`].
unsafe fn by_halves(tools: &mut Tools, case: &Case, plan: Option<HalvesPlan>) -> Result<()> {
    let &Case { n, rows, x, scale, out, out_stride, accumulate, .. } = case;
    let (Place::Units(units), Some(plan)) = (case.weight, plan) else {
        return Err(Error::Request(format!("{OP}: not repacked, or too many rows")));
    };
    let (room, out) = ((&mut *tools.decoded, &mut tools.slices.counters), (out, out_stride));
    // SAFETY: the caller's promise; what is decoded for the library is used by nobody else now.
    unsafe { units.multiply_halves(tools.device, plan, room, [n, rows], x, scale, out, accumulate) }
}

/// # Safety
/// As [`by_units`].
unsafe fn by_inline(tools: &mut Tools, case: &Case) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { by_warps(tools, case, few_rows::inline(), &values(case), [WARPS_PER_BLOCK, ROWS_PER_WARP]) }
}

/// # Safety
/// As [`by_units`].
unsafe fn by_eights(tools: &mut Tools, case: &Case) -> Result<()> {
    // Of the kernel: rows of weights and of x that a warp takes.
    let [rows, n] = if case.n == 1 { [1, 1] } else { [2, FEW_ROWS as u32] };
    let [format, dtype] = values(case);
    let of_block = [rows * WARPS_PER_BLOCK, n];
    // SAFETY: the caller's promise.
    unsafe { by_warps(tools, case, few_rows::eights(), &[format, dtype, n.into()], of_block) }
}

/// # Safety
/// As [`by_units`].
unsafe fn by_mma(tools: &mut Tools, case: &Case) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { by_warps(tools, case, few_rows::mma(), &values(case)[..1], MMA_ROWS) }
}

/// Launches one of `kernels` with a block for so many rows of weights and of x.
///
/// # Safety
/// As [`by_units`]; the kernel takes so many.
unsafe fn by_warps(
    tools: &mut Tools,
    case: &Case,
    kernels: &'static Kernels<MatmulArgs>,
    values: &[Value],
    [rows_of_block, n_of_block]: [u32; 2],
) -> Result<()> {
    let Place::Blocks(weight, _) = case.weight else { return Err(Error::Request(format!("{OP}: repacked"))) };
    let arguments = MatmulArgs {
        n: dimension(OP, case.n)?,
        rows: dimension(OP, case.rows)?,
        cols: dimension(OP, case.cols)?,
        out_stride: dimension(OP, case.out_stride)?,
        accumulate: case.accumulate.into(),
        scale: case.scale,
        x: case.x,
        weight,
        out: case.out,
    };
    let grid = [arguments.rows.div_ceil(rows_of_block), arguments.n.div_ceil(n_of_block), 1];
    let config = LaunchConfig { grid, block: [MATMUL_THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: blocks for all rows of weights and of x; the caller vouches for the arrays.
    unsafe { launch(&Dependent(tools.device), kernels, values, &config, arguments) }
}

/// # Safety
/// As [`by_kernel`].
unsafe fn by_library(tools: &mut Tools, case: &Case) -> Result<()> {
    let &Case { x_dtype, n, rows, cols, x, out, out_stride, accumulate, scale, .. } = case;
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
            decode_tile(tools.device, case, first, rows, decoded)?;
            cublas.matmul(&product)?;
        }
    }
    Ok(())
}

/// Queues decoding some rows of the weights to the format of x.
///
/// # Safety
/// The case has these rows, `out` room for them.
unsafe fn decode_tile(
    device: &Device,
    case: &Case,
    first: usize,
    rows: usize,
    out: DevicePtrMut<u8>,
) -> Result<()> {
    match case.weight {
        // SAFETY: the caller's promise.
        Place::Units(units) => unsafe {
            let all = Units { rows: case.rows, ..units };
            all.decode(device, first, rows, case.x_dtype, out)
        },
        Place::Blocks(weight, row_bytes) => {
            let at = weight.add(first * row_bytes);
            let rows = BlockRows { at, format: case.format, rows, cols: case.cols };
            // SAFETY: the caller's promise.
            unsafe { rows.decode_eights(device, case.x_dtype, out) }
        }
    }
}
