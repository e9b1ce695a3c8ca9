//! The first half of the experts that rows go to.

use super::device::{Dependent, Device};
use super::experts::{self, Blocks, Grouped, Matrices, Matrix, Sorted, UNITS, Workspace};
use super::launch::{Launch, dimension, launch};
use super::tensor::{Activation, Tensor};
use super::units::Units;
use super::variant::{KernelChoice, select, variants};
use super::weight::Weight;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::experts_in::units::{self, ExpertsInUnitsArgs};
use gpu_kernels::experts_in::{BLOCK_SIZE, ExpertsInArgs, WARPS_PER_BLOCK, eights, plain};

pub(super) const OP: &str = "experts_in";

/// x `[n, cols]`, matrices `[width, cols]`, inner `[n, num_chosen * width]`, which overlaps nothing; each row goes to `num_chosen` experts.
pub(super) struct Case {
    n: usize,
    num_chosen: usize,
    cols: usize,
    width: usize,
    x_dtype: Dtype,
    x: DevicePtr<u8>,
    chosen: DevicePtr<f32>,
    gate: Matrices,
    up: Matrices,
    /// Both, side by side.
    units: Option<Units>,
    /// Of rows in units that are not multiplied one by one.
    sorted: Option<Sorted>,
    inner: DevicePtrMut<f32>,
}

variants! { Case, Launch<Case>;
    UNITS [units::one, units::sorted, units::wgmma, units::arrange]: is_in_units => launch_units;
    "eights" [eights]: is_in_blocks => |device, case| unsafe { launch_rows(device, case, eights(), plain()) };
    "plain" [plain]: is_in_rows => |device, case| unsafe { launch_rows(device, case, plain(), plain()) };
}

fn is_in_units(case: &Case) -> Result<(), &'static str> {
    if case.units.is_none() {
        Err("gate and up are not in units, side by side")
    } else if case.x_dtype != Dtype::F16 {
        Err("x is not f16")
    } else {
        Ok(())
    }
}

fn is_in_rows(case: &Case) -> Result<(), &'static str> {
    let in_rows = [&case.gate, &case.up].iter().all(|matrices| matrices.place.units().is_none());
    if in_rows { Ok(()) } else { Err("the weights were repacked") }
}

fn is_in_blocks(case: &Case) -> Result<(), &'static str> {
    is_in_rows(case)?;
    let is_known = |matrices: &Matrices| eights().get(&values(case, matrices)).is_some();
    let in_blocks = [&case.gate, &case.up].into_iter().any(is_known);
    if in_blocks { Ok(()) } else { Err("the weights are floats") }
}

/// What a kernel of rows was made for.
fn values(case: &Case, matrices: &Matrices) -> [Value; 2] {
    [matrices.format.into(), case.x_dtype.name().into()]
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let &Case { n, num_chosen, cols, width, x, chosen, ref gate, ref up, sorted, inner, .. } = case;
    let units = case.units.ok_or_else(|| Error::Request(format!("{OP}: not in units")))?;
    if let Some(sorted) = sorted.filter(|sorted| experts::are_arranged(sorted.rows_of_group)) {
        let grouped = Grouped {
            op: OP,
            arrange: units::arrange(),
            multiply: units::wgmma(),
            matrices: gate,
            sorted,
            x_dtype: Dtype::F16,
            x,
            pairs_of_row: num_chosen,
            cols,
            scales: [gate.scale, up.scale],
            out: inner,
            out_cols: width,
        };
        // SAFETY: the caller vouches for the case.
        return unsafe { grouped.launch(device) };
    }
    let (matrix, multiprocessors) = (Matrix::new(units, gate.count), device.info().multiprocessors);
    let (launch_of, groups) = match sorted {
        None => {
            (Blocks::of_pairs(multiprocessors, matrix, dimension(OP, n * num_chosen)?), [chosen.cast(); 2])
        }
        Some(Sorted { counts, groups, order, .. }) => {
            (Blocks::of_groups(multiprocessors, matrix, counts), [groups, order])
        }
    };
    let Blocks { config, blocks, depth } = launch_of;
    let arguments = ExpertsInUnitsArgs {
        num_experts: dimension(OP, gate.count)?,
        num_chosen: dimension(OP, num_chosen)?,
        hidden_size: dimension(OP, cols)?,
        intermediate_size: dimension(OP, width)?,
        blocks,
        depth,
        gate_scale: gate.scale,
        up_scale: up.scale,
        x: x.cast(),
        chosen,
        groups: groups[0],
        order: groups[1],
        weight: units.at,
        inner,
    };
    let format = Value::from(gate.format);
    // SAFETY: blocks for each row and expert, or for all groups of them; the kernels take no expert that is not there; the caller
    // vouches for the case.
    unsafe {
        let kernels = if sorted.is_some() { units::sorted() } else { units::one() };
        launch(&Dependent(device), kernels, &[format], &config, arguments)
    }
}

/// # Safety
/// The case is whole, its matrices in rows; `others` take what `kernels` do not.
unsafe fn launch_rows(
    device: &Device,
    case: &Case,
    kernels: &'static Kernels<ExpertsInArgs>,
    others: &'static Kernels<ExpertsInArgs>,
) -> Result<()> {
    let &Case { n, num_chosen, cols, width, x, chosen, ref gate, ref up, inner, .. } = case;
    let grid = [dimension(OP, n * num_chosen)?, dimension(OP, width)?.div_ceil(WARPS_PER_BLOCK), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    for (is_up, matrices) in [(0, gate), (1, up)] {
        let arguments = ExpertsInArgs {
            num_experts: dimension(OP, matrices.count)?,
            num_chosen: dimension(OP, num_chosen)?,
            hidden_size: dimension(OP, cols)?,
            intermediate_size: dimension(OP, width)?,
            is_up,
            scale: matrices.scale,
            x,
            chosen,
            weight: matrices.place.rows(OP)?,
            inner,
        };
        let values = values(case, matrices);
        let kernels = if kernels.get(&values).is_some() { kernels } else { others };
        // SAFETY: blocks for each row and each of its experts, a warp for each of their values; the kernel takes no expert that is
        // not there; the caller vouches for the case.
        unsafe { launch(device, kernels, &values, &config, arguments)? }
    }
    Ok(())
}

/// [`crate::ops::experts::ExpertOps::experts_in`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn experts_in(
    device: &Device,
    choice: &KernelChoice,
    workspace: Option<&Workspace>,
    n: usize,
    x: &Activation,
    chosen: &Tensor,
    gate_up: [&Weight; 2],
    inner: &mut Tensor,
) -> Result<()> {
    let (num_chosen, width) = experts::shape(OP, n, chosen, inner)?;
    x.expect(OP, "x", x.dtype, n, x.cols)?;
    let [gate, up] = gate_up.map(|weight| experts::matrices(OP, weight, width, x.cols));
    let (gate, up) = (gate?, up?);
    experts::expect_equal(OP, gate.count, up.count)?;
    if n == 0 {
        return Ok(());
    }
    let units = experts::side_by_side([gate.place, up.place]);
    let sorted = match units {
        Some(_) => experts::sorted(OP, workspace, n, &gate, num_chosen)?,
        None => None,
    };
    let case = Case {
        n,
        num_chosen,
        cols: x.cols,
        width,
        x_dtype: x.dtype,
        x: x.ptr(),
        chosen: chosen.ptr(),
        gate,
        up,
        units,
        sorted,
        inner: inner.ptr_mut(),
    };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `inner` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
