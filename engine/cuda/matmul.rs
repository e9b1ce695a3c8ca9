//! Products with weights: cuBLAS, or kernels whose results do not depend on the other rows of the batch.

use super::add;
use super::convert;
use super::cublas::{Cublas, Product};
use super::device::{Dependent, Device};
use super::fused::MAX_STAGE_BYTES;
use super::launch::{always, dimension, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, Tensor};
use super::units::Slices;
use super::variant::{KernelChoice, Variant, select, variants};
use super::weight::{Run, Scales, Values, Weight};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::convert as convert_kernels;
use gpu_kernels::fused::{WORD, stage_bytes};
use gpu_kernels::matmul::ahead::{self, COLUMNS_PER_BLOCK};
use gpu_kernels::matmul::*;
use std::rc::Rc;

pub(super) mod blocks;

pub(super) const OP: &str = "matmul";

/// The variant that goes through the library.
pub(super) const CUBLAS: &str = "cublas";

/// Rows up to which f32 inputs with bf16 weights go through [`AHEAD`] or [`GEMV`], where nothing is asked for: a decode step is bound by
/// reading the weights, and cuBLAS would read them twice.
const FEW_ROWS: usize = 8;

/// Blocks of the variant `ahead` that a multiprocessor runs at a time.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 2;

/// The variant that reads 16 bytes at once.
const GEMV: &str = "gemv";

/// The variant that has many of these reads in flight.
const AHEAD: &str = "ahead";

/// weight `[rows, cols]` of `dtype`, x `[n, cols]` of `dtype` or f32, out `[n, rows]` of `out_dtype`; out overlaps neither.
pub(super) struct Case {
    dtype: Dtype,
    x_dtype: Dtype,
    n: usize,
    rows: usize,
    cols: usize,
    x: DevicePtr<u8>,
    weight: DevicePtr<u8>,
    out: DevicePtrMut<u8>,
    /// From one row of `out` to the next, in values.
    out_stride: usize,
    /// f32; f16 for the library alone, where the weights are f16.
    out_dtype: Dtype,
    /// What sums are multiplied with.
    scale: f32,
    /// Whether the library adds to `out`.
    accumulate: bool,
    /// Whether cuBLAS was opened.
    has_cublas: bool,
    /// The most shared memory that a block may have for rows of x.
    stage_limit: usize,
}

/// What a product may use besides its operands.
pub(super) struct Tools<'a> {
    pub device: &'a Rc<Device>,
    pub cublas: Option<&'a Cublas>,
    /// Room for twice the values of x in bf16, where x is f32 and the weights are bf16.
    pub bf16_halves: &'a mut DeviceBuffer<u16>,
    /// Room for weights that are decoded for the library.
    pub decoded: &'a mut DeviceBuffer<u8>,
    pub scratch: &'a mut Scratch,
    /// Room for products with slices of weights in units.
    pub slices: &'a mut Slices,
}

/// Where products go that are added to something by another kernel. It grows, for they are the exception.
#[derive(Default)]
pub(super) struct Scratch {
    tensor: Option<Tensor>,
    /// Whether it has moved: what was recorded with its address is out of date.
    pub has_moved: bool,
}

impl Scratch {
    /// Room for `[n, cols]`.
    fn room(&mut self, device: &Rc<Device>, n: usize, cols: usize) -> Result<&mut Tensor> {
        let fits = |tensor: &Tensor| tensor.rows >= n && tensor.cols == cols;
        if !self.tensor.as_ref().is_some_and(fits) {
            self.tensor = None;
            self.has_moved = true;
        }
        match &mut self.tensor {
            Some(tensor) => Ok(tensor),
            none => Ok(none.insert(Tensor::new(device, n, cols)?)),
        }
    }
}

type Launch = unsafe fn(&mut Tools, &Case) -> Result<()>;

