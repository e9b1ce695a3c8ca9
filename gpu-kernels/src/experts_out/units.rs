//! The second half of the experts, of matrices in units: see [`crate::experts`].

use cuda_std::prelude::*;

use crate::experts::{
    arrange::{self, Arrange},
    warpgroups::{self, Grouped},
};
#[device]
use crate::{
    experts::{
        FEW_ROWS, Group, MAX_CHOSEN, QUADS, Room, expert_of, of_one_row, of_rows, part_of, share,
        sum_of_items,
    },
    fused::{
        launch_dependents,
        units::{AHEAD, AHEAD_OF_ONE, Picked, Walk},
        wait_for_dependencies,
    },
    grid::{divide, offset, repeat, row_and_column},
    units::*,
    vector::Group as Together,
};
#[device]
use cuda_std::memory;
use cuda_std::wgmma::WgmmaElement;

/// `out[i] += scale · Σ_j weight(i, j) * (inner[i, j] · down[e(i, j)]ᵀ)` over the `num_chosen` experts `e(i, j)` that row `i` goes to.
#[kernel_args]
pub struct ExpertsOutUnits {
    pub num_experts: u32,
    pub num_chosen: u32,
    /// Columns of an expert's matrix.
    pub intermediate_size: u32,
    /// Rows of an expert's matrix.
    pub hidden_size: u32,
    /// Blocks that share the tiles of an expert.
    pub blocks: u32,
    /// Units of each warp that are under way.
    pub depth: u32,
    pub scale: f32,
    /// f32 `[num_rows, num_chosen * intermediate_size]`
    pub inner: *const f32,
    /// f32 `[num_rows, 2 * num_chosen]`, as [`crate::norm_route`] leaves it.
    pub chosen: *const f32,
    /// As [`crate::sort_experts`] leaves them.
    pub groups: *const u32,
    pub order: *const u32,
    /// `[num_experts * hidden_size, intermediate_size]` in units, rows as they come.
    pub weight: *const u8,
    /// f32 `[num_rows, num_chosen, hidden_size]`: what each expert makes of a row.
    pub parts: *mut f32,
    /// f32 `[num_rows, hidden_size]`
    pub out: *mut f32,
}

