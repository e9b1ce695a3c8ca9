//! Q4_1: nibbles as in Q4_0's units, unsigned; then for each row the four scales of its blocks, f16, then for each row their minima.

use super::q4_0::{nibbles_of_place, place_of_nibbles, words_of_block};
use super::q4_k::{halves_of_nibbles, operand};
use super::q8_0::{add_blocks, byte_of_scales};
use super::{HALVES_FACTOR, Halves, Unit, half, halves, halves_of_bytes, scaled_half, word};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::prelude::*;

/// Bytes of a block in a file: the scale, the minimum, then 16 of nibbles, columns `j` and `j + 16` in byte `j`.
#[device]
const BLOCK: u32 = 20;
/// Bytes of quants of a unit.
#[device]
const QUANTS: u32 = 1024;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_1;

#[device]
impl Unit for q4_1 {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 256;
    const FACTOR: f32 = 1.0;
    const SUMS: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                let (r, block, column) = place_of_nibbles(index % 512);
                *row(r).add(((index / 512 * 2 + block) * BLOCK + 4 + column) as usize)
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
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let word = word(unit.add(at as usize)) >> (column / 16 % 2 * 4);
            let [d, minimum] = scale_and_minimum(unit.add(QUANTS as usize), r, block);
            let mut values = [0.0; 4];
            repeat(4, |j| values[j] = d.mul_rn((word >> (8 * j) & 15) as f32).add_rn(minimum));
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        // SAFETY: the caller's promise.
        unsafe {
            let of_block = |block| operand(words_of_block(unit, block));
            multiply_with_minima(of_block, unit.add(QUANTS), x, sums);
        }
    }
}

#[device]
impl Halves for q4_1 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast().get(2 * (32 * pair + warp::lane_id()) + odd);
            let [scales, minima] = halves_of_scales(unit.add(QUANTS), 2 * pair + odd);
            if APART {
                halves_of_nibbles(words, scales, minima)
            } else {
                halves_of_bytes_with_minima::<false>(operand(words), [scales, minima])
            }
        }
    }
}

/// Of scales and minima of a unit those of a block of row `r`.
///
/// # Safety
/// `scales` leads to them, aligned to two; there are such a row and block.
#[device]
#[inline(always)]
pub(super) unsafe fn scale_and_minimum(scales: *const u8, r: u32, block: u32) -> [f32; 2] {
    let place = (8 * r + 2 * block) as usize;
    // SAFETY: the caller's promise.
    unsafe { [half(scales.add(place)), half(scales.add(place + 128))] }
}

/// [`Unit::multiply`] of a format with an f16 and a minimum for 32 columns: `operand(block)` is the first operand of a block, `scales` leads to the
/// scales of the four blocks of each row, then to their minima.
///
/// # Safety
/// As there.
#[device]
#[inline(always)]
pub(super) unsafe fn multiply_with_minima<const G: usize>(
    operand: impl Fn(u32) -> [u32; 4],
    scales: Shared<u8>,
    x: &Inputs,
    sums: &mut [[f32; 2]; G],
) {
    let row = warp::lane_id() / 4;
    // SAFETY: the caller's promise.
    unsafe {
        let words = scales.cast::<[u32; 2]>().add(row);
        let [d, minima] = [0, 16].map(|at| [words.get(at), words.get(at + 8)]);
        let mut total = [[0.0f32; 2]; G];
        add_blocks(operand, |r, pair| halves(d[r][pair]), x, &mut total);
        let minima = minima.map(|[a, b]| [halves(a), halves(b)]);
        repeat(G, |g| {
            let (scale, of_inputs) = (x.scale(g as u32), x.sums(g as u32));
            repeat(2, |r| {
                repeat(4, |block| {
                    total[g][r] = of_inputs[block].mul_add(minima[r][block / 2][block % 2], total[g][r]);
                });
                sums[g][r] = total[g][r].mul_add(scale, sums[g][r]);
            });
        });
    }
}

/// What the weights of block `block` of a lane's two rows are multiplied with, and what is added then, as often as f16 are larger; each twice.
///
/// # Safety
/// `scales` leads to scales and minima of a complete unit that has the block.
#[device]
#[inline(always)]
pub(super) unsafe fn halves_of_scales(scales: Shared<u8>, block: u32) -> [[u32; 2]; 2] {
    let of_row = scales.cast::<u16>().add(4 * (warp::lane_id() / 4) + block);
    // SAFETY: the caller's promise.
    let [scales, minima] = unsafe { [0, 64].map(|at| [of_row.get(at), of_row.get(at + 32)]) };
    [scales, minima].map(|of_rows| of_rows.map(|half| scaled_half(half.into(), 0, HALVES_FACTOR)))
}

/// [`Halves::halves`] of a block of unsigned bytes with these [scales and minima](halves_of_scales).
#[device]
#[inline(always)]
pub(super) fn halves_of_bytes_with_minima<const APART: bool>(
    operand: [u32; 4],
    [[low, high], [of_low, of_high]]: [[u32; 2]; 2],
) -> [[u32; 4]; 2] {
    let minima = Some([of_low, of_high, of_low, of_high]);
    halves_of_bytes::<false, APART>(operand, [low, high, low, high], minima)
}
