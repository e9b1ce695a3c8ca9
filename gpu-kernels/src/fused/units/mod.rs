//! Products of few rows with matrices in [units](crate::units), on int8 tensor cores.
//!
//! # Inputs are two signed bytes
//! `mma.m16n8k32` multiplies 16 rows of weights with 8 columns of inputs, all signed bytes, with exact sums. The weights' integers go in
//! as the file has them. An input is `scale * (256 high + low)`, 16 bits of the largest value of its row in these columns, and high
//! and low are two of the eight columns: one row of inputs fills two, four rows all, eight take two instructions. So what is lost
//! is less than f16 inputs lose, and of the weights nothing.
//!
//! # A block streams tiles
//! A block has a range of tiles of 16 rows, or of a slice of their columns, and stages the inputs of its columns once. Its warps take equal,
//! contiguous shares of the tiles' units, and no barrier comes between units: a warp has a ring of its own in shared memory, which its first lane
//! fills by bulk copies, and the first units are under way before the kernel waits for its inputs. A tile that lies in one share is finished
//! by its warp; those at the borders of shares are added up in the end, in the order of the warps. Shares depend on the shape of
//! the weights alone, so a row has the same bits alone and among others.
//!
//! After the project's measurements of 2026-11-28: bulk copies into a ring for each warp read large matrices at 81 to 94 % of what the memory
//! gives; loads to registers at 77 %, f16 operands made from the same bytes at 61 %, the file's own layout at 50 %.

use cuda_std::prelude::*;
#[device]
use cuda_std::warp::{FULL_MASK, warp_vote_ballot};

#[device]
use crate::{
    grid::{divide, repeat},
    units::Unit,
};

mod inputs;
pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;
mod ring;
mod stage;

#[device]
pub use inputs::Inputs;
#[device]
use inputs::Normed;
#[device]
pub(crate) use inputs::{Picked, Source};
#[device]
pub(crate) use ring::{Ring, Walk};
#[device]
use ring::{TileWalk, Tiles};
#[device]
pub(crate) use stage::Stage;
pub use stage::stage_bytes;

/// The most rows of inputs.
pub const MAX_ROWS: u32 = 8;
/// The most warps of a block.
pub const MAX_WARPS: u32 = 16;
/// The most units that a warp has under way.
pub const MAX_DEPTH: u32 = 8;

/// Bytes of dynamic shared memory for `depth` units of `unit_bytes` of a block of `warps` warps.
pub const fn ring_bytes(warps: u32, depth: u32, unit_bytes: u32) -> u32 {
    warps * depth * unit_bytes
}

/// Bytes of dynamic shared memory besides the ring: its barriers, `rows` staged rows of `units` units of `cols` columns, the sums of tiles at the borders of
/// shares, and sums of squares.
pub const fn shared_bytes(warps: u32, depth: u32, units: u32, cols: u32, rows: u32) -> u32 {
    stage_bytes(units, cols, rows) + warps * (depth * 8 + 2 * rows * 16 * 4)
}

/// The most rows of chunks that a warp loads before it uses the first of them.
#[device]
pub(crate) const AHEAD: usize = 4;
/// The same of one row, which has few: few registers leave room for the next kernel.
#[device]
pub(crate) const AHEAD_OF_ONE: usize = 2;

/// The products of the block's tiles with up to `N` rows of inputs, in `G` groups of four.
#[device]
struct Product<W, const N: usize, const G: usize> {
    tiles: Tiles,
    ring: Ring<W, TileWalk<W>>,
    stage: Stage<W>,
    /// `[warp][first or last tile][row of inputs][row of a tile]`, of tiles at the borders of shares.
    pieces: Shared<f32>,
    /// Where the share of the warp begins whose number is this lane's: so one division finds all of them.
    begins: u32,
}

#[device]
impl<W: Unit, const N: usize, const G: usize> Product<W, N, G> {
    const ROWS: u32 = N as u32;

    /// Starts to copy the first units.
    ///
    /// # Safety
    /// All threads of the block call it together, once in a launch. The block has [`ring_bytes`] and [`shared_bytes`] of dynamic shared memory, of a `depth`
    /// from 1 to [`MAX_DEPTH`].
    #[inline(always)]
    unsafe fn begin(tiles: Tiles, depth: u32) -> Self {
        let (warp_id, num_warps) = (warp::warp_id(), thread::block_dim_x() / 32);
        let shared = dynamic_shared::<u8>();
        let ring = shared.add(warp_id * depth * W::BYTES);
        let stage = shared.add(num_warps * depth * W::BYTES);
        let shared = stage.add(stage_bytes(tiles.chunks, W::COLS, Self::ROWS));
        let barriers = shared.cast::<u64>().add(warp_id * depth);
        let pieces = shared.add(num_warps * depth * 8).cast::<f32>();
        let begins = divide(warp::lane_id() * tiles.tiles * tiles.chunks, num_warps).0;
        let [from, to] = Self::share(begins);
        // SAFETY: the caller's promise.
        let ring = unsafe { Ring::start(tiles.walk(from), to - from, depth, ring, barriers) };
        let stage = Stage::new(stage, Self::ROWS, tiles.chunks * W::COLS);
        Self { tiles, ring, stage, pieces, begins }
    }

    /// The units of this warp, of those of all tiles of the block, tile by tile: from one to another, of where all shares begin.
    #[inline(always)]
    fn share(begins: u32) -> [u32; 2] {
        [0, 1].map(|next| warp::shuffle_idx(begins, warp::warp_id() + next))
    }

