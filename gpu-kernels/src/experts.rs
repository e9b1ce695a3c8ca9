//! Products with the matrices of experts in [units](crate::units): what both halves of a mixture share.
//!
//! # One order of every sum
//! A product of a row with a row of weights is the sum of its chunks, in their order, and a chunk that of its units: whether chunks are
//! shared among warps (`of_one_row`) or one warp has whole tiles (`of_rows`). So a row has the same bits alone, where
//! blocks have few tiles, and among others that go to the same expert.
//!
//! # Which weights
//! are read is known once the router has chosen: no weight of the first half is under way before. The second half's are, while the first
//! still runs: its kernel starts when all blocks of that have seen the router end.

use cuda_std::prelude::*;

pub mod arrange;
pub mod warpgroups;

use crate::fused::units::{ring_bytes, stage_bytes};
#[device]
use crate::{
    fused::units::{Ring, Stage, Walk},
    grid::{divide, repeat},
    units::Unit,
};

/// Rows of an expert that are multiplied at once, where few go to the same.
pub const FEW_ROWS: u32 = 8;
/// The same in groups of four.
#[device]
pub(crate) const QUADS: usize = FEW_ROWS as usize / 4;

/// The most experts that a row goes to.
pub const MAX_CHOSEN: u32 = crate::route::MAX_CHOSEN;

/// Bytes of dynamic shared memory of a block of `warps` warps with `depth` units of `unit_bytes` each under way, that stages `rows` rows of `units` units
/// of `cols` columns and leaves products of `items` parts of tiles.
pub const fn shared_bytes(
    [warps, depth]: [u32; 2],
    [units, cols, unit_bytes]: [u32; 3],
    rows: u32,
    items: u32,
) -> u32 {
    ring_bytes(warps, depth, unit_bytes)
        .saturating_add(stage_bytes(units, cols, rows))
        .saturating_add(warps * depth * 8)
        .saturating_add(items.saturating_mul(16 * 4))
}

/// The dynamic shared memory of a block.
#[device]
pub(crate) struct Room<W> {
    /// This warp's part of it.
    ring: Shared<u8>,
    /// Likewise.
    barriers: Shared<u64>,
    depth: u32,
    pub(crate) stage: Stage<W>,
    /// `[item][row of a tile]`
    pub(crate) results: Shared<f32>,
}

#[device]
impl<W: Unit> Room<W> {
    /// Of a block that stages `rows` rows of `units` units, as [`shared_bytes`].
    #[inline(always)]
    pub(crate) fn new(depth: u32, rows: u32, units: u32) -> Self {
        let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
        let shared = dynamic_shared::<u8>();
        let stage = shared.add(num_warps * depth * W::BYTES);
        let barriers = stage.add(stage_bytes(units, W::COLS, rows));
        Self {
            ring: shared.add(warp_id * depth * W::BYTES),
            barriers: barriers.cast::<u64>().add(warp_id * depth),
            depth,
            stage: Stage::new(stage, rows, units * W::COLS),
            results: barriers.add(num_warps * depth * 8).cast(),
        }
    }

    /// Starts to copy the first of `count` units.
    ///
    /// # Safety
    /// As [`Ring::start`], once in a launch.
    #[inline(always)]
    pub(crate) unsafe fn start<A: Walk>(&self, walk: A, count: u32) -> Ring<W, A> {
        // SAFETY: the caller's promise.
        unsafe { Ring::start(walk, count, self.depth, self.ring, self.barriers) }
    }

    /// As [`Room::start`], of units that follow each other from the `first`-th of `matrix` on.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn start_at(
        &self,
        matrix: *const u8,
        first: usize,
        count: u32,
    ) -> Ring<W, Straight<W>> {
        // SAFETY: the caller's promise.
        unsafe { self.start(Straight::new(matrix, first), count) }
    }
}

/// What belongs to this warp of `count` things that the block's warps share: from, to.
#[device]
#[inline(always)]
pub(crate) fn share(count: u32) -> [u32; 2] {
    let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
    [divide(warp_id * count, num_warps).0, divide((warp_id + 1) * count, num_warps).0]
}

/// What belongs to part `part` of `parts` of `count` things: the first, and how many.
#[device]
#[inline(always)]
pub(crate) fn part_of(count: u32, part: u32, parts: u32) -> [u32; 2] {
    let first = divide(part * count, parts).0;
    [first, divide((part + 1) * count, parts).0 - first]
}

/// The expert of a row and place of `chosen` `[rows, 2 * num_chosen]`; the last where there is no such expert.
///
/// # Safety
/// There are such a row and place, and they are written.
#[device]
#[inline(always)]
pub(crate) unsafe fn expert_of(
    chosen: *const f32,
    num_experts: u32,
    num_chosen: u32,
    row: u32,
    place: u32,
) -> u32 {
    let at = crate::grid::offset(row, 2 * num_chosen, place);
    // SAFETY: the caller's promise.
    let number = unsafe { cuda_std::memory::load_l2(chosen.add(at)) };
    (number as u32).min(num_experts - 1)
}

