//! The same products where an expert has many rows: by the tensor cores' instruction of a warpgroup, `wgmma`. sm_90a.
//!
//! Weights are decoded to f16 in registers, as [there](crate::units::warpgroups), once for up to [`MAX_GROUP_ROWS`] rows.
//!
//! # Rows lie as `wgmma` takes them
//! A kernel of its own brings the rows of a group together ([`super::arrange`]): for every [`STEP`] columns all rows one below the other, 128 bytes each, in
//! f16, swizzled, columns in the order in which a lane has those of weights. So a group's inputs of a step are one bulk copy. A row
//! is multiplied with a power of two on its way, and its products divided by it: f16 holds whatever f32 did.
//!
//! # Who does what
//! A block goes through items, groups of rows times groups of tiles, as many blocks apart as there are. Its first warpgroup brings what the others
//! multiply, a warp units, a warp inputs, across the ends of items; each warp of the others has a tile.

use cuda_std::prelude::*;

#[device]
use super::Group;
use crate::units::ring::ring_bytes;
pub use crate::units::ring::{MAX_STAGES, STEP};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
    stage::Stage,
    units::{
        ring::{Place, Ring, operand},
        *,
    },
};
use cuda_std::wgmma::WgmmaElement;
#[device]
use cuda_std::{
    async_copy::{bulk_copy, fence_proxy_async_shared},
    mbarrier::{self, Mbarrier},
    memory,
    warp::{FULL_MASK, sync_warp},
    wgmma::{self, Descriptor},
};

/// The most rows of a group, of the kernel that takes most: of each twice the sums of a thread.
pub const MAX_GROUP_ROWS: u32 = 128;
/// Groups begin at multiples of so many rows: those after which a swizzle repeats.
pub const ALIGNMENT: u32 = 8;
/// Tiles that a block multiplies at once, a warp each.
pub const GROUP_TILES: u32 = 12;
/// Threads that bring units and inputs.
const BRINGERS: u32 = 128;
/// Threads of a block.
pub const BLOCK_SIZE: u32 = BRINGERS + 32 * GROUP_TILES;
/// Steps of inputs that are in shared memory, or on their way.
const INPUT_STAGES: u32 = 8;
/// Bytes of a row of a step.
const ROW_BYTES: u32 = 2 * STEP;

/// Bytes of dynamic shared memory: steps of inputs of `rows` rows, `stages` units of each tile of a group, barriers, and room to begin at a multiple of 1,024.
pub const fn shared_bytes(rows: u32, stages: u32, unit_bytes: u32) -> u32 {
    let inputs = INPUT_STAGES * rows * ROW_BYTES;
    let [units, barriers] = ring_bytes(stages, GROUP_TILES, unit_bytes);
    1024 + inputs + units + 8 * 2 * INPUT_STAGES + barriers
}

/// What blocks multiply: of each group the rows with the matrix of their expert.
#[kernel_args]
pub struct Grouped {
    /// Tiles of an expert.
    pub tiles: u32,
    /// Columns of its matrix.
    pub cols: u32,
    pub stages: u32,
    /// Rows that there is room for in `rows`.
    pub places: u32,
    /// Values of a row of `out`.
    pub out_cols: u32,
    /// What products with a tile's first eight rows, and its others, are multiplied with.
    pub scale: f32,
    pub other_scale: f32,
    /// As [`crate::sort_experts`] leaves them, groups of rows that begin at multiples of [`ALIGNMENT`].
    pub groups: *const u32,
    pub order: *const u32,
    /// f16 `[cols / STEP, places, STEP]`, and f32 `[places]`, as [`super::arrange`] leaves them.
    pub rows: *const f16,
    pub factors: *const f32,
    /// `[experts * tiles, cols]` in units
    pub weight: *const u8,
    /// f32 `[pairs, out_cols]`
    pub out: *mut f32,
}

/// Shared memory of a block.
#[device]
struct Room<W, const N: usize> {
    inputs: Shared<u8>,
    /// Of the inputs.
    barriers: Shared<u64>,
    units: Ring<W, GROUP_TILES>,
}

#[device]
impl<W: Unit, const N: usize> Room<W, N> {
    /// Bytes of a step of inputs.
    const STEP_BYTES: u32 = 2 * N as u32 * ROW_BYTES;

