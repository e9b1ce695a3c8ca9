//! Products of few rows on tensor cores, each weight read once.
//!
//! # Weights are the first operand
//! `mma.m16n8k16` multiplies 16 rows of weights with 8 columns of inputs. Of its first operand a lane with `r = lane / 4`
//! and `c = lane % 4` holds elements of rows `r` and `r + 8`. Which 16 columns of the matrix these are is free, as long as
//! both operands agree: so a lane takes 16 bytes, word `4 u + c` of each of its two rows, and has its share of two
//! instructions. A warp takes `CHUNKS` such words in a round, [`COLS_PER_WARP`] columns of 16 rows; a block's warps lie side by
//! side along the columns, and their sums are added in the order of the warps.
//!
//! # A block streams tiles
//! A tile is 16 rows, a part of it what the block takes in one round. Its words go to shared memory with `cp.async`, up to
//! [`MAX_DEPTH`] parts ahead (`Stream`), but never many at once: what another kernel waits for would queue behind them. Each lane copies what it will read itself, so no barrier comes between,
//! and the first parts are under way before the kernel waits for its inputs: while a chain of small kernels waits for one another, the memory
//! is kept busy by the weights of those to come.
//!
//! # Inputs are the second operand
//! One row of inputs would fill one of eight columns. The others make products as exact as those of f32: a value `v` that
//! was scaled by a power of two so that the largest of the warp's is near the largest f16 is `high + low` of two f16
//! but for 2^-22 of it, and each has a column (`Normed`). Where inputs are f16 to begin with, the two columns instead take
//! two halves of the row, with the weights' rows `r + 8` being the second halves of rows `r` (`Halves`).
//!
//! Four rows of inputs fill an instruction; eight take two for each piece of weights.
//!
//! Weights are f16, sums f32. A row's bits depend on the number of columns alone, not on the other rows.

use cuda_std::prelude::*;

pub mod matmul_add;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;

mod halves;
mod normed;
mod stream;

pub use halves::matmul_shared_bytes;
#[device]
use halves::{Halves, halves};
#[device]
use normed::Normed;
pub use normed::norm_shared_bytes;
#[device]
use stream::{Stream, Tiles};

/// Words of each row that a lane takes in a round.
#[device]
const CHUNKS: usize = 4;
/// Words of a row that four lanes take together.
#[device]
const WORDS_PER_CHUNK: u32 = 4;
/// Words of a row that a warp takes in a round.
#[device]
const WORDS_PER_WARP: u32 = CHUNKS as u32 * WORDS_PER_CHUNK;

/// Columns of weights that a warp takes in a round.
pub const COLS_PER_WARP: u32 = 128;
/// Bytes of a warp's share of a part.
const PART_BYTES: u32 = 16 * COLS_PER_WARP * 2;
/// The most parts that a block has under way.
pub const MAX_DEPTH: u32 = 8;
/// The most tiles whose sums are kept until the warps' are added.
pub const MAX_BATCH: u32 = 8;
/// Bytes that a block has on their way while it fills its shared memory: about what hides the memory's latency where each
/// multiprocessor has such a block. Whatever else a multiprocessor reads waits behind them: on an H200 a decode step of
/// Qwen2.5-0.5B takes 411 µs with 30 to 40 KiB, 434 with 80, 453 with no limit, 455 with 20.
const IN_FLIGHT_BYTES: u32 = 32 << 10;
/// The most warps of a block that norms its inputs.
pub const MAX_NORM_WARPS: u32 = 16;
/// The most warps of a block of [`matmul_add`].
pub const MAX_MATMUL_WARPS: u32 = 20;
/// The fewest warps of a block: a thread for each of four rows of inputs and each of a tile's 16 rows of weights.
const MIN_WARPS: u32 = 2;
/// The most rows of inputs: those of two instructions, four each.
pub const MAX_ROWS: u32 = 8;
/// The fewest warps of a block that norms [`MAX_ROWS`] rows.
pub const MIN_WARPS_OF_EIGHT: u32 = 2 * MIN_WARPS;

/// Warps of a block for rows of `cols` columns: as few rounds as `max` warps need, evenly shared.
pub const fn num_warps(cols: u32, max: u32) -> u32 {
    let parts = cols.div_ceil(COLS_PER_WARP);
    if parts <= MIN_WARPS { MIN_WARPS } else { parts.div_ceil(parts.div_ceil(max)) }
}

/// Rounds in which `warps` warps take rows of `cols` columns.
pub const fn num_rounds(cols: u32, warps: u32) -> u32 {
    let rounds = cols.div_ceil(COLS_PER_WARP * warps);
    if rounds == 0 { 1 } else { rounds }
}

/// Tiles whose sums a block keeps, of `tiles` that `blocks` blocks share.
pub const fn batch(tiles: u32, blocks: u32) -> u32 {
    let of_block = tiles.div_ceil(blocks);
    if of_block < MAX_BATCH { of_block } else { MAX_BATCH }
}

/// Bytes of dynamic shared memory for `depth` parts of a block of `warps` warps.
pub const fn stream_bytes(warps: u32, depth: u32) -> u32 {
    warps * depth * PART_BYTES
}

/// Of the four lanes that share a row of a fragment, this lane.
#[device]
#[inline(always)]
fn lane_of_row() -> u32 {
    warp::lane_id() % 4
}

/// The row of a fragment that this lane belongs to: of weights, of rows of the result, of columns of inputs.
#[device]
#[inline(always)]
pub(super) fn row_of_lane() -> u32 {
    warp::lane_id() / 4
}

/// This lane's first word of its rows.
#[device]
#[inline(always)]
fn first_word() -> u32 {
    warp::warp_id() * WORDS_PER_WARP + lane_of_row()
}

/// Words of all warps of the block in one round.
#[device]
#[inline(always)]
fn words_per_round() -> u32 {
    thread::block_dim_x() / 32 * WORDS_PER_WARP
}