/// Through the units of some tiles of a row's experts: those of a tile of the first expert, of the same tile of the second, and so on.
#[device]
struct OfExperts<W> {
    weight: *const u8,
    /// Of the row's experts.
    numbers: Shared<u32>,
    num_chosen: u32,
    /// Tiles of an expert, units of a tile.
    tiles: u32,
    units: u32,
    tile: u32,
    place: u32,
    unit: u32,
    /// Where the tile begins.
    at: *const u8,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> OfExperts<W> {
    /// Finds the tile.
    ///
    /// # Safety
    /// The numbers are written.
    #[inline(always)]
    unsafe fn find(&mut self) {
        // SAFETY: the caller's promise; places are below their number.
        let expert = unsafe { self.numbers.get(self.place) };
        let unit = offset(expert, self.tiles, self.tile) * self.units as usize;
        self.at = self.weight.wrapping_add(unit * W::BYTES as usize);
    }
}

#[device]
impl<W: Unit> Walk for OfExperts<W> {
    #[inline(always)]
    fn next(&mut self) -> *const u8 {
        let at = self.at.wrapping_add((self.unit * W::BYTES) as usize);
        self.unit += 1;
        if self.unit == self.units {
            (self.unit, self.place) = (0, self.place + 1);
            if self.place == self.num_chosen {
                (self.place, self.tile) = (0, self.tile + 1);
            }
            // SAFETY: the numbers were written before the walk began.
            unsafe { self.find() }
        }
        at
    }
}

/// A row at a time, all its experts: for few rows, which hardly ever share one.
///
/// Grid `[num_rows * blocks, 1, 1]`, exact, `blocks` from 1 to `hidden_size / 16`; block `[32 * warps, 1, 1]`; dynamic shared memory
/// [`shared_bytes`](crate::experts::shared_bytes) of `num_chosen` rows and the chunks of a block's tiles of all of them.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`ExpertsOutUnits`] and are aligned to 16 bytes, `intermediate_size` is whole units,
/// `hidden_size` a multiple of 16, `out` overlaps nothing. `groups`, `order` and `parts` are not used. Of what the kernels before this one
/// write, only `inner` is not complete when it starts.
#[kernel(
    W = [float::f16, unit_formats!],
    name = "experts_out_{W}_units_one",
    max_threads = 384,
    min_blocks = 2,
    requires = "sm_90",
)]
pub unsafe fn one<W: Unit>(a: ExpertsOutUnits) {
    let ExpertsOutUnits { num_experts, num_chosen, intermediate_size, hidden_size, blocks, depth, .. } = a;
    launch_dependents();
    let numbers = shared_array![u32; MAX_CHOSEN as usize];
    let shares = shared_array![f32; MAX_CHOSEN as usize];
    let (row, part) = divide(thread::block_idx_x(), blocks);
    let units = divide(intermediate_size, W::COLS).0;
    let tiles = hidden_size / ROWS;
    let [first_tile, count] = part_of(tiles, part, blocks);
    let room = Room::<W>::new(depth, num_chosen, units);
    let chunks = room.stage.chunks();
    let [from, to] = share(count * num_chosen * chunks);
    let t = thread::thread_idx_x();
    // SAFETY: the caller's promise; barriers order what is shared.
    unsafe {
        if t < num_chosen {
            numbers.set(t, expert_of(a.chosen, num_experts, num_chosen, row, t));
            shares.set(t, memory::load_l2(a.chosen.add(offset(row, 2 * num_chosen, num_chosen + t))));
        }
        thread::sync_threads();
        let of_item = |item: u32| crate::experts::first_unit::<W>(item, units);
        let (begin, end) = (of_item(from), of_item(to));
        let (tile_and_place, unit) = divide(begin, units);
        let (tile, place) = divide(tile_and_place, num_chosen);
        let mut walk = OfExperts::<W> {
            weight: a.weight,
            numbers,
            num_chosen,
            tiles,
            units,
            tile: first_tile + tile,
            place,
            unit,
            at: a.weight,
            format: core::marker::PhantomData,
        };
        walk.find();
        let mut ring = room.start(walk, end - begin);
        wait_for_dependencies();
        let out = a.out.add(offset(row, hidden_size, first_tile * ROWS));
        // So that it need not be waited for in the end.
        let before = if t < count * ROWS { memory::load_l2(out.add(t as usize).cast_const()) } else { 0.0 };
        let source = Picked { x: a.inner, cols: intermediate_size, row: |i| row * num_chosen + i };
        room.stage.fill::<_, AHEAD_OF_ONE>(&source, num_chosen, 0);
        of_one_row(&room, &mut ring, [from, to], [units, num_chosen]);
        thread::sync_threads();
        let mut i = t;
        while i < count * ROWS {
            let (tile, r) = (i / ROWS, i % ROWS);
            let (mut total, mut place) = (0.0f32, 0);
            while place < num_chosen {
                let product = sum_of_items(room.results, (tile * num_chosen + place) * chunks, chunks, r);
                total = product.mul_add(shares.get(place), total);
                place += 1;
            }
            let to = out.add(i as usize);
            *to = total.mul_add(a.scale, if i == t { before } else { *to });
            i += thread::block_dim_x();
        }
    }
}

/// The rows of an expert together, up to [`FEW_ROWS`](crate::experts::FEW_ROWS); what it makes of them goes to `parts`.
///
/// Grid `[groups * blocks, 1, 1]`, of the most groups that there may be; block `[32 * warps, 1, 1]`; dynamic shared memory
/// [`shared_bytes`](crate::experts::shared_bytes) of [`FEW_ROWS`](crate::experts::FEW_ROWS) rows and no items.
///
/// # Safety
/// As [`one`]; `groups` are of up to so many rows; `parts` overlaps nothing; `out` is not used.
#[kernel(
    W = [float::f16, unit_formats!],
    name = "experts_out_{W}_units_eight",
    max_threads = 384,
    requires = "sm_90",
)]
pub unsafe fn sorted<W: Unit>(a: ExpertsOutUnits) {
    let ExpertsOutUnits { intermediate_size, hidden_size, blocks, depth, order, parts, .. } = a;
    let (group, part) = divide(thread::block_idx_x(), blocks);
    let units = divide(intermediate_size, W::COLS).0;
    let tiles = hidden_size / ROWS;
    let [first_tile, count] = part_of(tiles, part, blocks);
    let room = Room::<W>::new(depth, FEW_ROWS, units);
    let [from, to] = share(count);
    let (lane, r) = (warp::lane_id(), warp::lane_id() / 4);
    // SAFETY: the caller's promise; a place of the parts has one lane. The groups are complete when this kernel starts.
    unsafe {
        let group = Group::get(a.groups, group);
        let Some(group) = group else { return };
        let first = offset(group.expert, tiles, first_tile) * units as usize;
        let mut ring = room.start_at(a.weight, first + (from * units) as usize, (to - from) * units);
        let shared = group.pairs(order);
        let pair = |i: u32| shared.get(i);
        let mut pairs = [0; QUADS];
        repeat(QUADS, |g| pairs[g] = pair(4 * g as u32 + lane % 4));
        wait_for_dependencies();
        launch_dependents();
        let source = Picked { x: a.inner, cols: intermediate_size, row: pair };
        room.stage.fill::<_, AHEAD>(&source, group.count, 0);
        of_rows::<W, _>(&room, &mut ring, [from, to], units, |tile, g, low, high| {
            if 4 * (g as u32) + lane % 4 < group.count {
                let to = parts.add(offset(pairs[g], hidden_size, (first_tile + tile) * ROWS + r));
                *to = low;
                *to.add(8) = high;
            }
        });
    }
}

