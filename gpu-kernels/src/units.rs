//! Matrices in blocks, repacked for tensor cores: what the kernels of few rows read.
//!
//! # A unit
//! 16 rows of a matrix and as many columns as one scale of the inputs covers ([`Unit::COLS`]), contiguous, of as many bytes as the file's blocks of them: first the
//! quants in the order in which the lanes of a warp take them, 16 bytes each, then the scales of the 16 rows. So a unit comes to shared memory with one bulk copy,
//! and what a lane reads there is a first operand of `mma` as it is, or but for a mask and a shift.
//!
//! # Which rows
//! A tile is 16 rows, its units follow each other, then come those of the next tile. Rows that are used together share a tile
//! ([`place`]): with a span of `s` row `i` and row `i + s` of every `2 s` rows, eight of each. Spans are 8 (rows as they come),
//! half of a head (values that are rotated together) and all rows of `gate` (before those of `up`).
//!
//! # A format
//! is one implementation of [`Unit`] and a word in a list, `unit_formats`. Where a weight stands is said once, by
//! [`Unit::byte`], in terms of the file's blocks; [`Unit::quad`] is its inverse.

use cuda_std::{f16x2, prelude::*};

pub mod codes;
pub mod float;
#[cfg(feature = "matmul")]
pub mod halves;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod ring;
#[cfg(feature = "matmul")]
mod shares;
pub mod twos;
#[cfg(feature = "matmul")]
pub mod warpgroups;

/// Calls a macro with the formats whose blocks are repacked, before what else it gets.
macro_rules! unit_formats {
    ($call:path, $($rest:tt)*) => {
        $call! {
            [
                q2_k::q2_k, q3_k::q3_k, q4_0::q4_0, q4_1::q4_1, q4_k::q4_k, q5_0::q5_0, q5_1::q5_1, q5_k::q5_k, q6_k::q6_k, q8_0::q8_0,
                iq4_nl::iq4_nl, iq4_xs::iq4_xs, mxfp4::mxfp4
            ]
            $($rest)*
        }
    };
}
pub(crate) use unit_formats;

#[cfg(not(target_arch = "nvptx64"))]
macro_rules! shapes {
    ([$($file:ident::$name:ident),*]) => {
        /// Columns and bytes of a unit of the format of that name, if it has units.
        pub fn shape(format: &str) -> Option<[u32; 2]> {
            match format {
                $(stringify!($name) => Some([$file::$name::COLS, $file::$name::BYTES]),)*
                _ => None,
            }
        }
    };
}
#[cfg(not(target_arch = "nvptx64"))]
unit_formats!(shapes,);

use crate::blocks::Embed;
use crate::vector::{Group, Saturate, store8};
#[device]
use crate::{
    fused::units::Inputs,
    grid::{divide, offset, repeat, row_and_column},
};

/// Rows of a tile.
pub const ROWS: u32 = 16;
/// Rows that are used as they come.
pub const SPAN: u32 = ROWS / 2;

/// A format whose blocks are repacked as units.
#[device]
pub trait Unit {
    /// Columns of a unit: 64, 128 or 256, of whole blocks.
    const COLS: u32;
    /// Bytes of a unit: those of its blocks.
    const BYTES: u32;
    /// Bytes of a row's blocks of these columns.
    const ROW_BYTES: u32 = Self::BYTES / ROWS;
    /// What the integers that are multiplied are times the quants.
    const FACTOR: f32;
    /// Whether inputs are staged as f16, a column each, not as two columns of signed bytes.
    const HALVES: bool = false;
    /// Whether the inputs' sums are needed for what is subtracted from a block ([`Inputs::digits`]).
    const DIGITS: bool = false;
    /// Whether they are needed as numbers ([`Inputs::sums`]).
    const SUMS: bool = false;

    /// Byte `index` of a unit, whose row `r` has its blocks at `row(r)`.
    ///
    /// # Safety
    /// `index` is below [`Unit::BYTES`], and `row` leads to the [`Unit::ROW_BYTES`] of each of 16 rows.
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8;

