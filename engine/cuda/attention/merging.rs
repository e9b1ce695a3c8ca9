//! Launches of the kernels whose last block of a row merges its splits.

use super::{BLOCKS, Case, Rows, in_parts, known_head_dim};
use crate::device::{Dependent, Device};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::launch::launch;
use cuda_std::launch::{Kernels, LaunchConfig};
use gpu_kernels::attention::AttentionArgs;
use gpu_kernels::attention::decode_merged::merged;
use gpu_kernels::attention::decode_mma::{self, MAX_GROUP};
use gpu_kernels::attention::decode_staged;
use gpu_kernels::attention::max_splits;

/// Rows on tensor cores: queries of a group as rows of one instruction.
pub(super) fn decodes_on_tensor_cores(case: &Case) -> Result<(), &'static str> {
    known_head_dim(case)?;
    if case.formats != BLOCKS && case.formats.float() != Some(Dtype::F16) {
        return Err("the pages are neither f16 nor q8_0");
    }
    if case.arguments.heads_per_group > MAX_GROUP {
        return Err("more than 8 heads share K and V");
    }
    Ok(())
}

/// As [`decodes_on_tensor_cores`], where keys and values wait in shared memory.
pub(super) fn stages(case: &Case) -> Result<(), &'static str> {
    if case.formats.float() != Some(Dtype::F16) {
        return Err("the pages are not f16");
    }
    if case.arguments.heads_per_group > MAX_GROUP {
        return Err("more than 8 heads share K and V");
    }
    if !matches!(case.head_dim, 64 | 128 | 256) {
        return Err("head_dim is not 64, 128 or 256");
    }
    if decode_staged::shared_bytes(case.head_dim) as usize > case.shared_memory {
        return Err("the device's blocks have too little shared memory");
    }
    Ok(())
}

/// The kernels whose last block of a row merges its splits.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Merging {
    /// Where the case [merges](super::merges).
    Lanes,
    /// Where the case [`decodes_on_tensor_cores`].
    TensorCores,
    /// Where keys and values [wait](stages) in shared memory.
    Staged,
}

impl Merging {
    /// Of the two on tensor cores, which give the same bits, the one to take: pages in registers are there sooner, pages in shared memory are more at
    /// once.
    pub(super) fn best(device: &Device, case: &Case, rows: &Rows) -> Self {
        const FEW_SPLITS: u32 = 8;
        let splits = decode_mma::max_splits(rows.max_keys);
        let blocks = rows.range.len() as u64 * u64::from(case.arguments.num_key_value_heads * splits);
        let is_short = splits <= FEW_SPLITS && blocks <= u64::from(device.info().multiprocessors);
        if stages(case).is_err() || (is_short && decodes_on_tensor_cores(case).is_ok()) {
            Self::TensorCores
        } else {
            Self::Staged
        }
    }

    /// Splits of a block, a power of two: so many that about all blocks run at once. No more than a few, since rows may be much shorter than the
    /// longest, and the blocks of that one should be many.
    fn splits_at_once(self, device: &Device, case: &Case, rows: u32, splits: u32) -> u32 {
        const MOST: u64 = 4;
        if self != Self::Staged {
            return 1;
        }
        let blocks_at_once =
            u64::from(device.info().multiprocessors * decode_staged::min_blocks(case.head_dim));
        let all = u64::from(rows) * u64::from(case.arguments.num_key_value_heads) * u64::from(splits);
        let rounds = (all + blocks_at_once / 2) / blocks_at_once;
        rounds.next_power_of_two().min(u64::from(splits.next_power_of_two())).min(MOST) as u32
    }

    /// The kernel.
    fn kernels(self, case: &Case) -> &'static Kernels<AttentionArgs> {
        match self {
            Self::Lanes => merged(),
            Self::TensorCores if case.formats == BLOCKS => decode_mma::mma_blocks(),
            Self::TensorCores => decode_mma::mma(),
            Self::Staged => decode_staged::staged(),
        }
    }

    /// Threads of a block, and splits of rows of at most `max_keys` keys.
    fn size(self, case: &Case, max_keys: u32) -> (u32, u32) {
        match self {
            Self::Lanes => (32 * case.arguments.heads_per_group, max_splits(max_keys)),
            Self::TensorCores | Self::Staged => (decode_mma::BLOCK_SIZE, decode_mma::max_splits(max_keys)),
        }
    }
}

/// Splits that the last block of each row merges.
///
/// # Safety
/// As [`super::launch_plain`].
pub(super) unsafe fn launch_merging(
    device: &Device,
    case: &Case,
    kernel: Merging,
    rows: &Rows,
) -> Result<()> {
    let kernels = kernel.kernels(case);
    let (block, num_splits) = kernel.size(case, rows.max_keys);
    in_parts(case, rows, num_splits, |count, arguments| {
        let splits_at_once = kernel.splits_at_once(device, case, count, num_splits);
        let shared_bytes =
            if kernel == Merging::Staged { decode_staged::shared_bytes(case.head_dim) } else { 0 };
        let arguments = AttentionArgs { splits_at_once, ..arguments };
        let grid = [count, arguments.num_key_value_heads, num_splits.div_ceil(splits_at_once)];
        let config = LaunchConfig { grid, block: [block, 1, 1], shared_bytes };
        // SAFETY: a block for each row, key-value head and split; the workspace has room for `count` rows. The caller vouches for
        // the case.
        unsafe { launch(&Dependent(device), kernels, &case.values(), &config, arguments) }
    })
}