variants! { Case, Launch;
    CUBLAS [convert_kernels::split]: is_open => launch_cublas;
    AHEAD [ahead::ahead]: fits_in_stage => |tools, case| unsafe { launch_ahead(tools, case, ahead::ahead()) };
    GEMV [gemv]: whole_words => |tools, case| unsafe { launch_warps(tools, case, gemv()) };
    "plain" [plain]: always => |tools, case| unsafe { launch_warps(tools, case, plain()) };
}

fn is_open(case: &Case) -> Result<(), &'static str> {
    if case.has_cublas { Ok(()) } else { Err("cuBLAS is not open: the device is emulated") }
}

fn whole_words(case: &Case) -> Result<(), &'static str> {
    let is_whole = (case.cols * case.dtype.size()).is_multiple_of(16);
    if is_whole { Ok(()) } else { Err("a row is not a multiple of 16 bytes") }
}

fn fits_in_stage(case: &Case) -> Result<(), &'static str> {
    if case.dtype == Dtype::F32 {
        Err("the weights are f32")
    } else if case.cols == 0 || !case.cols.is_multiple_of(WORD as usize) {
        Err("a row is not a multiple of 16 bytes")
    } else if case.cols * 4 > case.stage_limit {
        Err("a row of x does not fit in shared memory")
    } else {
        Ok(())
    }
}

/// # Safety
/// The case's ranges have the sizes that it says.
unsafe fn launch_cublas(tools: &mut Tools, case: &Case) -> Result<()> {
    let Some(cublas) = tools.cublas else {
        return Err(Error::Device("cuBLAS was not opened: --kernel chose another matmul".into()));
    };
    let &Case { dtype, n, rows, cols, x, weight, out, out_stride, out_dtype, accumulate, scale, .. } = case;
    let product = Product { dtype, n, rows, cols, x, weight, out, out_stride, out_dtype, accumulate, scale };
    if !case.is_mixed() {
        // SAFETY: the case's ranges have these sizes.
        return unsafe { cublas.matmul(&product) };
    }
    // SAFETY: as above; both halves have the shape of x.
    unsafe {
        let [high, low] = convert::split(tools.device, n * cols, x.cast(), tools.bf16_halves)?;
        cublas.matmul(&Product { x: high, ..product })?;
        cublas.matmul(&Product { x: low, accumulate: true, ..product })
    }
}

/// # Safety
/// The case's ranges have the sizes that it says, and it [`fits_in_stage`].
unsafe fn launch_ahead(tools: &Tools, case: &Case, kernels: &Kernels<MatmulArgs>) -> Result<()> {
    let config = ahead_config(tools.device, case)?;
    let [weights, x] = formats(case);
    let values = [weights, x, rows_of_x(case).into()];
    // SAFETY: a group of lanes for each row of weights, room for the rows of x; rows are aligned to 16 bytes, since buffers are and a
    // row is a multiple of that. No kernel writes weights.
    unsafe { launch(&Dependent(tools.device), kernels, &values, &config, arguments(case)?) }
}

impl Case {
    /// Whether x is f32 and the weights are bf16.
    fn is_mixed(&self) -> bool {
        self.x_dtype != self.dtype
    }
}

/// Launches a kernel whose warps have a row of weights each.
///
/// # Safety
/// The case's ranges have the sizes that it says; for `gemv` its rows are [`whole_words`].
unsafe fn launch_warps(tools: &Tools, case: &Case, kernels: &Kernels<MatmulArgs>) -> Result<()> {
    let arguments = arguments(case)?;
    let device: &Device = tools.device;
    // SAFETY: the grid covers all rows; buffers are aligned, so whole words are. The caller vouches for the ranges.
    unsafe { launch(device, kernels, &formats(case), &config(&arguments), arguments) }
}

/// What the Rust kernels take.
fn arguments(case: &Case) -> Result<MatmulArgs> {
    let &Case { x, weight, out, scale, .. } = case;
    let (n, rows, cols) = (dimension(OP, case.n)?, dimension(OP, case.rows)?, dimension(OP, case.cols)?);
    Ok(MatmulArgs {
        n,
        rows,
        cols,
        out_stride: dimension(OP, case.out_stride)?,
        scale,
        x,
        weight,
        out: out.cast(),
    })
}

