//! [These products](super::halves) by the tensor cores' instruction of a warpgroup, `wgmma`. sm_90a.
//!
//! Weights are decoded to the same operands, which `wgmma` takes from registers; inputs it reads from shared memory by itself, so that a warp issues one
//! instruction where it issued one for each eight rows of inputs and loaded them before.
//!
//! # Who does what
//! The block's first warpgroup brings what the others multiply. A warp asks for units, a bulk copy for each tile of a group, as soon as those in their place were decoded. A warp copies inputs, [`STEP`] columns
//! at a time, to a ring of stages that all read. Two move their words, where they are, every second step each: a lane has columns `4 c`, `4 c + 2`, `4 c + 1` and `4 c + 3` of its rows of weights in
//! the places of columns `2 c`, `2 c + 1`, `8 + 2 c` and `9 + 2 c` of an operand, so inputs go to the same places, 16 columns among themselves. (Who copies cannot move them: the fence behind
//! that takes time, and waits for all copies of a thread that are under way.) Each warp of the other warpgroups has a tile, and decodes the next operand while a product runs.
//!
//! Shares, and sums of groups that lie in several, are as [there](super::halves); warps add up their own tiles.

use cuda_std::prelude::*;

use super::halves::{GROUP_TILES, MatmulHalves, partial_values};
use super::ring::ring_bytes;
pub use super::ring::{MAX_STAGES, STEP};
#[device]
use super::{
    ring::{Place, Ring, operand},
    shares::{Shares, store},
};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
    stage::Stage,
    units::*,
};
#[device]
use cuda_std::{
    async_copy::{copy_16_l2, fence_proxy_async_shared},
    atomic::{AtomicAdd, Ordering, Scope},
    f16x2,
    mbarrier::{self, Mbarrier},
    memory,
    warp::{FULL_MASK, sync_warp},
    wgmma::{self, Descriptor, WgmmaElement},
};

/// Threads that bring units and inputs: a warp that asks for units, one that copies inputs, and some that move their words.
const BRINGERS: u32 = 128;
const ARRANGERS: u32 = BRINGERS / 32 - 2;

/// Threads of a block: those that bring units and inputs, and a warp for each tile of a group.
pub const BLOCK_SIZE: u32 = BRINGERS + 32 * GROUP_TILES;

/// Steps of inputs that are in shared memory, or on their way. A stage is always the same warp's: who skipped a phase of its barrier could not tell the next
/// from the one before.
const INPUT_STAGES: u32 = 6 * ARRANGERS;

/// Bytes of a step of inputs.
const fn input_bytes(groups: u32) -> u32 {
    8 * groups * STEP * 2
}

/// Bytes of dynamic shared memory: steps of `groups` times eight rows of inputs, `stages` units of each tile of a group, barriers, and room to begin at a
/// multiple of 1,024.
pub const fn shared_bytes(stages: u32, unit_bytes: u32, groups: u32) -> u32 {
    let [units, barriers] = ring_bytes(stages, GROUP_TILES, unit_bytes);
    1024 + INPUT_STAGES * input_bytes(groups) + units + 8 * 3 * INPUT_STAGES + barriers
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
    /// Rows of inputs.
    const INPUTS: u32 = 2 * N as u32;
    /// Bytes of a step.
    const STEP_BYTES: u32 = input_bytes(N as u32 / 4);

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
            units: Ring::new(Shared::from_address(units), barriers.add(3 * INPUT_STAGES), stages),
        };
        // SAFETY: nobody uses them yet.
        unsafe {
            if thread::thread_idx_x() == 0 {
                repeat(INPUT_STAGES as usize, |stage| {
                    room.copied(stage as u32).init(32);
                    room.full(stage as u32).init(1);
                    room.empty(stage as u32).init(GROUP_TILES);
                });
                room.units.init();
                mbarrier::fence_init();
            }
        }
        thread::sync_threads();
        room
    }

    /// A step of inputs was copied: what each lane copied of it says so.
    #[inline(always)]
    fn copied(&self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(2 * INPUT_STAGES + stage))
    }

    /// Its words are in their places: the warp that moves them says so.
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
    fn step(&self, stage: u32) -> Shared<[u32; 4]> {
        self.inputs.add(stage * Self::STEP_BYTES).cast()
    }
}