    /// The values of row `r` and of four columns of a unit from `column` on, a multiple of four: the bits that the host's `decode` gives.
    ///
    /// # Safety
    /// `unit` leads to a unit, aligned to 16 bytes, that has such a row and columns.
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4];

    /// Adds the products of a unit with the staged inputs: of this lane's rows `lane / 4` and 8 more with input row `4 g + lane % 4`.
    ///
    /// # Safety
    /// All lanes of the warp call it together; unit and inputs are complete.
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]);
}

/// How many times a weight the f16 is that [`Halves`] makes of it, so that scales keep all their digits: a weight has at most 4,094.
pub const HALVES_FACTOR: f32 = 16.0;

/// A format whose units are decoded to f16 as operands of tensor cores ([`halves`]).
#[device]
pub trait Halves: Unit {
    /// How many times a weight the f16 is.
    const TIMES: f32 = HALVES_FACTOR;
    /// What a lane keeps of the scales of the even or the odd blocks of 32 columns of a unit.
    type Scales: Copy;

    /// Of the even blocks (`odd` 0) or the odd ones (1).
    ///
    /// # Safety
    /// `unit` is complete.
    unsafe fn scales(unit: Shared<u8>, odd: u32) -> Self::Scales;

    /// The weights of block `2 pair + odd` of 32 columns as first operands of `mma.m16n8k16`, times [`Halves::TIMES`]: columns `4 c` to `4 c + 3` as the columns `2 c`,
    /// `2 c + 1`, `8 + 2 c`, `9 + 2 c` of one, and those 16 behind them as the same of another. So eight bytes of a row of inputs are a second operand. With `APART` the second
    /// and third of the four change places: then it is cheaper.
    ///
    /// # Safety
    /// `unit` is complete, `scales` are its own and of such blocks, and it has the block.
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        scales: &Self::Scales,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2];
}

/// 1024 as two f16: a permutation makes of a byte `b` the f16 `1024 + b`.
#[device]
pub(crate) const UNSIGNED: u32 = f16x2::splat(f16::from_f32_const(1024.0));
/// And of signed ones whose sign was turned around.
#[device]
const SIGNED: u32 = f16x2::splat(f16::from_f32_const(1152.0));
/// The bytes that are the high ones of such f16.
#[device]
pub(crate) const EXPONENTS: u32 = 0x6464_6464;
/// The signs of four bytes.
#[device]
pub(crate) const SIGNS: u32 = 0x8080_8080;

/// [`Halves::halves`] of a block: of its first operand of bytes, signed ones or not, each word times `scales` of it, plus `less`.
#[device]
#[inline(always)]
fn halves_of_bytes<const IS_SIGNED: bool, const APART: bool>(
    bytes: [u32; 4],
    scales: [u32; 4],
    less: Option<[u32; 4]>,
) -> [[u32; 4]; 2] {
    let mut operands = [[0; 4]; 2];
    repeat(4, |i| {
        let (word, zero) = if IS_SIGNED { (bytes[i] ^ SIGNS, SIGNED) } else { (bytes[i], UNSIGNED) };
        let selectors = if APART { [0x4240, 0x4341] } else { [0x4140, 0x4342] };
        let pairs = selectors.map(|selector| f16x2::bytes(word, EXPONENTS, selector));
        repeat(2, |pair| {
            let value = f16x2::sub(pairs[pair], zero);
            // Register `i` of bytes is of row `i % 2` of two and of half `i / 2` of the block.
            operands[i / 2][2 * pair + i % 2] = match less {
                Some(less) => f16x2::mul_add(value, scales[i], less[i]),
                None => f16x2::mul(value, scales[i]),
            };
        });
    });
    operands
}

/// The low (0) or high (1) f16 of a word, twice, times `factor`.
#[device]
#[inline(always)]
fn scaled_half(word: u32, half: u32, factor: f32) -> u32 {
    f16x2::mul(f16x2::bytes(word, 0, 0x1010 + 0x2222 * half), f16x2::splat(f16::from_f32_const(factor)))
}

/// Of a byte for each of four blocks, of both rows of a lane: for the first two blocks and for the others a byte of either row.
#[device]
#[inline(always)]
fn bytes_of_rows([low, high]: [u32; 2]) -> [u32; 2] {
    [0x5140, 0x7362].map(|selector| f16x2::bytes(low, high, selector))
}

