//! The token of greedy rows.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row, launch};
use super::variant::Variant;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::argmax::{ArgmaxArgs, BLOCK_SIZE, MAX_BLOCKS_PER_ROW, plain, split};
use gpu_kernels::sampler::SAMPLER_THREADS;

pub(super) const OP: &str = "argmax";

/// Greedy rows, with room for [`MAX_BLOCKS_PER_ROW`] partials and a counter for each.
pub(super) struct Case {
    pub(super) rows: u32,
    pub(super) arguments: ArgmaxArgs,
}

/// Blocks that share a row: all that there may be where rows are few; where they are many, what keeps each multiprocessor
/// busy, since a block of its own has a fixed cost.
fn blocks_per_row(device: &Device, rows: u32) -> u32 {
    const BLOCKS_PER_MULTIPROCESSOR: u32 = 16;
    let busy = device.info().multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
    busy.div_ceil(rows.max(1)).clamp(1, MAX_BLOCKS_PER_ROW)
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: "split",
        kernels: &[],
        eligible: always,
        launch: |device, case| {
            let grid = [blocks_per_row(device, case.rows), case.rows, 1];
            let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
            // SAFETY: all blocks of each row; the caller vouches for the case.
            unsafe { launch(&Dependent(device), &split, &[], &config, case.arguments) }
        },
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: |device, case| {
            let config = block_per_row(case.rows, SAMPLER_THREADS);
            // SAFETY: a block for each row; the caller vouches for the case.
            unsafe { launch(device, &plain, &[], &config, case.arguments) }
        },
    },
];