/// Asks for the units of `items` items, the first of which is unit `unit` of group `group`.
///
/// # Safety
/// All lanes of a warp call it together; these items are in the matrix.
#[device]
#[inline(always)]
unsafe fn ask<W: Unit, const N: usize>(
    room: &Room<W, N>,
    a: &MatmulHalves,
    units: u32,
    [mut group, mut unit]: [u32; 2],
    items: u32,
) {
    let (lane, tiles) = (warp::lane_id(), a.rows / ROWS);
    let mut at = Place::FIRST;
    let mut item = 0;
    while item < items {
        // For a tile behind the last it is the last.
        let tile = (group * GROUP_TILES + lane).min(tiles - 1);
        let from = a.weight.wrapping_add(offset(tile, units, unit) * W::BYTES as usize);
        // SAFETY: inside the matrix.
        unsafe { room.units.ask(at, from) }
        unit += 1;
        if unit == units {
            (unit, group) = (0, group + 1);
        }
        at = room.units.next(at);
        item += 1;
    }
}

/// Copies `steps` steps of inputs, from column `column` of rows `first_row` on: a lane a word of every fourth row.
///
/// # Safety
/// All lanes of a warp call it together; the inputs are complete.
#[device]
#[inline(always)]
unsafe fn copy<W: Unit, const N: usize>(
    room: &Room<W, N>,
    a: &MatmulHalves,
    first_row: u32,
    mut column: u32,
    steps: u32,
) {
    let (row, word) = (warp::lane_id() / 8, warp::lane_id() % 8);
    let mut rows = [0; 16];
    // A row behind the last is the last: nobody stores what comes of it.
    repeat(N / 2, |i| rows[i] = (first_row + row + 4 * i as u32).min(a.n - 1) * a.cols + 8 * word);
    let mut at = Stage::<INPUT_STAGES>::FIRST;
    let mut step = 0;
    while step < steps {
        // SAFETY: a stage is written when it is empty; the caller's promise.
        unsafe {
            room.empty(at.stage).wait(at.parity ^ 1);
            let (from, to) = (a.x.wrapping_add(column as usize), room.step(at.stage));
            // Eight rows on a word has the same place in its row.
            let places = [row, row + 4].map(|row| to.add(8 * row + (word ^ row)));
            repeat(N / 2, |i| {
                copy_16_l2(places[i % 2].add(64 * (i as u32 / 2)), from.wrapping_add(rows[i] as usize));
            });
            room.copied(at.stage).arrive_after_copies();
        }
        column += STEP;
        if column >= a.cols {
            column = 0;
        }
        at = at.next();
        step += 1;
    }
}

/// Moves words of a step: columns to the places that weights have.
///
/// # Safety
/// All lanes of a warp call it together; the step was copied, and nobody else uses it.
#[device]
#[inline(always)]
unsafe fn arrange<const N: usize>(step: Shared<[u32; 4]>) {
    // Pairs of words that are loaded before the first is stored.
    const AT_ONCE: usize = 4;
    let (row, part) = (warp::lane_id() / 4, warp::lane_id() % 4);
    let [first, second] = [2 * part, 2 * part + 1].map(|word| step.add(8 * row + (word ^ row)));
    let pairs = const { N / 4 };
    let mut begin = 0;
    while begin < pairs {
        let mut words = [[[0; 4]; 2]; AT_ONCE];
        // SAFETY: a lane has these words for itself.
        unsafe {
            repeat(AT_ONCE.min(pairs), |i| {
                let place = 64 * (begin + i) as u32;
                words[i] = [first.add(place).get(0), second.add(place).get(0)];
            });
            repeat(AT_ONCE.min(pairs), |i| {
                let place = 64 * (begin + i) as u32;
                let [[w0, w1, w2, w3], [w4, w5, w6, w7]] = words[i];
                // Of four columns the first and the third, and the others.
                let pairs = [[w0, w1], [w2, w3], [w4, w5], [w6, w7]];
                first.add(place).set(0, pairs.map(|[a, b]| f16x2::bytes(a, b, 0x5410)));
                second.add(place).set(0, pairs.map(|[a, b]| f16x2::bytes(a, b, 0x7632)));
            });
        }
        begin += AT_ONCE;
    }
}

