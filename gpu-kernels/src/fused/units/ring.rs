//! A block's part of a matrix in units, and the ring through which a warp streams its share. See the [module](super).

use cuda_std::prelude::*;

#[device]
use super::Inputs;
#[device]
use crate::{grid::divide, units::Unit};
#[device]
use cuda_std::{
    async_copy::bulk_copy,
    mbarrier::{self, Mbarrier},
    warp::{FULL_MASK, sync_warp},
};

/// A matrix in units, and the part of it that a block multiplies.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) weights: *const u8,
    /// Units of a tile in the matrix.
    pub(super) units: u32,
    /// The block's tiles.
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    /// The units of these tiles that it takes.
    pub(super) first_unit: u32,
    pub(super) chunks: u32,
}

#[device]
impl Tiles {
    /// The share of block `block` of `blocks` of `tiles` tiles of `units` units.
    #[inline(always)]
    pub(super) fn share(weights: *const u8, tiles: u32, units: u32, block: u32, blocks: u32) -> Self {
        Self::slice(weights, tiles, units, [block, blocks], [0, 1])
    }

    /// As [`Tiles::share`], of slice `slice` of `slices` of the columns.
    #[inline(always)]
    pub(super) fn slice(
        weights: *const u8,
        tiles: u32,
        units: u32,
        [block, blocks]: [u32; 2],
        [slice, slices]: [u32; 2],
    ) -> Self {
        let begin = |i: u32, count: u32, of: u32| divide(i * count, of).0;
        let (first_tile, first_unit) = (begin(block, tiles, blocks), begin(slice, units, slices));
        let (end_tile, end_unit) = (begin(block + 1, tiles, blocks), begin(slice + 1, units, slices));
        Self {
            weights,
            units,
            first_tile,
            tiles: end_tile - first_tile,
            first_unit,
            chunks: end_unit - first_unit,
        }
    }

    /// Through its units from the `from`-th on.
    #[inline(always)]
    pub(super) fn walk<W: Unit>(self, from: u32) -> TileWalk<W> {
        let (tile, chunk) = divide(from, self.chunks);
        let unit =
            (self.first_tile + tile) as usize * self.units as usize + (self.first_unit + chunk) as usize;
        TileWalk {
            at: self.weights.wrapping_add(unit * W::BYTES as usize),
            left: self.chunks - chunk,
            chunks: self.chunks,
            others: (self.units - self.chunks) * W::BYTES,
            format: core::marker::PhantomData,
        }
    }

    /// The first of the block's tiles.
    #[inline(always)]
    pub(super) fn first(self) -> u32 {
        self.first_tile
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        self.tiles
    }
}

/// Where the units of a warp's share are, one after the other.
#[device]
pub(crate) trait Walk {
    /// Of the unit that comes next. Every lane of the warp walks.
    fn next(&mut self) -> *const u8;
}

/// Through the units of a block's tiles, tile by tile.
#[device]
pub(super) struct TileWalk<W> {
    /// The unit that comes next.
    at: *const u8,
    /// Units up to the end of its tile, and of a tile.
    left: u32,
    chunks: u32,
    /// Bytes of a tile that other blocks take.
    others: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Walk for TileWalk<W> {
    #[inline(always)]
    fn next(&mut self) -> *const u8 {
        let at = self.at;
        self.left -= 1;
        let others = if self.left == 0 { self.others } else { 0 };
        self.left = if self.left == 0 { self.chunks } else { self.left };
        self.at = at.wrapping_add((W::BYTES + others) as usize);
        at
    }
}

/// A warp's share of the block's units, on its way through a ring.
#[device]
pub(crate) struct Ring<W, A> {
    walk: A,
    depth: u32,
    ring: Shared<u8>,
    barriers: Shared<u64>,
    /// Units that are not copied yet.
    left: u32,
    /// The place that the next of them goes to.
    next_place: u32,
    /// The place that is read next, and the parity of its phase.
    place: u32,
    parity: u32,
    format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit, A: Walk> Ring<W, A> {
    /// Starts to copy the first of `count` units.
    ///
    /// # Safety
    /// All lanes of the warp call it together; `ring` has room for `depth` units and `barriers` for as many barriers, which are the warp's
    /// alone. The walk leads to that many units, aligned to 16 bytes.
    #[inline(always)]
    pub(crate) unsafe fn start(
        walk: A,
        count: u32,
        depth: u32,
        ring: Shared<u8>,
        barriers: Shared<u64>,
    ) -> Self {
        let format = core::marker::PhantomData;
        let mut ring =
            Self { walk, depth, ring, barriers, left: count, next_place: 0, place: 0, parity: 0, format };
        // SAFETY: the caller's promise.
        unsafe {
            if warp::lane_id() == 0 {
                let mut place = 0;
                while place < depth {
                    Mbarrier::new(barriers.add(place)).init(1);
                    place += 1;
                }
                mbarrier::fence_init();
            }
            sync_warp(FULL_MASK);
            let mut place = 0;
            while place < depth {
                ring.copy();
                place += 1;
            }
        }
        ring
    }

    /// Starts to copy the next unit to the next place, if there is one.
    ///
    /// # Safety
    /// All lanes call it together, and have read what the place held.
    #[inline(always)]
    unsafe fn copy(&mut self) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let from = self.walk.next();
        if warp::lane_id() == 0 {
            let barrier = Mbarrier::new(self.barriers.add(self.next_place));
            // SAFETY: inside the matrix; the caller's promise.
            unsafe {
                barrier.arrive_expect_tx(W::BYTES);
                bulk_copy(self.ring.add(self.next_place * W::BYTES), from, W::BYTES, barrier);
            }
        }
        self.next_place = if self.next_place + 1 == self.depth { 0 } else { self.next_place + 1 };
    }

    /// Multiplies the unit that comes next, then starts to copy another one to its place.
    ///
    /// # Safety
    /// All lanes of the warp call it together, once for each unit; the inputs are staged.
    #[inline(always)]
    pub(crate) unsafe fn multiply<const G: usize>(&mut self, inputs: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            Mbarrier::new(self.barriers.add(self.place)).wait(self.parity);
            W::multiply(self.ring.add(self.place * W::BYTES), inputs, sums);
            sync_warp(FULL_MASK);
            self.copy();
        }
        self.place += 1;
        if self.place == self.depth {
            (self.place, self.parity) = (0, self.parity ^ 1);
        }
    }
}
