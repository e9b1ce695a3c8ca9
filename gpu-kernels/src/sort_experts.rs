//! Rows of a mixture of experts, brought together by the expert that they go to.

use cuda_std::prelude::*;

use crate::route::MAX_EXPERTS;
#[device]
use crate::{
    experts::expert_of,
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, repeat},
    reduce::block_scan,
};
#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};

/// Threads of the block: one for each expert that there may be.
pub const BLOCK_SIZE: u32 = MAX_EXPERTS;

/// Pairs of a thread that it asks for before it uses the first.
#[device]
const TOGETHER: usize = 8;

/// Groups of up to `rows_of_group` rows of one expert each. A pair is a row and the place of one of its experts, `row * num_chosen + place`.
#[kernel_args]
pub struct SortExperts {
    pub num_rows: u32,
    /// At most [`MAX_EXPERTS`].
    pub num_experts: u32,
    pub num_chosen: u32,
    /// Not 0.
    pub rows_of_group: u32,
    /// Pairs of an expert begin at a multiple of this in `order`, and so do groups if `rows_of_group` is one. Not 0.
    pub alignment: u32,
    /// f32 `[num_rows, 2 * num_chosen]`: the numbers of the experts, then their weights, as [`crate::route`] leaves them.
    pub chosen: *const f32,
    /// Their number, then for each its expert, where its pairs begin in `order`, and how many they are: at most [`most_groups`].
    pub groups: *mut u32,
    /// `[most_places]`: all pairs, by expert.
    pub order: *mut u32,
}

/// The most groups of `rows_of_group` rows that `num_rows` rows make which go to `num_chosen` of `num_experts` experts each.
pub const fn most_groups(
    num_rows: usize,
    num_experts: usize,
    num_chosen: usize,
    rows_of_group: usize,
) -> usize {
    let pairs = num_rows.saturating_mul(num_chosen);
    // Each expert may have one that is not full.
    let partial = if pairs < num_experts { pairs } else { num_experts };
    let whole = partial.saturating_add((pairs - partial) / rows_of_group);
    if whole < pairs { whole } else { pairs }
}

/// The most places of `order` whose experts begin at multiples of `alignment`.
pub const fn most_places(num_rows: usize, num_experts: usize, num_chosen: usize, alignment: usize) -> usize {
    let pairs = num_rows.saturating_mul(num_chosen);
    let begun = if pairs < num_experts { pairs } else { num_experts };
    pairs.saturating_add(begun.saturating_mul(alignment - 1))
}

/// Counts, adds up and scatters. Which pair of an expert comes first is not determined, nor does it matter: rows have nothing to do with each
/// other. A number of an expert that does not exist counts as the last.
///
/// Grid `[1, 1, 1]`, block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`SortExperts`], nothing overlaps.
#[kernel(E = [f32], name = "sort_experts_{E}_plain", max_threads = 1024)]
pub unsafe fn plain(a: SortExperts) {
    let SortExperts { rows_of_group, alignment, groups, order, .. } = a;
    // Of each expert how many pairs it has, then where its next one goes.
    let counts = shared_array![u32; MAX_EXPERTS as usize];
    let of_warps = shared_array![u64; 32];
    let t = thread::thread_idx_x();
    let step = |expert: u32| {
        // SAFETY: an expert that there may be.
        unsafe { u32::fetch_add(counts.add(expert).as_mut_ptr(), 1, Ordering::Relaxed, Scope::Block) }
    };
    // SAFETY: counts are changed by atomic operations alone between barriers, and by the expert's thread; places of `order` and `groups` have one thread.
    unsafe {
        counts.set(t, 0);
        wait_for_dependencies();
        launch_dependents();
        thread::sync_threads();
        of_thread(&a, |_, expert| {
            step(expert);
        });
        thread::sync_threads();
        let count = counts.get(t);
        let of_expert = divide(count + rows_of_group - 1, rows_of_group).0;
        let places = divide(count + alignment - 1, alignment).0 * alignment;
        let both = u64::from(of_expert) << 32 | u64::from(places);
        let (before, total) = block_scan(both, of_warps, BLOCK_SIZE / 32);
        let (first, first_group) = (before as u32, (before >> 32) as u32);
        counts.set(t, first);
        if t == 0 {
            *groups = (total >> 32) as u32;
        }
        thread::sync_threads();
        of_thread(&a, |pair, expert| *order.add(step(expert) as usize) = pair);
        let mut group = 0;
        while group < of_expert {
            let at = groups.add((1 + 3 * (first_group + group)) as usize);
            let done = group * rows_of_group;
            *at = t;
            *at.add(1) = first + done;
            *at.add(2) = (count - done).min(rows_of_group);
            group += 1;
        }
    }
}

/// Calls `each` with the pairs of this thread's rows and their experts, [`TOGETHER`] of which are asked for before the first is used.
///
/// # Safety
/// `chosen` is written.
#[device]
#[inline(always)]
unsafe fn of_thread(a: &SortExperts, each: impl Fn(u32, u32)) {
    let &SortExperts { num_rows, num_experts, num_chosen, chosen, .. } = a;
    let mut row = thread::thread_idx_x();
    while row < num_rows {
        let mut first = 0;
        while first < num_chosen {
            let mut experts = [0; TOGETHER];
            repeat(TOGETHER, |k| {
                // The last again where there are no more.
                let place = (first + k as u32).min(num_chosen - 1);
                // SAFETY: the caller's promise; there are such a row and place.
                experts[k] = unsafe { expert_of(chosen, num_experts, num_chosen, row, place) };
            });
            repeat(TOGETHER, |k| {
                let place = first + k as u32;
                if place < num_chosen {
                    each(row * num_chosen + place, experts[k]);
                }
            });
            first += TOGETHER as u32;
        }
        row += BLOCK_SIZE;
    }
}