/// `2 N` rows of inputs at a time.
///
/// Grid `[blocks * parts, 1, 1]`, blocks from 1 to the items, `2 N * parts` at least `n`; block `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`shared_bytes`] of 1 to
/// [`MAX_STAGES`] stages.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulHalves`], are aligned to 16 bytes and do not overlap; there is a counter for each tile of a group
/// and part. Of what the kernels before this one write, only `x`, `out`, `partial` and `counters` are used.
#[kernel(
    W = [unit_formats!],
    N = [8, 16, 32],
    name = "matmul_{W}_wgmma_{N}",
    max_threads = 640,
    min_blocks = 1,
    requires = "sm_90a",
)]
pub unsafe fn wgmma<W: Halves, const N: usize>(a: MatmulHalves)
where
    f16: WgmmaElement<N>,
{
    launch_dependents();
    let (block, part) = divide(thread::block_idx_x(), a.parts);
    let blocks = divide(thread::grid_dim_x(), a.parts).0;
    let units = divide(a.cols, W::COLS).0;
    let shares = Shares { blocks, items: (a.rows / ROWS).div_ceil(GROUP_TILES) * units, units };
    let [from, to] = [shares.begin(block), shares.begin(block + 1)];
    // SAFETY: the kernel's own contract.
    unsafe {
        let room = Room::<W, N>::start(a.stages);
        let warpgroup = warp::shuffle_idx(thread::thread_idx_x() / 128, 0);
        if warpgroup == 0 {
            wgmma::decrease_registers::<64>();
            let steps = (to - from) * (W::COLS / STEP);
            let (group, unit) = divide(from, units);
            let me = warp::warp_id();
            if me == 0 {
                // Weights do not wait for the kernel before this one.
                ask(&room, &a, units, [group, unit], to - from);
            } else if me == 1 {
                wait_for_dependencies();
                copy(&room, &a, Room::<W, N>::INPUTS * part, unit * W::COLS, steps);
            } else {
                let mut at = Stage::<INPUT_STAGES>::FIRST;
                let mut step = 0;
                while step < steps {
                    if at.stage % ARRANGERS + 2 == me {
                        room.copied(at.stage).wait(at.parity);
                        arrange::<N>(room.step(at.stage));
                        fence_proxy_async_shared();
                        sync_warp(FULL_MASK);
                        room.full(at.stage).arrive_if(warp::lane_id() == 0);
                    }
                    at = at.next();
                    step += 1;
                }
            }
        } else {
            wgmma::increase_registers::<104>();
            multiply(&a, &room, shares, [block, part], [from, to]);
        }
    }
}