/// Byte `i` of a word as a number, one instruction.
#[device]
#[inline(always)]
fn byte_of(word: u32, i: u32) -> i32 {
    f16x2::bytes(word, 0, 0x4440 + i) as i32
}

/// The same of a signed one.
#[device]
#[inline(always)]
fn signed_byte_of(word: u32, i: u32) -> i32 {
    f16x2::bytes(word, 0, 0x8880 + 0x1111 * i) as i32
}

/// Of [such bytes](bytes_of_rows) those of the block `block`, `zero - 1024` less, times `d` of both rows: of either row a f16, twice.
#[device]
#[inline(always)]
fn scaled_halves(of: [u32; 2], block: u32, zero: u32, d: u32) -> [u32; 2] {
    let (bytes, selector) = (of[block as usize / 2], if block.is_multiple_of(2) { 0x4140 } else { 0x4342 });
    let of_rows = f16x2::mul(f16x2::sub(f16x2::bytes(bytes, EXPONENTS, selector), zero), d);
    [0x1010, 0x3232].map(|selector| f16x2::bytes(of_rows, 0, selector))
}

/// Adds what a unit's integers came to, high and low ones of both rows, times the scale of the inputs and `d` of either row.
///
/// # Safety
/// As [`Unit::multiply`].
#[device]
#[inline(always)]
unsafe fn add_scaled<const G: usize>(
    total: &[[i32; 4]; G],
    d: [f32; 2],
    x: &Inputs,
    sums: &mut [[f32; 2]; G],
) {
    repeat(G, |g| {
        // SAFETY: the caller's promise.
        let scale = unsafe { x.scale(g as u32) };
        repeat(2, |r| {
            let dot = (total[g][2 * r] as f32).mul_add(256.0, total[g][2 * r + 1] as f32);
            sums[g][r] += scale * d[r] * dot;
        });
    });
}

/// The tile of row `row`, and its row there, with this span.
#[device]
#[inline(always)]
pub fn place(row: u32, span: u32) -> (u32, u32) {
    let (pair, i) = divide(row, span);
    (pair / 2 * (span / 8) + i / 8, pair % 2 * 8 + i % 8)
}

/// The row that is row `r` of a tile: the inverse of [`place`].
#[device]
#[inline(always)]
pub fn row_of(tile: u32, r: u32, span: u32) -> u32 {
    let (pair, i) = divide(tile, span / 8);
    (2 * pair + r / 8) * span + 8 * i + r % 8
}

/// The two f16 of a word.
#[device]
#[inline(always)]
pub(crate) fn halves(word: u32) -> [f32; 2] {
    f16::unpack2(word).into()
}

/// The little-endian f16 at `bytes`.
///
/// # Safety
/// `bytes` leads to two bytes, aligned to two.
#[device]
#[inline(always)]
unsafe fn half(bytes: *const u8) -> f32 {
    // Not the method of that name that `f16` has itself, which computes with integers.
    // SAFETY: the caller's promise.
    Element::to_f32(unsafe { bytes.cast::<f16>().read() })
}

/// The word at `bytes`.
///
/// # Safety
/// `bytes` leads to four bytes, aligned to four.
#[device]
#[inline(always)]
unsafe fn word(bytes: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { bytes.cast::<u32>().read() }
}

/// Where a byte of quants stands that a lane takes as one of four registers of a first operand: its row and its column in a block of 32.
#[device]
#[inline(always)]
fn place_of_byte(index: u32) -> (u32, u32) {
    let (lane, register, byte) = (index / 16, index / 4 % 4, index % 4);
    (lane / 4 + 8 * (register % 2), 4 * (lane % 4) + 16 * (register / 2) + byte)
}

/// The inverse of [`place_of_byte`].
#[device]
#[inline(always)]
fn byte_of_place(r: u32, column: u32) -> u32 {
    let lane = 4 * (r % 8) + column % 16 / 4;
    16 * lane + 4 * (r / 8 + 2 * (column / 16)) + column % 4
}

