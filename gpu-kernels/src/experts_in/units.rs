//! The first half of the experts, of matrices in units: see [`crate::experts`].

use cuda_std::prelude::*;

use crate::experts::{
    arrange::{self, Arrange},
    warpgroups::{self, Grouped},
};
#[device]
use crate::{
    experts::{
        FEW_ROWS, Group, QUADS, Room, expert_of, first_unit, of_one_row, of_rows, part_of, share,
        sum_of_items,
    },
    fused::{
        launch_dependents,
        units::{AHEAD, AHEAD_OF_ONE, Picked},
        wait_for_dependencies,
    },
    grid::{divide, offset, repeat},
    units::*,
};
use cuda_std::wgmma::WgmmaElement;
/// Columns of the output of a tile, whose first eight rows are of gate, the others of up: a span of all experts' rows.
pub const COLUMNS_PER_TILE: u32 = 8;

/// `inner[i, j] = silu(gate_scale · x[i] · gate[e]ᵀ) * (up_scale · x[i] · up[e]ᵀ)` for each row `i` and the `j`th of its experts, `e`.
#[kernel_args]
pub struct ExpertsInUnits {
    pub num_experts: u32,
    pub num_chosen: u32,
    pub hidden_size: u32,
    /// Rows of an expert's gate.
    pub intermediate_size: u32,
    /// Blocks that share the tiles of an expert.
    pub blocks: u32,
    /// Units of each warp that are under way.
    pub depth: u32,
    pub gate_scale: f32,
    pub up_scale: f32,
    /// f16 `[num_rows, hidden_size]`
    pub x: *const f16,
    /// f32 `[num_rows, 2 * num_chosen]`, as [`crate::norm_route`] leaves it.
    pub chosen: *const f32,
    /// As [`crate::sort_experts`] leaves them.
    pub groups: *const u32,
    pub order: *const u32,
    /// `[num_experts * intermediate_size, hidden_size]` of gate and of up, in units with a span of all rows of gate.
    pub weight: *const u8,
    /// f32 `[num_rows, num_chosen * intermediate_size]`
    pub inner: *mut f32,
}

/// `silu(gate) * up`
#[device]
#[inline(always)]
fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + (-gate).exp()) * up
}

/// A row at a time, and an expert: for few rows, which hardly ever share one.
///
/// Grid `[num_rows * num_chosen * blocks, 1, 1]`, exact, `blocks` from 1 to `intermediate_size / COLUMNS_PER_TILE`; block `[32 * warps, 1, 1]`; dynamic
/// shared memory [`shared_bytes`](crate::experts::shared_bytes) of one row and the chunks of a block's tiles.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`ExpertsInUnits`] and are aligned to 16 bytes, `hidden_size` is whole units,
/// `intermediate_size` a multiple of [`COLUMNS_PER_TILE`], `inner` overlaps nothing. `groups` and `order` are not read.
#[kernel(
    W = [float::f16, unit_formats!],
    name = "experts_in_{W}_units_one",
    max_threads = 384,
    min_blocks = 2,
    requires = "sm_90",
)]
pub unsafe fn one<W: Unit>(a: ExpertsInUnits) {
    let ExpertsInUnits { num_experts, num_chosen, hidden_size, intermediate_size, blocks, depth, .. } = a;
    let (pair, part) = divide(thread::block_idx_x(), blocks);
    let (row, place) = divide(pair, num_chosen);
    let units = divide(hidden_size, W::COLS).0;
    let tiles = intermediate_size / COLUMNS_PER_TILE;
    let [first_tile, count] = part_of(tiles, part, blocks);
    let room = Room::<W>::new(depth, 1, units);
    let chunks = room.stage.chunks();
    let [from, to] = share(count * chunks);
    wait_for_dependencies();
    // Not before: the next kernel takes it that the router has ended.
    launch_dependents();
    // SAFETY: the caller's promise; the barrier orders the results.
    unsafe {
        let expert = expert_of(a.chosen, num_experts, num_chosen, row, place);
        let first = offset(expert, tiles, first_tile) * units as usize;
        let [begin, end] = [from, to].map(|item| first_unit::<W>(item, units));
        let mut ring = room.start_at(a.weight, first + begin as usize, end - begin);
        let source = Picked { x: a.x, cols: hidden_size, row: |_| row };
        room.stage.fill::<_, AHEAD_OF_ONE>(&source, 1, 0);
        of_one_row(&room, &mut ring, [from, to], [units, 1]);
        thread::sync_threads();
        let mut t = thread::thread_idx_x();
        while t < count * COLUMNS_PER_TILE {
            let (tile, r) = (t / COLUMNS_PER_TILE, t % COLUMNS_PER_TILE);
            let product = |r| sum_of_items(room.results, tile * chunks, chunks, r);
            let value = gated(product(r) * a.gate_scale, product(r + 8) * a.up_scale);
            *a.inner.add(offset(pair, intermediate_size, (first_tile + tile) * COLUMNS_PER_TILE + r)) = value;
            t += thread::block_dim_x();
        }
    }
}