/// Multiplies this warp's tiles of the items `from` to `to`.
///
/// # Safety
/// As for the kernel; all threads of the warpgroups behind the first call it together.
#[device]
#[inline(always)]
unsafe fn multiply<W: Halves, const N: usize>(
    a: &MatmulHalves,
    room: &Room<W, N>,
    shares: Shares,
    [block, part]: [u32; 2],
    [from, to]: [u32; 2],
) where
    f16: WgmmaElement<N>,
{
    let (warp_id, lane) = (warp::warp_id() - BRINGERS / 32, warp::lane_id());
    let units = shares.units;
    let (mut group, mut unit) = divide(from, units);
    // SAFETY: the caller's promise.
    unsafe {
        wait_for_dependencies();
        let mut sums = [0.0f32; N];
        let mut at = Stage::<INPUT_STAGES>::FIRST;
        let mut of_units = Place::FIRST;
        // The item, and the first one of this group.
        let (mut i, mut begin) = (from, from);
        while i < to {
            let place = room.units.wait(of_units, warp_id);
            let scales = [W::scales(place, 0), W::scales(place, 1)];
            // The stage of the step before, whose products may still run.
            let (mut pair, mut last) = (0, at.stage);
            while pair < W::COLS / STEP {
                room.full(at.stage).wait(at.parity);
                let inputs = Descriptor::k_major(room.step(at.stage));
                let weights = operand::<W>(place, &scales, pair);
                f16::multiply_registers(&mut sums, weights, inputs, true);
                // But for this one all have ended.
                f16::wait::<1>(&mut sums);
                room.empty(last).arrive_if(pair > 0 && lane == 0);
                last = at.stage;
                at = at.next();
                pair += 1;
            }
            room.units.done(of_units);
            // Not longer: `ptxas` would wait for each product where warps may part, and it holds ends of groups for that.
            f16::wait::<0>(&mut sums);
            room.empty(last).arrive_if(lane == 0);
            of_units = room.units.next(of_units);
            (i, unit) = (i + 1, unit + 1);
            if unit == units || i == to {
                let is_whole = i - begin == units;
                finish::<N>(a, shares, &mut sums, [block, part], [warp_id, group], is_whole);
                sums = [0.0; N];
                begin = i;
                if unit == units {
                    (unit, group) = (0, group + 1);
                }
            }
        }
    }
}

/// Stores the sums of this warp's tiles of a group, if its block has them whole; else leaves them, and if no other block has still to leave some,
/// stores what all have left.
///
/// # Safety
/// As for the kernel; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn finish<const N: usize>(
    a: &MatmulHalves,
    shares: Shares,
    sums: &mut [f32; N],
    [block, part]: [u32; 2],
    [warp_id, group]: [u32; 2],
    is_whole: bool,
) {
    let &MatmulHalves { parts, partial, counters, .. } = a;
    let lane = warp::lane_id();
    let groups = const { N as u32 / 4 };
    // SAFETY: the caller's promise; pieces that are read were left before their warps counted.
    unsafe {
        if !is_whole {
            let piece = |of: u32| {
                let piece = shares.piece(of, group, [parts, part]);
                let place = offset(piece, partial_values(groups), (warp_id * 32 + lane) * 4);
                partial.add(place).cast::<[f32; 4]>()
            };
            let place = |g: usize| g * 32 * GROUP_TILES as usize;
            let mine = piece(block);
            repeat(N / 4, |g| {
                let values = [sums[4 * g], sums[4 * g + 1], sums[4 * g + 2], sums[4 * g + 3]];
                memory::store(mine.add(place(g)), values);
            });
            let [first, last] = shares.holders(group);
            let counter = counters.add(offset(group * parts + part, GROUP_TILES, warp_id));
            sync_warp(FULL_MASK);
            let mut before = 0;
            if lane == 0 {
                before = u32::fetch_add(counter, 1, Ordering::AcqRel, Scope::Device);
                if before == last - first {
                    memory::store(counter, 0);
                }
            }
            if warp::shuffle_idx(before, 0) != last - first {
                return;
            }
            sync_warp(FULL_MASK);
            *sums = [0.0; N];
            let mut of = first;
            while of <= last {
                // Two are asked for before the first is added; behind the last there is nothing to add.
                let [one, other] = [of, (of + 1).min(last)].map(|of| piece(of).cast_const());
                let has_other = of < last;
                let mut values = [[[0.0f32; 4]; 2]; 8];
                repeat(N / 4, |g| {
                    values[g] = [memory::load_l2(one.add(place(g))), memory::load_l2(other.add(place(g)))];
                });
                repeat(N, |i| {
                    let [value, next] = [values[i / 4][0][i % 4], values[i / 4][1][i % 4]];
                    let sum = sums[i] + value;
                    sums[i] = if has_other { sum + next } else { sum };
                });
                of += 2;
            }
        }
        store(a, group * GROUP_TILES + warp_id, 2 * N as u32 * part, N / 2, |i| sums[i]);
    }
}