/// Of the weights and of x.
fn formats(case: &Case) -> [Value; 2] {
    [case.dtype.name().into(), case.x_dtype.name().into()]
}

/// The grid of kernels whose warps have a row of weights each.
fn config(arguments: &MatmulArgs) -> LaunchConfig {
    let grid = [arguments.rows.div_ceil(WARPS_PER_BLOCK), arguments.n.div_ceil(ROWS_PER_WARP), 1];
    LaunchConfig { grid, block: [BLOCK_THREADS, 1, 1], shared_bytes: 0 }
}

/// Rows of x that a block of the variant `ahead` takes: few where they fit in shared memory, else one. A row's bits are the same.
fn rows_of_x(case: &Case) -> u32 {
    let few = (ahead::FEW as usize).min(case.n);
    if few > 1 && few * case.cols * 4 <= case.stage_limit { ahead::FEW } else { 1 }
}

/// The grid of the variant `ahead`: as many blocks as there is work for, but no more than the device runs at a time.
fn ahead_config(device: &Device, case: &Case) -> Result<LaunchConfig> {
    let (n, rows, cols) = (dimension(OP, case.n)?, dimension(OP, case.rows)?, dimension(OP, case.cols)?);
    let rows_of_x = rows_of_x(case);
    let groups = n.div_ceil(rows_of_x);
    let resident = device.info().multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
    let blocks = rows.div_ceil(COLUMNS_PER_BLOCK).min(resident.div_ceil(groups)).max(1);
    let shared_bytes = stage_bytes(rows_of_x.min(n), cols);
    Ok(LaunchConfig { grid: [blocks, groups, 1], block: [ahead::BLOCK_SIZE, 1, 1], shared_bytes })
}

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    /// It replaces what is there.
    Written,
    /// It is added to what is there.
    Added,
}

/// `out = x · weightᵀ`: `[n, in_features] -> [n, out_features]`.
///
/// Where x is f32 and the weights are bf16, nothing of x is lost to rounding: the Rust kernels multiply it as it is, and
/// cuBLAS gets it in two halves of bf16.
///
/// cuBLAS picks another algorithm for another `n`, so a row's last bits may differ alone and in a batch; the variants
/// `ahead`, `gemv` and `plain` give the same bits always (`--kernel matmul=gemv`).
pub(super) fn matmul(
    mut tools: Tools,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    out.expect(OP, "out", n, weight.rows)?;
    multiply(&mut tools, choice, n, x, &runs(weight), out.into(), Sum::Written)
}

/// What is multiplied at once, into products as they are.
fn runs(weight: &Weight) -> Vec<Run<'_>> {
    weight.runs(|scales| scales.stored.get())
}

/// As [`matmul`], added to what is in `out`: by the library itself, or by another kernel.
pub(super) fn matmul_accumulate(
    mut tools: Tools,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    out.expect(OP, "out", n, weight.rows)?;
    let runs = runs(weight);
    let adds = |run: &Run| match run.values {
        Values::Float(matrix) => {
            let case = case(&tools, n, x, matrix, run, Out::from(&mut *out))?;
            Ok(variant(&case, choice)?.name == CUBLAS)
        }
        Values::Blocks(_) | Values::Units(_) => Ok(true),
    };
    if n == 0 || runs.iter().map(adds).collect::<Result<Vec<_>>>()?.iter().all(|&adds| adds) {
        return multiply(&mut tools, choice, n, x, &runs, out.into(), Sum::Added);
    }
    let product = tools.scratch.room(tools.device, n, weight.rows)?.into();
    multiply(&mut tools, choice, n, x, &runs, product, Sum::Written)?;
    add::add(tools.device, choice, n, out, tools.scratch.room(tools.device, n, weight.rows)?)
}

