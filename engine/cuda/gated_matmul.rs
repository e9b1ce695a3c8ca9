//! The products of a gated MLP and its activation at once, for many rows.

use super::device::Device;
use super::launch::{Launch, always, dimension, launch};
use super::matmul;
use super::silu_mul;
use super::tensor::Activation;
use super::tensor_map::TensorMaps;
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, Kernels, LaunchConfig};
use gpu_kernels::gated_matmul::{
    BLOCK_SIZE, BOX_ROWS, DEPTH, GatedMatmulArgs, TILE_COLUMNS, TILE_ROWS, WGMMA_SHARED_BYTES, WGMMA_THREADS,
    plain, wgmma,
};
use std::rc::Rc;

pub(super) const OP: &str = "gated_matmul";

/// The operations that it replaces.
pub(super) const REPLACED: [&str; 2] = [matmul::OP, silu_mul::OP];

/// What the kernels take.
pub(super) struct Case {
    dtype: Dtype,
    has_wgmma: bool,
    arguments: GatedMatmulArgs,
}

variants! { Case, Launch<Case>;
    "wgmma" [wgmma]: whole_tiles => |device, case| unsafe { launch_wgmma(device, case, wgmma()) };
    "plain" [plain]: always => |device, case| unsafe { launch_plain(device, case, plain()) };
}

fn whole_tiles(case: &Case) -> Result<(), &'static str> {
    let GatedMatmulArgs { rows, cols, .. } = case.arguments;
    multiplies(case.has_wgmma, case.dtype, [rows as usize, cols as usize])
}

/// What warpgroups multiply: gate and up `[rows, cols]`.
fn multiplies(has_wgmma: bool, dtype: Dtype, [rows, cols]: [usize; 2]) -> Result<(), &'static str> {
    match () {
        () if !has_wgmma => Err("the device has no wgmma"),
        () if dtype != Dtype::F16 => Err("the weights are not f16"),
        () if !cols.is_multiple_of(DEPTH as usize) || cols == 0 => Err("in_features is not a multiple of 64"),
        () if !rows.is_multiple_of(TILE_COLUMNS as usize) => Err("intermediate_size is not a multiple of 64"),
        () => Ok(()),
    }
}

/// # Safety
/// The case is whole, and one for the kernel.
unsafe fn launch_wgmma(device: &Device, case: &Case, kernels: &Kernels<GatedMatmulArgs>) -> Result<()> {
    let tiles = case.arguments.n.div_ceil(TILE_ROWS) * (case.arguments.rows / TILE_COLUMNS);
    let config = LaunchConfig {
        grid: [tiles.min(device.info().multiprocessors), 1, 1],
        block: [WGMMA_THREADS, 1, 1],
        shared_bytes: WGMMA_SHARED_BYTES,
    };
    // SAFETY: the caller vouches for the case; buffers are aligned.
    unsafe { launch(device, kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

/// # Safety
/// The case is whole.
unsafe fn launch_plain(device: &Device, case: &Case, kernels: &Kernels<GatedMatmulArgs>) -> Result<()> {
    let grid = [case.arguments.n, case.arguments.rows.div_ceil(BLOCK_SIZE), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a thread for each result; the caller vouches for the case.
    unsafe { launch(device, kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

/// The matrices of gate and up, what is multiplied with them, and where it goes.
pub(super) struct Operands<'a> {
    pub maps: &'a mut TensorMaps,
    pub n: usize,
    pub x: &'a Activation,
    pub gate: &'a Activation,
    pub up: &'a Activation,
    /// What products with gate and up are multiplied with.
    pub scales: [f32; 2],
    pub out: &'a mut Activation,
}

/// Whether the tensor cores' kernel takes matrices of this shape, and is the faster way for so many rows: it has the tiles to keep every multiprocessor busy,
/// and more than reading weights to do.
pub(super) fn suits(device: &Device, n: usize, matrix: &Activation) -> bool {
    let tiles = n.div_ceil(TILE_ROWS as usize) * (matrix.rows / TILE_COLUMNS as usize);
    multiplies(device.has_wgmma(), matrix.dtype, [matrix.rows, matrix.cols]).is_ok()
        && !device.is_emulated()
        && n > TILE_ROWS as usize
        && tiles >= 2 * device.info().multiprocessors as usize
}

/// `out = silu(scale * x · gateᵀ) * (scale * x · upᵀ)`: `[n, hidden_size] -> [n, intermediate_size]`. Whether it was done: not while a graph is recorded, if a map of
/// the matrices is missing.
pub(super) fn gated_matmul(device: &Rc<Device>, choice: &KernelChoice, operands: Operands) -> Result<bool> {
    let Operands { maps, n, x, gate, up, scales: [gate_scale, up_scale], out } = operands;
    let dtype = gate.dtype;
    if up.dtype != dtype || (up.rows, up.cols) != (gate.rows, gate.cols) {
        return Err(Error::Request(format!("{OP}: gate and up must have one shape and format")));
    }
    if !matches!(dtype, Dtype::F16 | Dtype::Bf16) {
        return Err(Error::Request(format!("{OP}: there is no kernel of {dtype}")));
    }
    x.expect(OP, "x", dtype, n, gate.cols)?;
    out.expect(OP, "out", dtype, n, gate.rows)?;
    let arguments = GatedMatmulArgs {
        n: dimension(OP, n)?,
        rows: dimension(OP, gate.rows)?,
        cols: dimension(OP, gate.cols)?,
        gate_scale: x.scale * gate_scale,
        up_scale: x.scale * up_scale,
        x: x.ptr(),
        gate: gate.ptr(),
        up: up.ptr(),
        x_map: DevicePtr::from_raw(0),
        gate_map: DevicePtr::from_raw(0),
        up_map: DevicePtr::from_raw(0),
        out: out.ptr_mut(),
    };
    if n == 0 || gate.rows == 0 {
        return Ok(true);
    }
    let mut case = Case { dtype, has_wgmma: device.has_wgmma(), arguments };
    if whole_tiles(&case).is_ok() {
        let [x, gate, up] = [x, gate, up].map(|matrix| maps.of(device, matrix, BOX_ROWS));
        let (Some(x_map), Some(gate_map), Some(up_map)) = (x?, gate?, up?) else { return Ok(false) };
        case.arguments = GatedMatmulArgs { x_map, gate_map, up_map, ..arguments };
    }
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case)? }
    Ok(true)
}
