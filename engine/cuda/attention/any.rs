//! Launches of the kernel for pages of any formats.

use super::{Case, Rows, in_parts};
use crate::device::Device;
use crate::error::Result;
use crate::launch::launch;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::attention::any::any;
use gpu_kernels::attention::decode::merge;
use gpu_kernels::attention::{AttentionArgs, max_splits, prefill};

/// Rows of sequences that decode in splits, the others whole.
///
/// # Safety
/// As [`super::launch_plain`].
pub(super) unsafe fn launch_any_rows(device: &Device, case: &Case) -> Result<()> {
    // SAFETY: every row is in one of the two sets; the caller vouches for the case.
    unsafe {
        launch_any(device, case, &case.decode_rows())?;
        if case.split.has_long { launch_any_whole(device, case) } else { Ok(()) }
    }
}

/// # Safety
/// As [`super::launch_plain`].
pub(super) unsafe fn launch_any_whole(device: &Device, case: &Case) -> Result<()> {
    let arguments = AttentionArgs { min_rows: case.long_rows(), ..case.arguments };
    let grid = [arguments.num_tokens, arguments.num_attention_heads.div_ceil(prefill::WARPS), 1];
    let config = LaunchConfig { grid, block: [prefill::BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a row of blocks for each token; the caller vouches for the case.
    unsafe { launch(device, any(), &[case.head_dim.into()], &config, arguments) }
}

/// Splits and their merge, of pages of any formats.
///
/// # Safety
/// As [`super::launch_plain`].
pub(super) unsafe fn launch_any(device: &Device, case: &Case, rows: &Rows) -> Result<()> {
    let num_splits = max_splits(rows.max_keys);
    in_parts(case, rows, num_splits, |count, arguments| {
        let heads = arguments.num_attention_heads;
        let grid = [count, heads.div_ceil(prefill::WARPS), num_splits];
        let of_splits = LaunchConfig { grid, block: [prefill::BLOCK_SIZE, 1, 1], shared_bytes: 0 };
        let of_merge =
            LaunchConfig { grid: [count, heads, 1], block: [case.head_dim, 1, 1], shared_bytes: 0 };
        // SAFETY: as in `super::launch_split`; with one split there is nothing to merge.
        unsafe {
            launch(device, any(), &[case.head_dim.into()], &of_splits, arguments)?;
            match num_splits {
                0 | 1 => Ok(()),
                _ => launch(device, merge(), &[case.dtype.name().into()], &of_merge, arguments),
            }
        }
    })
}
