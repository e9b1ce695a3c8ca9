//! The token of greedy rows.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, block_per_row};
use super::variant::Variant;
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::argmax::{BLOCK_SIZE, MAX_BLOCKS_PER_ROW, argmax_f32_plain, argmax_f32_split};
use gpu_kernels::sampler::{SAMPLER_THREADS, SamplerRow};

pub(super) const OP: &str = "argmax";

/// Greedy rows: f32 logits `[rows, vocab_size]`, parameters and a place in `out` for each.
pub(super) struct Case {
    pub(super) rows: u32,
    pub(super) vocab_size: u32,
    pub(super) parameters: DevicePtr<SamplerRow>,
    pub(super) logits: DevicePtr<f32>,
    /// u64 `[rows, MAX_BLOCKS_PER_ROW]`
    pub(super) partials: DevicePtrMut<u64>,
    /// `[rows]`, zeros
    pub(super) counters: DevicePtrMut<u32>,
    pub(super) out: DevicePtrMut<u32>,
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
            let &Case { vocab_size, parameters, logits, partials, counters, out, .. } = case;
            let device = &Dependent(device);
            // SAFETY: all blocks of each row; the caller vouches for the case.
            unsafe {
                argmax_f32_split(device, &config, vocab_size, parameters, logits, partials, counters, out)
            }
        },
    },
    Variant {
        name: "plain",
        kernels: &[],
        eligible: always,
        launch: |device, case| {
            let config = block_per_row(case.rows, SAMPLER_THREADS);
            let &Case { vocab_size, parameters, logits, out, .. } = case;
            // SAFETY: a block for each row; the caller vouches for the case.
            unsafe { argmax_f32_plain(device, &config, vocab_size, parameters, logits, out) }
        },
    },
];
