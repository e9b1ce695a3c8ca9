//! Products of some ten to some hundred rows with matrices in [units](crate::units), on f16 tensor cores.
//!
//! # Weights are decoded in registers
//! A lane's bytes of a unit, which `mma.m16n8k32` multiplies as they are, become first operands of `mma.m16n8k16` by two permutations for four of them: a
//! byte is the f16 that is 1024 more behind the byte 0x64. Then 1024 is taken away, and the block's scale multiplied in, two f16 at a time
//! ([`Halves`]). Columns keep the places that the bytes have: of 32 columns lane `4 r + c` has `4 c ..` and `16 + 4 c ..`, and takes eight bytes
//! of each row of the inputs as they lie.
//!
//! # A block has equal shares of tiles and columns
//! [`GROUP_TILES`] tiles at a time, two a warp, are multiplied with `8 G` rows of inputs; units and inputs of some columns come by bulk copies, some stages ahead. A group
//! times the columns of a unit is an item. All items stand in a row, group by group, and each block has an equal share of it (Osama et al., "Stream-K",
//! 2023), so that no multiprocessor waits for another, whatever the shape. A group that lies in several shares is added up, in their
//! order, by the block that ends last.

use cuda_std::prelude::*;

#[device]
use super::shares::{Shares, store};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, is_last_block, offset, repeat},
    units::*,
};
#[device]
use cuda_std::{
    async_copy::bulk_copy,
    mbarrier::{self, Mbarrier},
    memory,
    mma::MmaElement,
    warp::{FULL_MASK, sync_warp},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
const WARPS: u32 = BLOCK_SIZE / 32;
/// Tiles of a warp.
const TILES: usize = 2;
/// Tiles that a block multiplies at once.
pub const GROUP_TILES: u32 = WARPS * TILES as u32;
/// The most stages.
pub const MAX_STAGES: u32 = 8;
/// Bytes that a row of inputs in shared memory has more than columns: with them eight neighbours lie in different banks.
const ROW_PADDING: u32 = 32;

/// Bytes of dynamic shared memory: `stages` stages of units and of the same columns of `groups` times eight rows of inputs, and their barriers.
pub const fn shared_bytes(stages: u32, unit_cols: u32, unit_bytes: u32, groups: u32) -> u32 {
    stages * (stage_bytes(unit_cols, unit_bytes, groups) + 2 * 8)
}

const fn stage_bytes(unit_cols: u32, unit_bytes: u32, groups: u32) -> u32 {
    GROUP_TILES * unit_bytes + 8 * groups * row_bytes(unit_cols)
}

/// From one row of inputs to the next.
const fn row_bytes(unit_cols: u32) -> u32 {
    2 * unit_cols + ROW_PADDING
}

/// Values that a block leaves of a group that others have a part of, for each of its two ends.
pub const fn partial_values(groups: u32) -> u32 {
    GROUP_TILES * ROWS * 8 * groups
}

/// `out += scale · x · weightᵀ`, or `out = scale · x · weightᵀ`, of some rows of the weights.
#[kernel_args]
pub struct MatmulHalves {
    pub n: u32,
    /// Rows of all tiles.
    pub rows: u32,
    pub cols: u32,
    /// The rows that are multiplied; products with others are not stored.
    pub first_row: u32,
    pub num_rows: u32,
    pub scale: f32,
    /// From one row of `out` to the next, in values.
    pub out_stride: u32,
    /// Whether products are added to what is there, if not 0.
    pub accumulate: u32,
    pub stages: u32,
    /// See [`crate::units`].
    pub span: u32,
    /// Parts of the rows of inputs, `8 G` each, which blocks of their own multiply.
    pub parts: u32,
    /// f16 `[n, cols]`
    pub x: *const f16,
    /// `[rows, cols]` in units
    pub weight: *const u8,
    /// f32 `[n, num_rows]`, in rows of `out_stride` values
    pub out: *mut f32,
    /// f32 `[blocks, 2, partial_values(G)]`
    pub partial: *mut f32,
    /// u32 `[groups of tiles, parts]`, zeros
    pub counters: *mut u32,
}

/// What a warp has of its tiles and eight rows of inputs `G` times: rows `lane / 4` and 8 more of a tile, input rows `2 * (lane % 4)` and the next.
#[device]
type Sums<const G: usize> = [[[f32; 4]; G]; TILES];

/// A block's share, and the stages that its items go through.
#[device]
struct Items<W> {
    weight: *const u8,
    x: *const f16,
    /// Rows of x, of which the block has those from `first_row` on.
    n: u32,
    first_row: u32,
    cols: u32,
    tiles: u32,
    /// Units of a tile.
    units: u32,
    stages: u32,
    shared: Shared<u8>,
    /// The item that is copied next: its group and unit; and how many are left.
    group: u32,
    unit: u32,
    left: u32,
    /// The stage that it goes to.
    stage: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Halves> Items<W> {
    #[inline(always)]
    fn stage_bytes(groups: u32) -> u32 {
        stage_bytes(W::COLS, W::BYTES, groups)
    }

    /// The barrier that a stage's copies complete, and the one at which warps arrive that are done with it.
    #[inline(always)]
    fn barriers(&self, stage: u32, groups: u32) -> [Mbarrier; 2] {
        let barriers = self.shared.add(self.stages * Self::stage_bytes(groups)).cast::<u64>();
        [Mbarrier::new(barriers.add(stage)), Mbarrier::new(barriers.add(self.stages + stage))]
    }

    /// Starts to copy this warp's units of the next item.
    ///
    /// # Safety
    /// All lanes of the warp call it together, and there is such an item; nobody uses its stage.
    #[inline(always)]
    unsafe fn copy_units(&self, groups: u32) {
        let [barrier, _] = self.barriers(self.stage, groups);
        let to = self.shared.add(self.stage * Self::stage_bytes(groups));
        // SAFETY: inside the matrix, for a tile behind the last is the last; the caller's promise.
        unsafe {
            if warp::lane_id() == 0 {
                barrier.arrive_expect_tx(TILES as u32 * W::BYTES + groups * 2 * W::COLS);
                repeat(TILES, |j| {
                    let of_group = warp::warp_id() * TILES as u32 + j as u32;
                    let tile = (self.group * GROUP_TILES + of_group).min(self.tiles - 1);
                    let unit = tile as usize * self.units as usize + self.unit as usize;
                    let from = self.weight.wrapping_add(unit * W::BYTES as usize);
                    bulk_copy(to.add(of_group * W::BYTES), from, W::BYTES, barrier);
                });
            }
            sync_warp(FULL_MASK);
        }
    }

    /// Starts to copy this warp's rows of inputs of the next item, an eighth of them.
    ///
    /// # Safety
    /// As [`Items::copy_units`], after which it is called; the inputs are complete.
    #[inline(always)]
    unsafe fn copy_inputs(&self, groups: u32) {
        let lane = warp::lane_id();
        if lane < groups {
            let row = warp::warp_id() * groups + lane;
            let [barrier, _] = self.barriers(self.stage, groups);
            let to = self.shared.add(self.stage * Self::stage_bytes(groups) + GROUP_TILES * W::BYTES);
            // A row behind the last is the last: nobody stores what comes of it.
            let from = offset((self.first_row + row).min(self.n - 1), self.cols, self.unit * W::COLS);
            // SAFETY: the caller's promise.
            unsafe {
                bulk_copy(to.add(row * row_bytes(W::COLS)), self.x.add(from), 2 * W::COLS, barrier);
            }
        }
    }

    /// To the item behind the next one, and its stage.
    #[inline(always)]
    fn step(&mut self) {
        self.left -= 1;
        self.unit += 1;
        if self.unit == self.units {
            (self.unit, self.group) = (0, self.group + 1);
        }
        self.stage = if self.stage + 1 == self.stages { 0 } else { self.stage + 1 };
    }
}

/// Adds the products of this warp's units of a stage with its inputs.
///
/// # Safety
/// All lanes of the warp call it together; the stage is complete.
#[device]
#[inline(always)]
unsafe fn multiply<W: Halves, const G: usize>(stage: Shared<u8>, sums: &mut Sums<G>) {
    // Operands of inputs that are loaded before they are used, so that no sum waits for the one before.
    const AHEAD: usize = 4;
    let lane = warp::lane_id();
    let units = stage.add(warp::warp_id() * TILES as u32 * W::BYTES);
    let unit = |j: usize| units.add(j as u32 * W::BYTES);
    let inputs = stage.add(GROUP_TILES * W::BYTES + lane / 4 * row_bytes(W::COLS) + lane % 4 * 8);
    // SAFETY: the caller's promise.
    unsafe {
        let scales = |j| [W::scales(unit(j), 0), W::scales(unit(j), 1)];
        let scales = [scales(0), scales(1)];
        let mut pair = 0;
        while pair < W::COLS / 64 {
            repeat(2, |odd| {
                let mut weights = [[[0u32; 4]; 2]; TILES];
                repeat(TILES, |j| {
                    weights[j] = W::halves::<false>(unit(j), &scales[j][odd], odd as u32, pair)
                });
                let columns = inputs.add((2 * pair + odd as u32) * 64);
                repeat(G.div_ceil(AHEAD), |part| {
                    let mut operands = [[[0u32; 2]; 2]; AHEAD];
                    repeat(AHEAD, |i| {
                        let g = part * AHEAD + i;
                        if g < G {
                            let row = columns.add(8 * g as u32 * row_bytes(W::COLS)).cast::<[u32; 2]>();
                            operands[i] = [row.get(0), row.get(4)];
                        }
                    });
                    repeat(2, |step| {
                        repeat(AHEAD, |i| {
                            let g = part * AHEAD + i;
                            if g < G {
                                repeat(TILES, |j| {
                                    let (a, b) = (weights[j][step], operands[i][step]);
                                    sums[j][g] = f16::mma_m16n8k16(a, b, sums[j][g]);
                                });
                            }
                        });
                    });
                });
            });
            pair += 1;
        }
    }
}

/// `8 G` rows of inputs at a time.
///
/// Grid `[blocks * parts, 1, 1]`, blocks from 1 to the items, `8 G * parts` at least `n`; block `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`shared_bytes`] of 1 to
/// [`MAX_STAGES`] stages.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`MatmulHalves`], are aligned to 16 bytes and do not overlap. Of what the
/// kernels before this one write, only `x`, `out`, `partial` and `counters` are used.
#[kernel(
    W = [q4_0::q4_0, q4_k::q4_k, q5_0::q5_0, q5_k::q5_k, q6_k::q6_k, q8_0::q8_0],
    G = [2, 4, 8],
    name = "matmul_{W}_halves_{G}",
    max_threads = 256,
    min_blocks = 1,
    requires = "sm_90",
)]
pub unsafe fn halves<W: Halves, const G: usize>(a: MatmulHalves) {
    let MatmulHalves { n, rows, cols, stages, parts, x, weight, partial, counters, .. } = a;
    let groups = const { G as u32 };
    launch_dependents();
    let (block, part) = divide(thread::block_idx_x(), parts);
    let blocks = divide(thread::grid_dim_x(), parts).0;
    let (tiles, units) = (rows / ROWS, divide(cols, W::COLS).0);
    let items = tiles.div_ceil(GROUP_TILES) * units;
    let shares = Shares { blocks, items, units };
    let (from, to) = (shares.begin(block), shares.begin(block + 1));
    let shared = dynamic_shared::<u8>();
    let (group, unit) = divide(from, units);
    let first_input = 8 * groups * part;
    let format = core::marker::PhantomData;
    let left = to - from;
    let mut next = Items::<W> {
        weight,
        x,
        n,
        first_row: first_input,
        cols,
        tiles,
        units,
        stages,
        shared,
        group,
        unit,
        left,
        stage: 0,
        format,
    };
    let (warp_id, lane) = (warp::warp_id(), warp::lane_id());
    // SAFETY: the caller's promise; a stage is filled again behind a barrier that follows its last use.
    unsafe {
        if thread::thread_idx_x() == 0 {
            let mut stage = 0;
            while stage < stages {
                let [complete, done] = next.barriers(stage, groups);
                complete.init(WARPS);
                done.init(WARPS);
                stage += 1;
            }
            mbarrier::fence_init();
        }
        thread::sync_threads();
        // The units of the first stages do not wait for the kernel before this one.
        let ahead = stages.min(left);
        {
            let mut of_units = Items { ..next };
            let mut i = 0;
            while i < ahead {
                of_units.copy_units(groups);
                of_units.step();
                i += 1;
            }
        }
        wait_for_dependencies();
        let mut i = 0;
        while i < ahead {
            next.copy_inputs(groups);
            next.step();
            i += 1;
        }
        let mut sums: Sums<G> = [[[0.0; 4]; G]; TILES];
        let (mut group, mut unit) = (group, unit);
        let (mut stage, mut parity) = (0, 0);
        // Warps may be an item apart: what was used two items ago, or with two stages in the last one, is filled again.
        let behind = if stages > 2 { 2 } else { 1 };
        let mut refilled = 0;
        // The item, and the first one of this group.
        let (mut i, mut begin) = (from, from);
        while i < to {
            if next.left > 0 && i - from >= behind {
                let [_, done] = next.barriers(next.stage, groups);
                done.wait(refilled);
                next.copy_units(groups);
                next.copy_inputs(groups);
                next.step();
                if next.stage == 0 {
                    refilled ^= 1;
                }
            }
            let [complete, done] = next.barriers(stage, groups);
            complete.wait(parity);
            multiply::<W, G>(shared.add(stage * Items::<W>::stage_bytes(groups)), &mut sums);
            sync_warp(FULL_MASK);
            if lane == 0 {
                done.arrive();
            }
            stage += 1;
            if stage == stages {
                (stage, parity) = (0, parity ^ 1);
            }
            (i, unit) = (i + 1, unit + 1);
            if unit == units || i == to {
                let store = |sums: &Sums<G>| {
                    repeat(TILES, |j| {
                        let tile = group * GROUP_TILES + warp_id * TILES as u32 + j as u32;
                        store(&a, tile, first_input, 2 * G, |i| sums[j][i / 4][i % 4]);
                    });
                };
                if i - begin == units {
                    store(&sums);
                } else {
                    let piece = |of: u32| {
                        let piece = shares.piece(of, group, [parts, part]);
                        let place = offset(piece, partial_values(groups), (warp_id * 32 + lane) * 4);
                        partial.add(place).cast::<[f32; 4]>()
                    };
                    let place = |j: usize, g: usize| (j * G + g) * BLOCK_SIZE as usize;
                    let mine = piece(block);
                    repeat(TILES, |j| repeat(G, |g| memory::store(mine.add(place(j, g)), sums[j][g])));
                    let [first, last] = shares.holders(group);
                    let counter = counters.add(offset(group, parts, part));
                    if is_last_block(counter, last - first + 1, shared_array![u32; 1]) {
                        sums = [[[0.0; 4]; G]; TILES];
                        let mut of = first;
                        while of <= last {
                            let piece = piece(of).cast_const();
                            repeat(TILES, |j| {
                                // All are asked for before the first is added.
                                let mut values = [[0.0f32; 4]; G];
                                repeat(G, |g| values[g] = memory::load_l2(piece.add(place(j, g))));
                                repeat(G, |g| repeat(4, |k| sums[j][g][k] += values[g][k]));
                            });
                            of += 1;
                        }
                        store(&sums);
                    }
                }
                sums = [[[0.0; 4]; G]; TILES];
                begin = i;
                if unit == units {
                    (unit, group) = (0, group + 1);
                }
            }
        }
    }
}
