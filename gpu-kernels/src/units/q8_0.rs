//! Q8_0: bytes `[block][lane]`, 16 a lane: the first operand itself. Then for each row the four scales of its blocks, f16.

use super::{
    HALVES_FACTOR, Halves, Unit, byte_of_place, half, halves, halves_of_bytes, place_of_byte, scaled_half,
    word,
};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, then 32 values.
#[device]
const BLOCK: u32 = 34;
/// Bytes of quants of a unit.
#[device]
const QUANTS: u32 = 2048;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q8_0;

#[device]
impl Unit for q8_0 {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 128;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                let (r, column) = place_of_byte(index % 512);
                *row(r).add((index / 512 * BLOCK + 2 + column) as usize)
            } else {
                byte_of_scales(row, index - QUANTS, BLOCK)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let block = column / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let d = half(unit.add((QUANTS + 8 * r + 2 * block) as usize));
            let word = word(unit.add((512 * block + byte_of_place(r, column % 32)) as usize));
            let mut values = [0.0; 4];
            repeat(4, |j| values[j] = d * f32::from((word >> (8 * j)) as i8));
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 4]>().add(warp::lane_id());
            multiply_blocks(|block| words.get(32 * block), unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for q8_0 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        let block = 2 * pair + odd;
        // SAFETY: the caller's promise.
        unsafe {
            let operand = unit.cast::<[u32; 4]>().get(32 * block + warp::lane_id());
            halves_of_block::<APART>(operand, unit.add(QUANTS), block, Self::FACTOR)
        }
    }
}

/// Byte `index` of the scales of the four blocks of each row of a unit, f16, and of minima behind them, where blocks, of `block_bytes` bytes, begin with these.
///
/// # Safety
/// As [`Unit::byte`].
#[device]
#[inline(always)]
pub(super) unsafe fn byte_of_scales(row: impl Fn(u32) -> *const u8, index: u32, block_bytes: u32) -> u8 {
    let (minimum, place) = (index / 128, index % 128);
    // SAFETY: the caller's promise.
    unsafe { *row(place / 8).add((place % 8 / 2 * block_bytes + 2 * minimum + place % 2) as usize) }
}

/// [`Halves::halves`] of a format with an f16 for 32 columns: `operand` is that of bytes of the block, `factor` times what they stand for, `scales` leads to
/// the scales of the four blocks of each row.
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
pub(super) unsafe fn halves_of_block<const APART: bool>(
    operand: [u32; 4],
    scales: Shared<u8>,
    block: u32,
    factor: f32,
) -> [[u32; 4]; 2] {
    let scales = scales.cast::<u16>().add(4 * (warp::lane_id() / 4) + block);
    // SAFETY: the caller's promise.
    let [low, high] = unsafe { [scales.get(0), scales.get(32)] };
    let [low, high] = [low, high].map(|d| scaled_half(d.into(), 0, HALVES_FACTOR / factor));
    halves_of_bytes::<true, APART>(operand, [low, high, low, high], None)
}

/// [`Unit::multiply`] of a format with an f16 for 32 columns: `operand(block)` is the first operand of a block, `scales` leads to the scales of the
/// four blocks of each row.
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
pub(super) unsafe fn multiply_blocks<const G: usize>(
    operand: impl Fn(u32) -> [u32; 4],
    scales: Shared<u8>,
    x: &Inputs,
    sums: &mut [[f32; 2]; G],
) {
    let row = warp::lane_id() / 4;
    // SAFETY: the caller's promise.
    unsafe {
        let scales = scales.cast::<[u32; 2]>();
        let d = [scales.get(row), scales.get(row + 8)];
        multiply_scaled(operand, |r, pair| halves(d[r][pair]), x, sums);
    }
}

/// The same with scales as [`add_blocks`] has them.
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
pub(super) unsafe fn multiply_scaled<const G: usize>(
    operand: impl Fn(u32) -> [u32; 4],
    scales: impl Fn(usize, usize) -> [f32; 2],
    x: &Inputs,
    sums: &mut [[f32; 2]; G],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut total = [[0.0f32; 2]; G];
        add_blocks(operand, scales, x, &mut total);
        repeat(G, |g| {
            let scale = x.scale(g as u32);
            repeat(2, |r| sums[g][r] = total[g][r].mul_add(scale, sums[g][r]));
        });
    }
}

/// Adds the products of four blocks with the integers of inputs, each times its scale: `operand(block)` is the first operand of a block, `scales(r, pair)` are the scales of
/// the blocks `2 pair` and `2 pair + 1` of this lane's row `r` of two.
///
/// # Safety
/// As [`Unit::multiply`].
#[device]
#[inline(always)]
pub(super) unsafe fn add_blocks<const G: usize>(
    operand: impl Fn(u32) -> [u32; 4],
    scales: impl Fn(usize, usize) -> [f32; 2],
    x: &Inputs,
    total: &mut [[f32; 2]; G],
) {
    repeat(2, |pair| {
        let d = [scales(0, pair), scales(1, pair)];
        let mut columns = [[0; 4]; G];
        // SAFETY: the caller's promise.
        repeat(G, |g| columns[g] = unsafe { x.columns(g as u32, pair as u32) });
        repeat(2, |h| {
            let a = operand(2 * pair as u32 + h as u32);
            repeat(G, |g| {
                let b = [columns[g][2 * h], columns[g][2 * h + 1]];
                // SAFETY: the caller's promise.
                let dot = unsafe { cuda_std::mma::mma_m16n8k32_s8(a, b, [0; 4]) };
                repeat(2, |r| {
                    let dot = (dot[2 * r] * 256 + dot[2 * r + 1]) as f32;
                    total[g][r] = dot.mul_add(d[r][h], total[g][r]);
                });
            });
        });
    });
}