/// As [`matmul`], divided by [`Scales::product`], with `out` in f16 where cuBLAS multiplies f16, since that halves what is written and what
/// the next operation reads, and in f32 elsewhere, or where it is not to be rounded.
pub(super) fn matmul_rounded(
    mut tools: Tools,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    weight: &Weight,
    may_round: bool,
    out: &mut Activation,
) -> Result<()> {
    out.set_dtype(Dtype::F32)?;
    out.expect(OP, "out", Dtype::F32, n, weight.rows)?;
    let runs = weight.runs(|scales: &Scales| scales.stored.get() / scales.product.get());
    let rounds = |run: &Run, out: Out| match run.values {
        Values::Float(matrix) if may_round && n > 0 && matrix.dtype == Dtype::F16 => {
            Ok(variant(&case(&tools, n, x, matrix, run, out)?, choice)?.name == CUBLAS)
        }
        _ => Ok(false),
    };
    let place = Out { start: out.ptr_mut(), stride: weight.rows, dtype: Dtype::F32 };
    let rounded = runs.iter().map(|run| rounds(run, place)).collect::<Result<Vec<_>>>()?;
    if !rounded.is_empty() && rounded.iter().all(|&rounds| rounds) {
        out.set_dtype(Dtype::F16)?;
    }
    // There is room for f32, so there is for f16.
    multiply(&mut tools, choice, n, x, &runs, Out { dtype: out.dtype, ..place }, Sum::Written)
}

/// Where a product goes: rows of `stride` values of `dtype`, for which there is room, and which nothing else uses.
#[derive(Clone, Copy)]
struct Out {
    start: DevicePtrMut<u8>,
    stride: usize,
    dtype: Dtype,
}

impl From<&mut Tensor> for Out {
    fn from(tensor: &mut Tensor) -> Self {
        Self { start: tensor.ptr_mut().cast(), stride: tensor.cols, dtype: Dtype::F32 }
    }
}

/// The product with each of `runs`, as many columns of `out` as they have rows together.
fn multiply(
    tools: &mut Tools,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    runs: &[Run],
    mut out: Out,
    sum: Sum,
) -> Result<()> {
    for run in runs.iter().filter(|_| n > 0) {
        match run.values {
            Values::Float(matrix) => {
                let mut case = case(tools, n, x, matrix, run, out)?;
                case.accumulate = sum == Sum::Added;
                let variant = variant(&case, choice)?;
                // SAFETY: the shapes were checked; the caller vouches for `out`.
                unsafe { (variant.launch)(tools, &case)? }
            }
            Values::Blocks(_) | Values::Units(_) => {
                let (start, stride) = (out.start.cast(), out.stride);
                // SAFETY: as above.
                unsafe { blocks::multiply(tools, choice, n, x, run, start, stride, sum == Sum::Added)? }
            }
        }
        out.start = out.start.add(run.rows * out.dtype.size());
    }
    Ok(())
}

/// The variant for a case.
fn variant(case: &Case, choice: &KernelChoice) -> Result<&'static Variant<Case, Launch>> {
    select(OP, VARIANTS, case, choice.get(OP).or(preferred(case)))
}

/// Checks x and the weights, the rows of `run` from the first of `weight` on; there is room for the product in `out`.
fn case(tools: &Tools, n: usize, x: &Activation, weight: &Activation, run: &Run, out: Out) -> Result<Case> {
    let &Activation { dtype, cols, .. } = weight;
    let mixed = dtype == Dtype::Bf16 && x.dtype == Dtype::F32;
    let x_dtype = if mixed { x.dtype } else { dtype };
    x.expect(OP, "x", x_dtype, n, cols)?;
    Ok(Case {
        dtype,
        x_dtype,
        n,
        rows: run.rows,
        cols,
        x: x.ptr(),
        weight: weight.ptr(),
        out: out.start,
        out_stride: out.stride,
        out_dtype: out.dtype,
        scale: x.scale * run.scale,
        accumulate: false,
        has_cublas: tools.cublas.is_some(),
        stage_limit: tools.device.info().shared_memory_per_block.min(MAX_STAGE_BYTES as usize),
    })
}