    /// # Safety
    /// All threads of the block call it together; shared memory is as the kernel says.
    #[inline(always)]
    unsafe fn start(stages: u32) -> Self {
        let base = (dynamic_shared::<u8>().address() + 1023) & !1023;
        let units = base + INPUT_STAGES * Self::STEP_BYTES;
        let [unit_bytes, _] = ring_bytes(stages, GROUP_TILES, W::BYTES);
        let barriers = Shared::<u64>::from_address(units + unit_bytes);
        let room = Self {
            inputs: Shared::from_address(base),
            barriers,
            units: Ring::new(Shared::from_address(units), barriers.add(2 * INPUT_STAGES), stages),
        };
        // SAFETY: nobody uses them yet.
        unsafe {
            if thread::thread_idx_x() == 0 {
                repeat(INPUT_STAGES as usize, |stage| {
                    room.full(stage as u32).init(1);
                    room.empty(stage as u32).init(GROUP_TILES);
                });
                room.units.init();
                mbarrier::fence_init();
            }
            // Rows behind a group's last are multiplied, too: with what was there, but not with nothing.
            let words = room.inputs.cast::<[u32; 4]>();
            let mut word = thread::thread_idx_x();
            while word < INPUT_STAGES * Self::STEP_BYTES / 16 {
                words.add(word).set(0, [0; 4]);
                word += BLOCK_SIZE;
            }
            fence_proxy_async_shared();
        }
        thread::sync_threads();
        room
    }

    /// A step of inputs is there.
    #[inline(always)]
    fn full(&self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(stage))
    }

    /// Nobody reads it any more: each warp that multiplies says so.
    #[inline(always)]
    fn empty(&self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(INPUT_STAGES + stage))
    }

    #[inline(always)]
    fn step(&self, stage: u32) -> Shared<u8> {
        self.inputs.add(stage * Self::STEP_BYTES)
    }
}

/// What a block multiplies at a time: a group of rows with a group of tiles of their expert.
#[device]
#[derive(Clone, Copy)]
struct Item {
    group: Group,
    tile_group: u32,
}

/// The items of a block: every so manyth, from its own number on.
#[device]
struct Items {
    groups: *const u32,
    /// Of an expert.
    tile_groups: u32,
    item: u32,
}

#[device]
impl Items {
    #[inline(always)]
    fn of_block(a: &Grouped) -> Self {
        Self { groups: a.groups, tile_groups: a.tiles.div_ceil(GROUP_TILES), item: thread::block_idx_x() }
    }

    /// The next one.
    ///
    /// # Safety
    /// `sort_experts` has ended.
    #[inline(always)]
    unsafe fn next(&mut self) -> Option<Item> {
        let (group, tile_group) = divide(self.item, self.tile_groups);
        self.item += thread::grid_dim_x();
        // SAFETY: the caller's promise.
        let group = unsafe { Group::get(self.groups, group) };
        group.map(|group| Item { group, tile_group })
    }
}

/// Multiplies, and calls `finish(pair, tile, low, high)` with the products of a pair's row and this lane's rows `lane / 4` and 8 more of a tile, times the scales.
///
/// # Safety
/// All threads of a block of [`BLOCK_SIZE`] call it together, in a grid of any number of blocks; dynamic shared memory is [`shared_bytes`] of
/// `2 N` rows and `stages`; groups are of up to `2 N` rows; arrays have the sizes of [`Grouped`] and are aligned to 16 bytes, `cols` is whole units.
#[device]
#[inline(always)]
pub(crate) unsafe fn multiply<W: Halves, const N: usize>(a: &Grouped, finish: impl Fn(u32, u32, f32, f32))
where
    f16: WgmmaElement<N>,
{
    let mut items = Items::of_block(a);
    // SAFETY: the caller's promise.
    unsafe {
        let room = Room::<W, N>::start(a.stages);
        wait_for_dependencies();
        launch_dependents();
        let warpgroup = warp::shuffle_idx(thread::thread_idx_x() / 128, 0);
        if warpgroup == 0 {
            wgmma::decrease_registers::<40>();
            let me = warp::warp_id();
            if me == 0 {
                ask(&room, a, items);
            } else if me == 1 {
                copy(&room, a, items);
            }
        } else {
            wgmma::increase_registers::<152>();
            let mut at = Places { inputs: Stage::FIRST, units: Place::FIRST };
            // Zeros once: each item's first product replaces what is there. `ptxas` would wait for each where others than products write sums.
            let mut sums = [0.0f32; N];
            let mut next = items.next();
            while let Some(item) = next {
                next = items.next();
                one_item(a, &room, &mut at, &mut sums, item, &finish);
            }
        }
    }
}

/// Asks for the units of all items.
///
/// # Safety
/// All lanes of a warp call it together.
#[device]
#[inline(always)]
unsafe fn ask<W: Unit, const N: usize>(room: &Room<W, N>, a: &Grouped, mut items: Items) {
    let units = divide(a.cols, W::COLS).0;
    let lane = warp::lane_id();
    let mut at = Place::FIRST;
    // SAFETY: inside the matrix.
    unsafe {
        while let Some(Item { group, tile_group }) = items.next() {
            // For a tile behind the last it is the last.
            let tile = (tile_group * GROUP_TILES + lane).min(a.tiles - 1);
            let first = offset(group.expert, a.tiles, tile) * units as usize;
            let mut from = a.weight.wrapping_add(first * W::BYTES as usize);
            let mut unit = 0;
            while unit < units {
                room.units.ask(at, from);
                from = from.wrapping_add(W::BYTES as usize);
                at = room.units.next(at);
                unit += 1;
            }
        }
    }
}

