//! What the products of `wgmma` share that decode units: the ring that units come through, and a step's weights as an operand.

use cuda_std::prelude::*;

#[device]
use super::{Halves, Unit};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::{
    async_copy::bulk_copy,
    mbarrier::Mbarrier,
    warp::{FULL_MASK, sync_warp},
};

/// Columns that are multiplied at a time.
pub const STEP: u32 = 64;
/// The most stages.
pub const MAX_STAGES: u32 = 8;

/// Bytes of a ring of `stages` units of each of `tiles` tiles, and of its barriers.
pub const fn ring_bytes(stages: u32, tiles: u32, unit_bytes: u32) -> [u32; 2] {
    [stages * tiles * unit_bytes, 2 * 8 * stages]
}

/// Stages of a unit of each of `TILES` tiles. A warp asks for them; each tile's warp decodes its own and says so.
#[device]
pub(crate) struct Ring<W, const TILES: u32> {
    units: Shared<u8>,
    barriers: Shared<u64>,
    stages: u32,
    format: core::marker::PhantomData<W>,
}

/// A place in it, and the parity of its phase.
#[device]
#[derive(Clone, Copy)]
pub(crate) struct Place {
    stage: u32,
    parity: u32,
}

#[device]
impl Place {
    pub(crate) const FIRST: Self = Self { stage: 0, parity: 0 };
}

#[device]
impl<W: Unit, const TILES: u32> Ring<W, TILES> {
    #[inline(always)]
    pub(crate) fn new(units: Shared<u8>, barriers: Shared<u64>, stages: u32) -> Self {
        Self { units, barriers, stages, format: core::marker::PhantomData }
    }

    /// # Safety
    /// One thread calls it, before anybody uses the ring; a fence follows.
    #[inline(always)]
    pub(crate) unsafe fn init(&self) {
        let mut stage = 0;
        while stage < self.stages {
            // SAFETY: the caller's promise.
            unsafe {
                self.complete(stage).init(1);
                self.decoded(stage).init(TILES);
            }
            stage += 1;
        }
    }

    /// A stage's units are there: their bytes, and the lane that asked has said how many.
    #[inline(always)]
    fn complete(&self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(stage))
    }

    /// Nobody needs them any more: each warp that decoded its own says so.
    #[inline(always)]
    fn decoded(&self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(self.stages + stage))
    }

    #[inline(always)]
    fn unit(&self, stage: u32, tile: u32) -> Shared<u8> {
        self.units.add((stage * TILES + tile) * W::BYTES)
    }

    /// The place after one.
    #[inline(always)]
    pub(crate) fn next(&self, at: Place) -> Place {
        let Place { stage, parity } = at;
        if stage + 1 == self.stages {
            Place { stage: 0, parity: parity ^ 1 }
        } else {
            Place { stage: stage + 1, parity }
        }
    }

    /// Asks for the units of a place, as soon as those before were decoded: that of tile `lane` is at `from`.
    ///
    /// # Safety
    /// All lanes of one warp call it together, for each place in turn; there are such units.
    #[inline(always)]
    pub(crate) unsafe fn ask(&self, at: Place, from: *const u8) {
        let lane = warp::lane_id();
        let complete = self.complete(at.stage);
        // SAFETY: the caller's promise; a stage is written when it was decoded.
        unsafe {
            self.decoded(at.stage).wait(at.parity ^ 1);
            if lane == 0 {
                complete.arrive_expect_tx(TILES * W::BYTES);
            }
            sync_warp(FULL_MASK);
            if lane < TILES {
                bulk_copy(self.unit(at.stage, lane), from, W::BYTES, complete);
            }
            sync_warp(FULL_MASK);
        }
    }

    /// The unit of a tile, once it is there.
    ///
    /// # Safety
    /// All lanes of the tile's warp call it together, for each place in turn.
    #[inline(always)]
    pub(crate) unsafe fn wait(&self, at: Place, tile: u32) -> Shared<u8> {
        // SAFETY: the caller's promise.
        unsafe { self.complete(at.stage).wait(at.parity) }
        self.unit(at.stage, tile)
    }

    /// Says that this warp needs its unit no longer.
    ///
    /// # Safety
    /// All lanes of a tile's warp call it together, once for each place that they waited for.
    #[inline(always)]
    pub(crate) unsafe fn done(&self, at: Place) {
        // SAFETY: the caller's promise.
        unsafe {
            // The first lane speaks for all.
            sync_warp(FULL_MASK);
            self.decoded(at.stage).arrive_if(warp::lane_id() == 0);
        }
    }
}

/// The weights of step `step` of a unit as A of a product, `scales` being those of its even and its odd blocks.
///
/// # Safety
/// As [`Halves::halves`].
#[device]
#[inline(always)]
pub(crate) unsafe fn operand<W: Halves>(unit: Shared<u8>, scales: &[W::Scales; 2], step: u32) -> [u32; 16] {
    let mut weights = [0; 16];
    repeat(2, |odd| {
        // SAFETY: the caller's promise.
        let halves = unsafe { W::halves::<true>(unit, &scales[odd], odd as u32, step) };
        repeat(8, |k| weights[8 * odd + k] = halves[k / 4][k % 4]);
    });
    weights
}
