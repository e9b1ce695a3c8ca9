//! The norm before a mixture of experts and its router, in one kernel.

use super::device::{Dependent, Device};
use super::device_info::DeviceInfo;
use super::experts::Workspace;
use super::launch::{dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::route::expect_counts;
use super::tensor::{Activation, Tensor};
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::parts::{RmsNorm, Router};
use cuda_std::launch::{LaunchConfig, Value};
use gpu_kernels::norm_route::{MANY_ROWS, NormRouteArgs, SOME_ROWS, STATIC_BYTES, split};

const OP: &str = "norm_route";

/// Rows from which on several have a block together.
const FEW_ROWS: u32 = 5;
/// Rows for each multiprocessor whose blocks keep the device busy: then what counts is how often blocks read the router.
const BUSY_ROWS: u32 = 3;
/// The most shared memory of a block for a single row: any device has that.
const MAX_ROW_BYTES: usize = 64 << 10;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[split().instances()])
}

/// Whether the kernel takes rows of so many values.
pub(super) fn takes(hidden_size: usize) -> bool {
    hidden_size > 0 && hidden_size.is_multiple_of(4) && 4 * hidden_size <= MAX_ROW_BYTES
}

/// What the kernel for so many rows of so many values was made for, if a block's fit: quads of the router that a lane asks for at once, rows, warps, and experts of
/// each at once.
fn kernel_for(device: &DeviceInfo, rows: u32, cols: usize) -> [u32; 4] {
    let fits = |rows: u32| rows as usize * 4 * cols + STATIC_BYTES as usize <= device.shared_memory_per_block;
    match rows {
        _ if rows >= BUSY_ROWS * device.multiprocessors && fits(MANY_ROWS) => [2, MANY_ROWS, 8, 4],
        FEW_ROWS.. if fits(SOME_ROWS) => [8, SOME_ROWS, 8, 1],
        _ => [16, 1, 4, 1],
    }
}

/// `normed = rms_norm(x)` and [`crate::ops::experts::ExpertOps::route`] of that.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn norm_route(
    device: &Device,
    workspace: &mut Workspace,
    n: usize,
    x: &Tensor,
    norm: &RmsNorm<DeviceBuffer<f32>>,
    router: &Router<DeviceBuffer<f32>>,
    normed: &mut Activation,
    chosen: &mut Tensor,
) -> Result<()> {
    let &Router { ref weight, num_experts, num_experts_per_tok, renormalise } = router;
    expect_counts(OP, num_experts, num_experts_per_tok)?;
    let (cols, dtype) = (x.cols, normed.dtype);
    if !takes(cols) || n > workspace.rows || num_experts != workspace.config.num_experts {
        return Err(Error::Request(format!(
            "{OP}: [{n}, {cols}] to {num_experts} experts; there is room for {} rows, of a multiple of 4 values, to {}",
            workspace.rows, workspace.config.num_experts
        )));
    }
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", &norm.weight, cols)?;
    expect_vector(OP, "router", weight, num_experts * cols)?;
    normed.expect(OP, "normed", dtype, n, cols)?;
    chosen.expect(OP, "chosen", n, 2 * num_experts_per_tok)?;
    let (rows, experts) = (dimension(OP, n)?, dimension(OP, num_experts)?);
    if rows == 0 {
        return Ok(());
    }
    let [quads, rows_of_block, warps, at_once] = kernel_for(device.info(), rows, cols);
    let groups = rows.div_ceil(rows_of_block);
    let most = experts.div_ceil(warps * at_once);
    // Blocks of many rows have a multiprocessor for themselves.
    let busy = device.info().multiprocessors * if rows_of_block == MANY_ROWS { 1 } else { 2 };
    let splits = (busy / groups).clamp(1, most);
    let arguments = NormRouteArgs {
        num_rows: rows,
        hidden_size: dimension(OP, cols)?,
        num_experts: experts,
        num_chosen: dimension(OP, num_experts_per_tok)?,
        renormalise: renormalise.into(),
        splits,
        eps: norm.eps,
        x: x.ptr(),
        norm: norm.weight.ptr(),
        router: weight.ptr(),
        logits: workspace.logits.ptr_mut(),
        counters: workspace.counters.ptr_mut(),
        normed: normed.ptr_mut(),
        chosen: chosen.ptr_mut(),
    };
    let shared_bytes = rows_of_block * arguments.hidden_size * 4;
    let config = LaunchConfig { grid: [groups * splits, 1, 1], block: [32 * warps, 1, 1], shared_bytes };
    let values = [dtype.name().into(), Value::from(quads)];
    // SAFETY: blocks for all rows and splits; sizes and shapes were checked; what is written is borrowed alone.
    unsafe { launch(&Dependent(device), split(), &values, &config, arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::Emulated;

    /// With the shared memory of compute capability 8.6, 8.0 and 9.0.
    #[test]
    fn rows_fit() {
        for (kib, cols, some, many) in [
            (99, 2048, SOME_ROWS, SOME_ROWS),
            (99, 4096, 1, 1),
            (163, 2048, SOME_ROWS, MANY_ROWS),
            (163, 4096, SOME_ROWS, SOME_ROWS),
            (227, 2048, SOME_ROWS, MANY_ROWS),
        ] {
            let device =
                DeviceInfo { shared_memory_per_block: kib << 10, multiprocessors: 132, ..Emulated::info() };
            let rows = |n| kernel_for(&device, n, cols)[1];
            assert_eq!([rows(4), rows(5), rows(395), rows(396)], [1, some, some, many], "{kib} KiB, {cols}");
        }
        assert!(takes(16_384) && !takes(16_388));
        assert!(MAX_ROW_BYTES + STATIC_BYTES as usize <= 99 << 10);
    }
}