/// What is taken before the table's first where nothing is asked for.
fn preferred(case: &Case) -> Option<&'static str> {
    if !case.is_mixed() || case.n > FEW_ROWS {
        return None;
    }
    let known = |name| VARIANTS.iter().find(|variant: &&Variant<Case, Launch>| variant.name == name);
    let eligible = |variant: &&Variant<Case, Launch>| (variant.eligible)(case).is_ok();
    [AHEAD, GEMV].into_iter().filter_map(known).find(eligible).map(|variant| variant.name)
}

/// The variant that is taken before the table's first for x `[n, cols]` where nothing is asked for.
pub fn preferred_matmul(dtype: Dtype, x_dtype: Dtype, n: usize, cols: usize) -> Option<&'static str> {
    let (x, weight, out) = (DevicePtr::from_raw(0), DevicePtr::from_raw(0), DevicePtrMut::from_raw(0));
    let stage_limit = MAX_STAGE_BYTES as usize;
    preferred(&Case {
        dtype,
        x_dtype,
        n,
        rows: 1,
        cols,
        x,
        weight,
        out,
        out_stride: 1,
        scale: 1.0,
        out_dtype: Dtype::F32,
        accumulate: false,
        has_cublas: true,
        stage_limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_is_preferred_and_gemv_needs_whole_vectors() {
        let (x, weight, out) = (DevicePtr::from_raw(0), DevicePtr::from_raw(0), DevicePtrMut::from_raw(0));
        let mut case = Case {
            dtype: Dtype::F16,
            x_dtype: Dtype::F16,
            n: 3,
            rows: 5,
            cols: 24,
            x,
            weight,
            out,
            out_stride: 5,
            out_dtype: Dtype::F32,
            scale: 1.0,
            accumulate: false,
            has_cublas: true,
            stage_limit: MAX_STAGE_BYTES as usize,
        };
        assert_eq!(select(OP, VARIANTS, &case, None).unwrap().name, CUBLAS);
        assert_eq!(select(OP, VARIANTS, &case, Some("gemv")).unwrap().name, "gemv");
        assert_eq!(preferred(&case), None);
        (case.dtype, case.x_dtype) = (Dtype::Bf16, Dtype::F32);
        assert_eq!(preferred(&case), Some(AHEAD));
        case.n = FEW_ROWS + 1;
        assert_eq!(preferred(&case), None);
        case.n = 3;
        case.cols = 20;
        assert_eq!(preferred(&case), None);
        assert!(select(OP, VARIANTS, &case, Some("gemv")).is_err());
        assert_eq!(config(&arguments(&case).unwrap()).grid, [1, 1, 1]);
    }
    #[test]
    fn ahead_takes_few_rows_of_x_where_they_fit_and_one_where_not() {
        let (x, weight, out) = (DevicePtr::from_raw(0), DevicePtr::from_raw(0), DevicePtrMut::from_raw(0));
        let case = |dtype, n, cols| Case {
            dtype,
            x_dtype: dtype,
            n,
            rows: 5,
            cols,
            x,
            weight,
            out,
            out_stride: 5,
            out_dtype: Dtype::F32,
            scale: 1.0,
            accumulate: false,
            has_cublas: true,
            stage_limit: 100 << 10,
        };
        for (n, cols, rows_of_a_block) in [(1, 896, 1), (2, 896, 4), (9, 6400, 4), (9, 6408, 1), (3, 8536, 1)]
        {
            let case = case(Dtype::Bf16, n, cols);
            assert!(select(OP, VARIANTS, &case, Some("ahead")).is_ok());
            assert_eq!(rows_of_x(&case), rows_of_a_block, "{n} rows of {cols}");
        }
        for (dtype, cols) in [(Dtype::F32, 896), (Dtype::F16, 20), (Dtype::F16, 25_608)] {
            assert!(select(OP, VARIANTS, &case(dtype, 1, cols), Some("ahead")).is_err());
        }
    }
}
