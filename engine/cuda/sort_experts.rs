//! Bringing rows that go to the same expert together.

use super::device::{Dependent, Device};
use super::experts::{Sorted, Workspace, are_arranged, expected_experts};
use super::launch::{dimension, launch};
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::ExpertsConfig;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::experts::warpgroups::ALIGNMENT;
use gpu_kernels::sort_experts::{BLOCK_SIZE, SortExpertsArgs, most_groups, plain};

const OP: &str = "sort_experts";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// Sorts `n` rows of `chosen` from row `first` on into groups of up to `rows_of_group` of one expert, for the kernels that follow.
///
/// # Errors
/// [`Error::Request`] if there is no room for them, or what the device says.
pub(super) fn sort_experts(
    device: &Device,
    workspace: &mut Workspace,
    chosen: &Tensor,
    [first, n]: [usize; 2],
    rows_of_group: usize,
) -> Result<()> {
    let &ExpertsConfig { num_experts, num_experts_per_tok: count, .. } = &workspace.config;
    workspace.sorted = None;
    chosen.expect(OP, "chosen", first + n, 2 * count)?;
    let most = most_groups(n, num_experts, count, rows_of_group.max(1));
    if n > workspace.rows || 1 + 3 * most > workspace.groups.len() || rows_of_group == 0 {
        return Err(Error::Request(format!(
            "{OP}: there is room for {} rows, not for {n} in groups of {rows_of_group}",
            workspace.rows
        )));
    }
    let group = dimension(OP, rows_of_group)?;
    let are_arranged = are_arranged(group);
    let arguments = SortExpertsArgs {
        num_rows: dimension(OP, n)?,
        num_experts: dimension(OP, num_experts)?,
        num_chosen: dimension(OP, count)?,
        rows_of_group: group,
        alignment: if are_arranged { ALIGNMENT } else { 1 },
        chosen: chosen.ptr().add(first * 2 * count),
        groups: workspace.groups.ptr_mut(),
        order: workspace.order.ptr_mut(),
    };
    let config = LaunchConfig { grid: [1, 1, 1], block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: one block; there is room for the pairs and the groups of so many rows.
    unsafe { launch(&Dependent(device), plain(), &["f32".into()], &config, arguments)? }
    let pairs = n * count;
    let expected = expected_experts(num_experts, pairs).max(pairs.div_ceil(rows_of_group)).min(most);
    workspace.sorted = Some(Sorted {
        n,
        rows_of_group: group,
        groups: workspace.groups.ptr(),
        order: workspace.order.ptr(),
        counts: [dimension(OP, most)?, dimension(OP, expected)?],
        arranged: if are_arranged { workspace.arranged(n) } else { None },
    });
    Ok(())
}