/// Units that follow each other.
#[device]
pub(crate) struct Straight<W> {
    at: *const u8,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Straight<W> {
    /// From the `first`-th unit of a matrix on.
    #[inline(always)]
    fn new(matrix: *const u8, first: usize) -> Self {
        Self { at: matrix.wrapping_add(first * W::BYTES as usize), format: core::marker::PhantomData }
    }
}

#[device]
impl<W: Unit> Walk for Straight<W> {
    #[inline(always)]
    fn next(&mut self) -> *const u8 {
        let at = self.at;
        self.at = at.wrapping_add(W::BYTES as usize);
        at
    }
}

/// The unit at which an item begins: a chunk of a tile, of which each has `units` units.
#[device]
#[inline(always)]
pub(crate) fn first_unit<W: Unit>(item: u32, units: u32) -> u32 {
    let of_chunk = Stage::<W>::UNITS;
    let (tile, chunk) = divide(item, units.div_ceil(of_chunk));
    tile * units + chunk * of_chunk
}

/// Multiplies the items `from` to `to`, chunks of `[tile][row of inputs]`, each with its row alone, and leaves the products in the room's results.
///
/// # Safety
/// The inputs are staged, the ring leads through these items' units. All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(crate) unsafe fn of_one_row<W: Unit, A: Walk>(
    room: &Room<W>,
    ring: &mut Ring<W, A>,
    [from, to]: [u32; 2],
    [units, rows]: [u32; 2],
) {
    let lane = warp::lane_id();
    let (tile_and_row, mut chunk) = divide(from, room.stage.chunks());
    let (_, mut row) = divide(tile_and_row, rows);
    let mut item = from;
    while item < to {
        let mut sums = [[0.0f32; 2]; 1];
        let mut unit = chunk * Stage::<W>::UNITS;
        let end = (unit + Stage::<W>::UNITS).min(units);
        // SAFETY: the caller's promise; an item has one warp.
        unsafe {
            while unit < end {
                ring.multiply::<1>(&room.stage.inputs::<1>(row, unit), &mut sums);
                unit += 1;
            }
            if lane.is_multiple_of(4) {
                let results = room.results.add(item * 16 + lane / 4);
                results.set(0, sums[0][0]);
                results.set(8, sums[0][1]);
            }
        }
        (item, chunk) = (item + 1, chunk + 1);
        if end == units {
            (chunk, row) = (0, if row + 1 == rows { 0 } else { row + 1 });
        }
    }
}

/// The product of row `r` of a tile: the sum of the results of its `chunks` items from `first` on.
///
/// # Safety
/// They are complete.
#[device]
#[inline(always)]
pub(crate) unsafe fn sum_of_items(results: Shared<f32>, first: u32, chunks: u32, r: u32) -> f32 {
    let results = results.add(first * 16 + r);
    let (mut sum, mut chunk) = (0.0f32, 0);
    while chunk < chunks {
        let mut values = [0.0f32; 4];
        repeat(4, |i| {
            if chunk + (i as u32) < chunks {
                // SAFETY: the caller's promise.
                values[i] = unsafe { results.get((chunk + i as u32) * 16) };
            }
        });
        repeat(4, |i| {
            if chunk + (i as u32) < chunks {
                sum += values[i];
            }
        });
        chunk += 4;
    }
    sum
}

/// Multiplies the tiles `from` to `to` of the block with all staged rows and calls `finish(tile, g, low, high)` with the products of input row
/// `4 g + lane % 4` and the tile's rows `lane / 4` and 8 more.
///
/// # Safety
/// The inputs are staged, up to [`FEW_ROWS`] rows, the ring leads through these tiles' units. All lanes of the warp call it together.
#[device]
#[inline(always)]
pub(crate) unsafe fn of_rows<W: Unit, A: Walk>(
    room: &Room<W>,
    ring: &mut Ring<W, A>,
    [from, to]: [u32; 2],
    units: u32,
    mut finish: impl FnMut(u32, usize, f32, f32),
) {
    let mut tile = from;
    while tile < to {
        let (mut totals, mut unit) = ([[0.0f32; 2]; QUADS], 0);
        while unit < units {
            let mut sums = [[0.0f32; 2]; QUADS];
            let end = (unit + Stage::<W>::UNITS).min(units);
            while unit < end {
                // SAFETY: the caller's promise.
                unsafe {
                    ring.multiply::<QUADS>(&room.stage.inputs::<{ FEW_ROWS as usize }>(0, unit), &mut sums)
                }
                unit += 1;
            }
            repeat(QUADS, |g| repeat(2, |r| totals[g][r] += sums[g][r]));
        }
        repeat(QUADS, |g| finish(tile, g, totals[g][0], totals[g][1]));
        tile += 1;
    }
}

/// Rows that go to one expert, in the order that [`sort_experts`](crate::sort_experts) made.
#[device]
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) expert: u32,
    /// Of the order.
    pub(crate) first: u32,
    pub(crate) count: u32,
}

#[device]
impl Group {
    /// Its pairs of rows and places in shared memory, for all threads; the last stands in where there are fewer than [`FEW_ROWS`].
    ///
    /// # Safety
    /// All threads of the block call it together, once in a launch; `order` is what `sort_experts` left, which has ended.
    #[inline(always)]
    pub(crate) unsafe fn pairs(self, order: *const u32) -> Shared<u32> {
        let pairs = shared_array![u32; FEW_ROWS as usize];
        let t = thread::thread_idx_x();
        // SAFETY: the caller's promise.
        unsafe {
            if t < FEW_ROWS {
                let place = self.first + t.min(self.count - 1);
                pairs.set(t, cuda_std::memory::load_l2(order.add(place as usize)));
            }
            thread::sync_threads();
        }
        pairs
    }

    /// The `index`-th, if there are so many.
    ///
    /// # Safety
    /// `groups` is what `sort_experts` left, which has ended.
    #[inline(always)]
    pub(crate) unsafe fn get(groups: *const u32, index: u32) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            if index >= cuda_std::memory::load_l2(groups) {
                return None;
            }
            let at = groups.add(1 + 3 * index as usize);
            let word = |i: usize| cuda_std::memory::load_l2(at.add(i));
            Some(Self { expert: word(0), first: word(1), count: word(2) })
        }
    }
}