/// The rows of an expert together, up to [`FEW_ROWS`](crate::experts::FEW_ROWS): each of its weights is read once for all.
///
/// Grid `[groups * blocks, 1, 1]`, of the most groups that there may be; block `[32 * warps, 1, 1]`; dynamic shared memory
/// [`shared_bytes`](crate::experts::shared_bytes) of [`FEW_ROWS`](crate::experts::FEW_ROWS) rows and no items.
///
/// # Safety
/// As [`one`]; `groups` are of up to so many rows.
#[kernel(
    W = [float::f16, unit_formats!],
    name = "experts_in_{W}_units_eight",
    max_threads = 384,
    requires = "sm_90",
)]
pub unsafe fn sorted<W: Unit>(a: ExpertsInUnits) {
    let ExpertsInUnits { num_chosen, hidden_size, intermediate_size, blocks, depth, order, .. } = a;
    let (group, part) = divide(thread::block_idx_x(), blocks);
    let units = divide(hidden_size, W::COLS).0;
    let tiles = intermediate_size / COLUMNS_PER_TILE;
    let [first_tile, count] = part_of(tiles, part, blocks);
    let room = Room::<W>::new(depth, FEW_ROWS, units);
    let [from, to] = share(count);
    let (lane, r) = (warp::lane_id(), warp::lane_id() / 4);
    wait_for_dependencies();
    launch_dependents();
    // SAFETY: the caller's promise; a place of the output has one lane.
    unsafe {
        let Some(group) = Group::get(a.groups, group) else { return };
        let first = offset(group.expert, tiles, first_tile) * units as usize;
        let mut ring = room.start_at(a.weight, first + (from * units) as usize, (to - from) * units);
        let shared = group.pairs(order);
        let pair = |i: u32| shared.get(i);
        let source = Picked { x: a.x, cols: hidden_size, row: |i| divide(pair(i), num_chosen).0 };
        room.stage.fill::<_, AHEAD>(&source, group.count, 0);
        let mut pairs = [0; QUADS];
        repeat(QUADS, |g| pairs[g] = pair(4 * g as u32 + lane % 4));
        of_rows::<W, _>(&room, &mut ring, [from, to], units, |tile, g, gate, up| {
            if 4 * (g as u32) + lane % 4 < group.count {
                let column = (first_tile + tile) * COLUMNS_PER_TILE + r;
                *a.inner.add(offset(pairs[g], intermediate_size, column)) =
                    gated(gate * a.gate_scale, up * a.up_scale);
            }
        });
    }
}

/// Rows of x of groups, brought together: as they are, for they were normed.
///
/// # Safety
/// Grid, block and arrays are as [`mod@arrange`] says.
#[kernel(X = [f16], name = "experts_in_{X}_arrange")]
pub unsafe fn arrange<X: Element>(a: Arrange<X>) {
    // SAFETY: the kernel's own contract.
    unsafe { arrange::arrange::<X, false>(&a) }
}

/// The rows of an expert together, up to `2 N`, of rows that [`arrange()`] left; scales are those of gate and up.
///
/// Grid `[blocks, 1, 1]`; block `[BLOCK_SIZE, 1, 1]` of [`warpgroups`]; dynamic shared memory [`shared_bytes`](warpgroups::shared_bytes) of `2 N` rows and `stages`.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`Grouped`] and are aligned to 16 bytes, groups are of up to `2 N` rows, `cols` is whole units, `out`
/// overlaps nothing.
#[kernel(
    W = [float::f16, unit_formats!],
    N = [32, 64],
    name = "experts_in_{W}_units_wgmma_{N}",
    max_threads = 512,
    min_blocks = 1,
    requires = "sm_90a",
)]
pub unsafe fn wgmma<W: Halves, const N: usize>(a: Grouped)
where
    f16: WgmmaElement<N>,
{
    // SAFETY: the kernel's own contract; a place of the output has one lane.
    unsafe {
        warpgroups::multiply::<W, N>(&a, |pair, tile, gate, up| {
            let column = tile * COLUMNS_PER_TILE + warp::lane_id() / 4;
            *a.out.add(offset(pair, a.out_cols, column)) = gated(gate, up);
        });
    }
}
