//! A block's part of a matrix in units, and the ring through which a warp streams its share. See the [module](super).

use cuda_std::prelude::*;

#[device]
use super::Inputs;
#[device]
use crate::{grid::divide, units::Unit};
#[device]
use cuda_std::{
    async_copy::bulk_copy,
    mbarrier::Mbarrier,
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

/// A warp's share of the block's units, on its way through a ring.
#[device]
pub(super) struct Ring<W> {
    pub(super) tiles: Tiles,
    pub(super) depth: u32,
    pub(super) ring: Shared<u8>,
    pub(super) barriers: Shared<u64>,
    /// The unit that is copied next: its tile of the block, its chunk; and how many are left.
    pub(super) tile: u32,
    pub(super) chunk: u32,
    pub(super) left: u32,
    /// The place that it goes to.
    pub(super) next_place: u32,
    /// The place that is read next, and the parity of its phase.
    pub(super) place: u32,
    pub(super) parity: u32,
    pub(super) format: core::marker::PhantomData<W>,
}

#[device]
impl<W: Unit> Ring<W> {
    /// Starts to copy the next unit to the next place, if there is one.
    ///
    /// # Safety
    /// All lanes call it together, and have read what the place held.
    #[inline(always)]
    pub(super) unsafe fn copy(&mut self) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        if warp::lane_id() == 0 {
            let Tiles { weights, units, first_tile, first_unit, .. } = self.tiles;
            let unit =
                (first_tile + self.tile) as usize * units as usize + (first_unit + self.chunk) as usize;
            let barrier = Mbarrier::new(self.barriers.add(self.next_place));
            // SAFETY: inside the matrix; the caller's promise.
            unsafe {
                barrier.arrive_expect_tx(W::BYTES);
                let to = self.ring.add(self.next_place * W::BYTES);
                bulk_copy(to, weights.add(unit * W::BYTES as usize), W::BYTES, barrier);
            }
        }
        self.chunk += 1;
        if self.chunk == self.tiles.chunks {
            (self.chunk, self.tile) = (0, self.tile + 1);
        }
        self.next_place = if self.next_place + 1 == self.depth { 0 } else { self.next_place + 1 };
    }

    /// Multiplies the unit that comes next, then starts to copy another one to its place.
    ///
    /// # Safety
    /// All lanes of the warp call it together, once for each unit; the inputs are staged.
    #[inline(always)]
    pub(super) unsafe fn multiply<const G: usize>(&mut self, inputs: &Inputs, sums: &mut [[f32; 2]; G]) {
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