/// Threads of a block of [`repack`], [`decode`] and [`embed`].
pub const BLOCK_SIZE: u32 = 256;

/// `units = blocks`, other places for the same bits.
#[kernel_args]
pub struct Repack {
    pub cols: u32,
    /// See the [module](self).
    pub span: u32,
    /// `[rows, cols]` in blocks
    pub blocks: *const u8,
    /// `[tiles, units of a row]`, each [`Unit::BYTES`]
    pub units: *mut u8,
}

/// One thread a byte.
///
/// Grid `[tiles, ceil(bytes of a tile / BLOCK_SIZE), 1]`, exact in the tiles; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`Repack`]; `cols` is a multiple of [`Unit::COLS`], `span` of 8, the rows of
/// `2 * span`.
#[kernel(W = [float::f16, unit_formats!], name = "repack_{W}_plain")]
pub unsafe fn repack<W: Unit>(a: Repack) {
    let Repack { cols, span, blocks, units } = a;
    let units_of_row = divide(cols, W::COLS).0;
    let Some((tile, index)) = row_and_column(units_of_row * W::BYTES) else { return };
    let (unit, byte) = divide(index, W::BYTES);
    let row_bytes = units_of_row * W::ROW_BYTES;
    // SAFETY: the grid has a thread for each byte of the tiles.
    unsafe {
        let row = |r: u32| blocks.add(offset(row_of(tile, r, span), row_bytes, unit * W::ROW_BYTES));
        *units.add(offset(tile, units_of_row * W::BYTES, index)) = W::byte(row, byte);
    }
}

/// The values of units.
#[kernel_args]
pub struct DecodeUnits<E> {
    pub cols: u32,
    /// See the [module](self).
    pub span: u32,
    /// The first tile that has one of the rows.
    pub first_tile: u32,
    /// The rows that are decoded.
    pub first_row: u32,
    pub rows: u32,
    /// `[tiles, units of a row]`
    pub units: *const u8,
    /// E `[rows, cols]`
    pub out: *mut E,
}

/// Each value exactly as the host decodes it, then rounded to nearest even, no f16 to infinity. A unit comes to shared memory once; then half warps
/// have a row each, eight columns a lane.
///
/// Grid `[tiles, units of a row, 1]`, of all tiles with such rows from `first_tile` on; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`DecodeUnits`], and the units these rows.
#[kernel(W = [unit_formats!], E = [f32, f16, bf16], name = "decode_units_{W}_{E}_plain", max_threads = 256)]
pub unsafe fn decode<W: Unit, E: Saturate>(a: DecodeUnits<E>) {
    let DecodeUnits { cols, span, first_tile, first_row, rows, units, out } = a;
    // Of the largest unit.
    let shared = shared_array![[u32; 4]; 210];
    let (tile, unit) = (first_tile + thread::block_idx_x(), thread::block_idx_y());
    let (r, lane) = (thread::thread_idx_x() / 16, thread::thread_idx_x() % 16);
    let is_wanted = |row: u32| row >= first_row && row - first_row < rows;
    // The tile's first eight rows follow each other, and so do the others: of eight rows or more one is at an end of theirs.
    let (low, high) = (row_of(tile, 0, span), row_of(tile, 8, span));
    if !is_wanted(low) && !is_wanted(low + 7) && !is_wanted(high) && !is_wanted(high + 7) && rows >= 8 {
        return; // The whole block: nobody waits for it.
    }
    // SAFETY: the grid has a block for each unit of these tiles; rows are checked.
    unsafe {
        let from =
            units.add(offset(tile, divide(cols, W::COLS).0 * W::BYTES, unit * W::BYTES)).cast::<[u32; 4]>();
        let mut i = thread::thread_idx_x();
        while i < W::BYTES / 16 {
            shared.set(i, *from.add(i as usize));
            i += BLOCK_SIZE;
        }
        thread::sync_threads();
        let row = row_of(tile, r, span);
        if !is_wanted(row) {
            return;
        }
        let out = out.add(offset(row - first_row, cols, unit * W::COLS));
        let unit = shared.cast::<u8>().as_mut_ptr().cast_const();
        let mut column = 8 * lane;
        while column < W::COLS {
            let mut values = [0.0; 8];
            repeat(2, |half| {
                let quad = W::quad(unit, r, column + 4 * half as u32);
                repeat(4, |j| values[4 * half + j] = quad[j]);
            });
            store8(out.add(column as usize), values);
            column += 128;
        }
    }
}

