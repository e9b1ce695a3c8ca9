//! The token of greedy rows.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row, launch};
use super::variant::variants;
use crate::error::Result;
use cuda_std::launch::{Kernels, LaunchConfig};
use gpu_kernels::argmax::*;
use gpu_kernels::sample::{DrawArgs, SAMPLER_THREADS};

pub(super) const OP: &str = "argmax";

/// Greedy rows, with room for [`MAX_BLOCKS_PER_ROW`] partials and a counter for each.
pub(super) struct Case {
    pub(super) rows: u32,
    pub(super) arguments: DrawArgs,
}

/// Blocks that share a row: all that there may be where rows are few; where they are many, what keeps each multiprocessor
/// busy, since a block of its own has a fixed cost.
fn blocks_per_row(device: &Device, rows: u32) -> u32 {
    const BLOCKS_PER_MULTIPROCESSOR: u32 = 16;
    let busy = device.info().multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
    busy.div_ceil(rows.max(1)).clamp(1, MAX_BLOCKS_PER_ROW)
}

variants! { Case, Launch<Case>;
    "split" [split]: always => |device, case| unsafe { launch_split(device, case, split()) };
    "plain" [plain]: always => |device, case| unsafe { launch_rows(device, case, plain()) };
}

/// # Safety
/// The case is whole.
unsafe fn launch_split(device: &Device, case: &Case, kernels: &Kernels<DrawArgs>) -> Result<()> {
    let grid = [blocks_per_row(device, case.rows), case.rows, 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: all blocks of each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[], &config, case.arguments) }
}

/// # Safety
/// The case is whole.
unsafe fn launch_rows(device: &Device, case: &Case, kernels: &Kernels<DrawArgs>) -> Result<()> {
    let config = block_per_row(case.rows, SAMPLER_THREADS);
    // SAFETY: a block for each row; the caller vouches for the case.
    unsafe { launch(device, kernels, &[], &config, case.arguments) }
}