/// Copies the inputs of all items.
///
/// # Safety
/// All lanes of a warp call it together.
#[device]
#[inline(always)]
unsafe fn copy<W: Unit, const N: usize>(room: &Room<W, N>, a: &Grouped, mut items: Items) {
    let lane = warp::lane_id();
    let mut at = Stage::<INPUT_STAGES>::FIRST;
    // SAFETY: rows of the group, and those up to a multiple of the alignment, have places; a stage is written when it is empty.
    unsafe {
        while let Some(Item { group, .. }) = items.next() {
            let bytes = group.count.next_multiple_of(ALIGNMENT) * ROW_BYTES;
            let mut from = a.rows.wrapping_add((group.first * STEP) as usize);
            let mut column = 0;
            while column < a.cols {
                room.empty(at.stage).wait(at.parity ^ 1);
                if lane == 0 {
                    let full = room.full(at.stage);
                    full.arrive_expect_tx(bytes);
                    bulk_copy(room.step(at.stage), from, bytes, full);
                }
                sync_warp(FULL_MASK);
                from = from.wrapping_add(offset(a.places, STEP, 0));
                at = at.next();
                column += STEP;
            }
        }
    }
}

/// Where a warp is in the rings.
#[device]
struct Places {
    inputs: Stage<INPUT_STAGES>,
    units: Place,
}

/// One item's products, of up to `2 N` rows.
///
/// # Safety
/// All warps that multiply call it together, with the same items in the same order as those that bring.
#[device]
#[inline(always)]
unsafe fn one_item<W: Halves, const N: usize>(
    a: &Grouped,
    room: &Room<W, N>,
    at: &mut Places,
    sums: &mut [f32; N],
    item: Item,
    finish: &impl Fn(u32, u32, f32, f32),
) where
    f16: WgmmaElement<N>,
{
    let Item { group, tile_group } = item;
    let units = divide(a.cols, W::COLS).0;
    let (warp_id, lane) = (warp::warp_id() - BRINGERS / 32, warp::lane_id());
    // SAFETY: the caller's promise.
    unsafe {
        // The stage of the step before, whose products may still run.
        let (mut unit, mut last) = (0, at.inputs.stage);
        while unit < units {
            let place = room.units.wait(at.units, warp_id);
            let scales = [W::scales(place, 0), W::scales(place, 1)];
            let mut pair = 0;
            while pair < W::COLS / STEP {
                room.full(at.inputs.stage).wait(at.inputs.parity);
                let inputs = Descriptor::k_major(room.step(at.inputs.stage));
                let weights = operand::<W>(place, &scales, pair);
                let is_behind = unit + pair > 0;
                f16::multiply_registers(sums, weights, inputs, is_behind);
                // But for this one all have ended.
                f16::wait::<1>(sums);
                room.empty(last).arrive_if(is_behind && lane == 0);
                last = at.inputs.stage;
                at.inputs = at.inputs.next();
                pair += 1;
            }
            room.units.done(at.units);
            if W::COLS == STEP {
                // The next weights come to the same registers, which the product under way still reads.
                f16::wait::<0>(sums);
            }
            at.units = room.units.next(at.units);
            unit += 1;
        }
        f16::wait::<0>(sums);
        room.empty(last).arrive_if(lane == 0);
        // Of every 32 rows of the group a lane looks up one.
        let (mut pairs, mut factors) = ([0; 4], [0.0f32; 4]);
        repeat(N / 16, |k| {
            let place = (group.first + (32 * k as u32 + lane).min(group.count - 1)) as usize;
            pairs[k] = memory::load_l2(a.order.add(place));
            factors[k] = memory::load_l2(a.factors.add(place));
        });
        let tile = tile_group * GROUP_TILES + warp_id;
        // Two loops, which the compiler unrolls; one of all would put the sums into local memory.
        repeat(N / 16, |of| {
            repeat(8, |i| {
                let row = 8 * (i as u32 / 2) + lane % 4 * 2 + i as u32 % 2;
                let pair = warp::shuffle_idx(pairs[of], row % 32);
                let factor = warp::shuffle_idx(factors[of], row % 32);
                if 32 * of as u32 + row < group.count && tile < a.tiles {
                    let sum = 16 * of + 4 * (i / 2) + i % 2;
                    let [low, high] =
                        [sums[sum] * (a.scale * factor), sums[sum + 2] * (a.other_scale * factor)];
                    finish(pair, tile, low, high);
                }
            });
        });
    }
}