    /// The tile in which this warp's share ends: if it finishes one, most often this.
    #[inline(always)]
    fn last_tile(&self) -> u32 {
        let tiles = self.tiles;
        let [from, to] = Self::share(self.begins);
        let last = divide(to - u32::from(to > from), tiles.chunks).0;
        tiles.first_tile + last.min(tiles.tiles - 1)
    }

    /// What the lane is to multiply products of input row `i` with, of the row's sum of squares; `i` is one row for all lanes, or for those that are four apart.
    ///
    /// # Safety
    /// The inputs are staged. All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn row_scale(&self, i: u32, scale: &impl Fn(f32) -> f32) -> f32 {
        let chunks = self.stage.chunks();
        let squares = self.stage.places(0, i).1.cast::<f32>();
        let (mut sum, mut chunk) = (0.0, warp::lane_id() / 4);
        while chunk < chunks {
            // SAFETY: the caller's promise.
            sum += unsafe { squares.get(4 * chunk * Self::ROWS + 1) };
            chunk += 8;
        }
        repeat(3, |k| sum += warp::shuffle_xor(sum, 4 << k));
        scale(sum)
    }

    /// Multiplies the tiles and calls `finish(tile, g, i, r, low, high)`, by one thread each, with the products of input row `i` and the tile's rows of
    /// weights `r` and `r + 8`, for `i` below `n` and `r` below 8; where inputs are normed, times `scale` of the row's sum of squares. The lane that
    /// is called has `r = lane / 4` and `i = 4 g + lane % 4`.
    ///
    /// # Safety
    /// The kernel before this one has ended. All threads of the block call it together.
    #[inline(always)]
    unsafe fn multiply<S: Source>(
        mut self,
        n: u32,
        source: S,
        scale: impl Fn(f32) -> f32,
        mut finish: impl FnMut(u32, usize, u32, u32, f32, f32),
    ) {
        let (lane, warp_id, num_warps) = (warp::lane_id(), warp::warp_id(), thread::block_dim_x() / 32);
        let tiles = self.tiles;
        let [from, to] = Self::share(self.begins);
        let before = warp::shuffle_idx(self.begins, warp_id.saturating_sub(1));
        let row = if N == 1 { 0 } else { lane % 4 };
        let is_finisher = N > 1 || lane % 4 == 0;
        let r = lane / 4;
        // SAFETY: the caller's promise; each warp writes its own pieces, which a barrier orders against the readers.
        unsafe {
            if N == 1 {
                self.stage.fill::<S, { AHEAD_OF_ONE }>(&source, n, tiles.first_unit * W::COLS);
            } else {
                self.stage.fill::<S, { AHEAD }>(&source, n, tiles.first_unit * W::COLS);
            }
            let mut scales = [1.0f32; G];
            if S::NORMED {
                repeat(G, |g| scales[g] = self.row_scale(4 * g as u32 + row, &scale));
            }
            let (first, mut chunk) = divide(from, tiles.chunks);
            let (mut tile, mut i, mut begin) = (first, from, from);
            let mut sums = [[0.0f32; 2]; G];
            while i < to {
                let inputs = self.stage.inputs::<N>(0, chunk);
                self.ring.multiply::<G>(&inputs, &mut sums);
                (i, chunk) = (i + 1, chunk + 1);
                if chunk == tiles.chunks || i == to {
                    let is_whole = i - begin == tiles.chunks;
                    repeat(G, |g| {
                        let input = 4 * g as u32 + row;
                        let [low, high] = [sums[g][0] * scales[g], sums[g][1] * scales[g]];
                        if is_whole {
                            if is_finisher && input < n {
                                finish(tiles.first_tile + tile, g, input, r, low, high);
                            }
                        } else if is_finisher {
                            let piece = self.piece(warp_id, tile != first, input);
                            piece.set(r, low);
                            piece.set(r + 8, high);
                        }
                        sums[g] = [0.0; 2];
                    });
                    (begin, chunk, tile) = (i, 0, tile + 1);
                }
            }
            thread::sync_threads();
            // The tile in which this warp's share begins, if an earlier one has its beginning and no other warp adds it up.
            let (begins, ends) = (first * tiles.chunks, (first + 1) * tiles.chunks);
            if warp_id > 0 && from != to && from != begins && before <= begins {
                // Warps from this one on that have a part of it. No share is empty.
                let has_part = lane >= warp_id && lane < num_warps && self.begins < ends;
                let parts = warp_vote_ballot(FULL_MASK, has_part).count_ones();
                repeat(G, |g| {
                    let input = 4 * g as u32 + row;
                    if is_finisher && input < n {
                        let piece = self.piece(warp_id - 1, before < begins, input);
                        let (mut low, mut high) = (piece.get(r), piece.get(r + 8));
                        let mut part = 0;
                        while part < parts {
                            let piece = self.piece(warp_id + part, false, input);
                            low += piece.get(r);
                            high += piece.get(r + 8);
                            part += 1;
                        }
                        finish(tiles.first_tile + first, g, input, r, low, high);
                    }
                });
            }
        }
    }

    /// What a warp has of a tile that others have a part of, of an input row: the first or the last tile of its share.
    #[inline(always)]
    fn piece(&self, warp: u32, is_last: bool, input: u32) -> Shared<f32> {
        self.pieces.add(((warp * 2 + u32::from(is_last)) * Self::ROWS + input) * 16)
    }
}