/// [`crate::row_norms`] of units.
#[kernel_args]
pub struct RowNormsUnits {
    pub rows: u32,
    pub cols: u32,
    /// See the [module](self).
    pub span: u32,
    /// The first of the rows.
    pub first_row: u32,
    /// `[tiles, units of a row]`
    pub units: *const u8,
    /// f32 `[cols]`
    pub scale: *const f32,
    /// f32 `[rows]`
    pub out: *mut f32,
}

/// A warp a row, four columns a lane.
///
/// # Safety
/// Grid `[ceil(rows / WARPS_PER_BLOCK), 1, 1]`, block `[BLOCK_THREADS, 1, 1]` of [`crate::row_norms`]; arrays have the sizes of [`RowNormsUnits`], `out`
/// overlaps nothing, `scale` is aligned to 16 bytes.
#[kernel(W = [unit_formats!], name = "row_norms_{W}_units", max_threads = 256)]
pub unsafe fn row_norms<W: Unit>(a: RowNormsUnits) {
    let RowNormsUnits { rows, cols, span, first_row, units, scale, out } = a;
    let (row, lane) = (crate::row_norms::row_of_warp(), thread::thread_idx_x() % 32);
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    // SAFETY: `row < rows`, columns stay below `cols`.
    unsafe {
        let (mut sum, mut column) = (0.0f32, 4 * lane);
        while column < cols {
            let values = quad_at::<W>(units, cols, span, first_row + row, column);
            let scales: [f32; 4] = f32::load_group(scale.add(column as usize));
            repeat(4, |j| {
                let value = values[j] * scales[j];
                sum = value.mul_add(value, sum);
            });
            column += 128;
        }
        let sum = warp::reduce_sum(sum);
        if lane == 0 {
            *out.add(row as usize) = sum.sqrt();
        }
    }
}

/// [`Embed`], of a table in units with a span of [`SPAN`].
///
/// Grid `[num_tokens, ceil(hidden_size / 4 / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread four values.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`Embed`], rows are whole units, `out` overlaps nothing,
/// `vocab_size` is not 0.
#[kernel(W = [unit_formats!], name = "embed_units_{W}_plain")]
pub unsafe fn embed<W: Unit>(a: Embed) {
    let Embed { hidden_size, vocab_size, scale, tokens, sampled_rows, sampled, table, out } = a;
    // The first kernel of a step: the next may fetch its weights.
    crate::fused::launch_dependents();
    let Some((row, quad)) = row_and_column(hidden_size / 4) else { return };
    // SAFETY: the grid has one row of blocks a token, every row of the draw exists, and no token is beyond the table.
    unsafe {
        let (given, sampled_row) = (*tokens.add(row as usize), *sampled_rows.add(row as usize));
        let token =
            if sampled_row == crate::embed::GIVEN { given } else { *sampled.add(sampled_row as usize) };
        let token = if token < vocab_size { token } else { 0 };
        let mut values = quad_at::<W>(table, hidden_size, SPAN, token, 4 * quad);
        repeat(4, |j| values[j] *= scale);
        f32::store_group(out.add(offset(row, hidden_size, 4 * quad)), values);
    }
}

/// Four values of a row of a matrix.
///
/// # Safety
/// `units` leads to a matrix of `cols` columns that has them.
#[device]
#[inline(always)]
unsafe fn quad_at<W: Unit>(units: *const u8, cols: u32, span: u32, row: u32, column: u32) -> [f32; 4] {
    let (tile, r) = place(row, span);
    let (unit, column) = divide(column, W::COLS);
    // SAFETY: the caller's promise.
    unsafe {
        W::quad(units.add(offset(tile, divide(cols, W::COLS).0 * W::BYTES, unit * W::BYTES)), r, column)
    }
}