/// Rows of inner of groups, brought together.
///
/// # Safety
/// Grid, block and arrays are as [`mod@arrange`] says.
#[kernel(X = [f32], name = "experts_out_{X}_arrange")]
pub unsafe fn arrange<X: Element>(a: Arrange<X>) {
    // SAFETY: the kernel's own contract.
    unsafe { arrange::arrange::<X, true>(&a) }
}

/// The rows of an expert together, up to `2 N`, of rows that [`arrange()`] left; what it makes of them goes to `out`.
///
/// Grid `[blocks, 1, 1]`; block `[BLOCK_SIZE, 1, 1]` of [`warpgroups`]; dynamic shared memory [`shared_bytes`](warpgroups::shared_bytes) of `2 N` rows and `stages`.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`Grouped`] and are aligned to 16 bytes, groups are of up to `2 N` rows, `cols` is whole units, `out`
/// overlaps nothing.
#[kernel(
    W = [float::f16, unit_formats!],
    N = [32, 64],
    name = "experts_out_{W}_units_wgmma_{N}",
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
        warpgroups::multiply::<W, N>(&a, |pair, tile, low, high| {
            let to = a.out.add(offset(pair, a.out_cols, tile * ROWS + warp::lane_id() / 4));
            *to = low;
            *to.add(8) = high;
        });
    }
}

/// Adds up what a row's experts made of it.
#[kernel_args]
pub struct AddParts {
    pub num_chosen: u32,
    pub hidden_size: u32,
    pub scale: f32,
    /// f32 `[num_rows, 2 * num_chosen]`, as [`crate::norm_route`] leaves it.
    pub chosen: *const f32,
    /// f32 `[num_rows, num_chosen, hidden_size]`
    pub parts: *const f32,
    /// f32 `[num_rows, hidden_size]`
    pub out: *mut f32,
}

/// Threads of a block of [`add_parts`].
pub const BLOCK_SIZE: u32 = 256;

/// In the order of the experts, as [`one`] does.
///
/// Grid `[num_rows, ceil(hidden_size / 4 / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`: a thread four columns.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`AddParts`] and are aligned to 16 bytes, `hidden_size` is a multiple of 4, `out` overlaps
/// nothing.
#[kernel(E = [f32], name = "experts_out_{E}_add_parts")]
pub unsafe fn add_parts(a: AddParts) {
    let AddParts { num_chosen, hidden_size, scale, chosen, parts, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let Some((row, quad)) = row_and_column(hidden_size / 4) else { return };
    // SAFETY: the grid has threads for the quads of each row.
    unsafe {
        let shares = chosen.add(offset(row, 2 * num_chosen, num_chosen));
        let parts = parts.add(offset(row, num_chosen * hidden_size, 4 * quad));
        let (mut totals, mut place) = ([0.0f32; 4], 0);
        while place < num_chosen {
            let share = memory::load_l2(shares.add(place as usize));
            let values = memory::load_l2(parts.add(offset(place, hidden_size, 0)).cast::<[f32; 4]>());
            repeat(4, |i| totals[i] = values[i].mul_add(share, totals[i]));
            place += 1;
        }
        let out = out.add(offset(row, hidden_size, 4 * quad));
        let before: [f32; 4] = f32::load_group(out);
        repeat(4, |i| totals[i] = totals[i].mul_add(scale, before[i]));
        f32::store_group(out, totals);
    }
}
