//! The second half of the experts that rows go to, and their weighted sum.

use super::device::{Dependent, Device};
use super::experts::{self, Blocks, Grouped, Matrices, Matrix, Sorted, UNITS, Workspace};
use super::launch::{Launch, dimension, elements_of_rows, launch};
use super::sort_experts::sort_experts;
use super::tensor::Tensor;
use super::variant::{KernelChoice, select, variants};
use super::weight::Weight;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::experts_out::units::{self, AddPartsArgs, ExpertsOutUnitsArgs};
use gpu_kernels::experts_out::{BLOCK_SIZE, ExpertsOutArgs, WARPS_PER_BLOCK, eights, plain};

pub(super) const OP: &str = "experts_out";

/// inner `[n, num_chosen * width]`, matrices `[hidden_size, width]`, out `[n, hidden_size]`, which overlaps nothing; each row goes to `num_chosen` experts.
pub(super) struct Case {
    n: usize,
    num_chosen: usize,
    width: usize,
    hidden_size: usize,
    inner: DevicePtr<f32>,
    chosen: DevicePtr<f32>,
    down: Matrices,
    /// Of rows in units that are not multiplied one by one, and where what experts make of them goes.
    sorted: Option<(Sorted, DevicePtrMut<f32>)>,
    out: DevicePtrMut<f32>,
}

variants! { Case, Launch<Case>;
    UNITS [units::one, units::sorted, units::wgmma, units::arrange, units::add_parts]: is_in_units => launch_units;
    "eights" [eights]: is_in_blocks => |device, case| unsafe { launch_rows(device, case, eights()) };
    "plain" [plain]: is_in_rows => |device, case| unsafe { launch_rows(device, case, plain()) };
}

fn is_in_units(case: &Case) -> Result<(), &'static str> {
    if case.down.place.units().is_some() { Ok(()) } else { Err("the weights are not in units") }
}

fn is_in_rows(case: &Case) -> Result<(), &'static str> {
    if case.down.place.units().is_none() { Ok(()) } else { Err("the weights were repacked") }
}

fn is_in_blocks(case: &Case) -> Result<(), &'static str> {
    is_in_rows(case)?;
    if eights().get(&[case.down.format.into()]).is_some() { Ok(()) } else { Err("the weights are floats") }
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let &Case { n, num_chosen, width, hidden_size, inner, chosen, ref down, sorted, out } = case;
    let units = down.place.units().ok_or_else(|| Error::Request(format!("{OP}: not in units")))?;
    let (matrix, multiprocessors) = (Matrix::new(units, down.count), device.info().multiprocessors);
    let (rows, count) = (dimension(OP, n)?, dimension(OP, num_chosen)?);
    let (launch_of, groups, parts) = match sorted {
        None => (Blocks::of_all(multiprocessors, matrix, rows, count), [chosen.cast(); 2], out),
        Some((Sorted { counts, groups, order, .. }, parts)) => {
            (Blocks::of_groups(multiprocessors, matrix, counts), [groups, order], parts)
        }
    };
    let Blocks { config, blocks, depth } = launch_of;
    let arguments = ExpertsOutUnitsArgs {
        num_experts: dimension(OP, down.count)?,
        num_chosen: count,
        intermediate_size: dimension(OP, width)?,
        hidden_size: dimension(OP, hidden_size)?,
        blocks,
        depth,
        scale: down.scale,
        inner,
        chosen,
        groups: groups[0],
        order: groups[1],
        weight: units.at,
        parts,
        out,
    };
    let format = Value::from(down.format);
    // SAFETY: blocks for each row, or for all groups of rows, and room for what experts make of them; the kernels take no
    // expert that is not there; the caller vouches for the case.
    unsafe {
        let Some((sorted, parts)) = sorted else {
            return launch(&Dependent(device), units::one(), &[format], &config, arguments);
        };
        if experts::are_arranged(sorted.rows_of_group) {
            let grouped = Grouped {
                op: OP,
                arrange: units::arrange(),
                multiply: units::wgmma(),
                matrices: down,
                sorted,
                x_dtype: Dtype::F32,
                x: inner.cast(),
                pairs_of_row: 1,
                cols: width,
                scales: [1.0; 2],
                out: parts,
                out_cols: hidden_size,
            };
            grouped.launch(device)?;
        } else {
            launch(&Dependent(device), units::sorted(), &[format], &config, arguments)?;
        }
        let (hidden_size, scale) = (arguments.hidden_size, down.scale);
        let arguments =
            AddPartsArgs { num_chosen: count, hidden_size, scale, chosen, parts: parts.into(), out };
        let config = elements_of_rows(rows, hidden_size / 4, units::BLOCK_SIZE);
        launch(&Dependent(device), units::add_parts(), &["f32".into()], &config, arguments)
    }
}

/// # Safety
/// The case is whole, its matrices in rows.
unsafe fn launch_rows(device: &Device, case: &Case, kernels: &'static Kernels<ExpertsOutArgs>) -> Result<()> {
    let &Case { n, num_chosen, width, hidden_size, inner, chosen, ref down, out, .. } = case;
    let arguments = ExpertsOutArgs {
        num_experts: dimension(OP, down.count)?,
        num_chosen: dimension(OP, num_chosen)?,
        intermediate_size: dimension(OP, width)?,
        hidden_size: dimension(OP, hidden_size)?,
        scale: down.scale,
        inner,
        chosen,
        weight: down.place.rows(OP)?,
        out,
    };
    let grid = [dimension(OP, n)?, arguments.hidden_size.div_ceil(WARPS_PER_BLOCK), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: blocks for each row, a warp for each of its values; the kernel takes no expert that is not there; the caller vouches
    // for the case.
    unsafe { launch(device, kernels, &[down.format.into()], &config, arguments) }
}

/// [`crate::ops::experts::ExpertOps::experts_out`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn experts_out(
    device: &Device,
    choice: &KernelChoice,
    mut workspace: Option<&mut Workspace>,
    n: usize,
    inner: &Tensor,
    chosen: &Tensor,
    down: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let (num_chosen, width) = experts::shape(OP, n, chosen, inner)?;
    let hidden_size = out.cols;
    out.expect(OP, "out", n, hidden_size)?;
    if n == 0 {
        return Ok(());
    }
    let down = experts::matrices(OP, down, hidden_size, width)?;
    let all = match down.place.units() {
        Some(_) => experts::sorted(OP, workspace.as_deref(), n, &down, num_chosen)?,
        None => None,
    };
    // Where there is no room for all rows, some at a time, which are sorted by themselves.
    let most = workspace.as_deref().filter(|_| all.is_some()).map_or(n, |workspace| workspace.rows_of_parts);
    for first in (0..n).step_by(most) {
        let rows = most.min(n - first);
        let sorted = match (all, workspace.as_deref_mut()) {
            (Some(mut sorted), Some(workspace)) => {
                if rows < n {
                    sort_experts(device, workspace, chosen, [first, rows], sorted.rows_of_group as usize)?;
                    sorted = workspace.sorted.take().unwrap_or(sorted);
                }
                Some((sorted, workspace.parts.ptr_mut()))
            }
            _ => None,
        };
        let case = Case {
            n: rows,
            num_chosen,
            width,
            hidden_size,
            inner: inner.ptr().add(first * inner.cols),
            chosen: chosen.ptr().add(first * chosen.cols),
            down,
            sorted,
            out: out.ptr_mut().add(first * hidden_size),
        };
        let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
        // SAFETY: the shapes were checked; `out` is borrowed alone.
        unsafe { (variant.launch)(device, &case)? }
    }
    Ok(())
}
