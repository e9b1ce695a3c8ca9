//! Q4_K: nibbles as in Q4_0's units, a lane's 16 bytes for a pair of blocks of 32; then 16 bytes for each row: `d` and `dmin`, low nibbles of the scales,
//! those of the minima (of even blocks in the low half of a byte, of odd ones in the high half), and the high two bits of all.
//!
//! So the scales of the four even, or odd, blocks come out of two words with a mask and a shift each.

use super::q4_0::{nibbles_of_place, place_of_nibbles};
use super::{Unit, half, halves};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::mma::{dot4_s8, mma_m16n8k32_s8};
use cuda_std::prelude::*;

/// Bytes of nibbles of a unit.
#[device]
const QUANTS: u32 = 2048;

/// A block in a file: `d`, `dmin`, 12 bytes of scales and minima of six bits, 128 of nibbles.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q4_k;

/// Scale and minimum of block `j` of 32 values, from their 12 bytes.
///
/// # Safety
/// `scales` leads to them; `j` is below 8.
#[device]
#[inline(always)]
unsafe fn scale_and_minimum(scales: *const u8, j: u32) -> (u8, u8) {
    // SAFETY: the caller's promise.
    let byte = |i: u32| unsafe { *scales.add(i as usize) };
    if j < 4 {
        (byte(j) & 63, byte(j + 4) & 63)
    } else {
        (byte(j + 4) & 15 | byte(j - 4) >> 6 << 4, byte(j + 4) >> 4 | byte(j) >> 6 << 4)
    }
}

#[device]
impl Unit for q4_k {
    const COLS: u32 = 256;
    const BYTES: u32 = QUANTS + 256;
    const FACTOR: f32 = 1.0;
    const DIGITS: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                let (r, block, column) = place_of_nibbles(index % 512);
                let block = 2 * (index / 512) + block;
                // Blocks 2 i and 2 i + 1 share 32 bytes.
                let quants = row(r).add((16 + 32 * (block / 2)) as usize);
                let nibble = |column: u32| *quants.add(column as usize) >> (4 * (block % 2)) & 15;
                return nibble(column) | nibble(column + 16) << 4;
            }
            let (place, byte) = (index - QUANTS, index % 4);
            let block = row(place / 16);
            let even = scale_and_minimum(block.add(4), 2 * byte);
            let odd = scale_and_minimum(block.add(4), 2 * byte + 1);
            match place / 4 % 4 {
                0 => *block.add(byte as usize),
                1 => even.0 & 15 | odd.0 << 4,
                2 => even.1 & 15 | odd.1 << 4,
                _ => even.0 >> 4 | odd.0 >> 4 << 2 | even.1 >> 4 << 4 | odd.1 >> 4 << 6,
            }
        }
    }

    #[inline(always)]
    unsafe fn value(unit: *const u8, r: u32, column: u32) -> f32 {
        let block = column / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let at = 512 * (block / 2) + nibbles_of_place(r, block % 2, column % 16);
            let q = *unit.add(at as usize) >> (column / 16 % 2 * 4) & 15;
            let row = unit.add((QUANTS + 16 * r) as usize);
            let byte = |word: u32| {
                *row.add((4 * word + block / 2) as usize) >> (4 * (block % 2) * u32::from(word < 3))
            };
            let high = byte(3) >> (2 * (block % 2));
            let (scale, minimum) = (byte(1) & 15 | (high & 3) << 4, byte(2) & 15 | (high >> 4 & 3) << 4);
            let (d, dmin) = (half(row).mul_rn(scale.into()), half(row.add(2)).mul_rn(minimum.into()));
            d.mul_rn(q.into()).add_rn(-dmin)
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        const LOW: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x3030_3030;
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 4]>();
            let rows = [words.get(128 + lane / 4), words.get(136 + lane / 4)];
            // Of each row those of the even blocks, then of the odd ones: a byte each.
            let (mut scales, mut minima) = ([[0u32; 2]; 2], [[0u32; 2]; 2]);
            repeat(2, |r| {
                let [_, s, m, high] = rows[r];
                scales[r] = [s & LOW | (high << 4) & HIGH, (s >> 4) & LOW | (high << 2) & HIGH];
                minima[r] = [m & LOW | high & HIGH, (m >> 4) & LOW | (high >> 2) & HIGH];
            });
            let mut total = [[0i32; 4]; G];
            repeat(4, |pair| {
                let w = words.get(pair as u32 * 32 + lane);
                let mut columns = [[0; 4]; G];
                repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
                repeat(2, |h| {
                    let (v, w) = (w[2 * h], w[2 * h + 1]);
                    let a = [v & LOW, w & LOW, (v >> 4) & LOW, (w >> 4) & LOW];
                    let scale = |r: usize| i32::from((scales[r][h] >> (8 * pair)) as u8);
                    let s = [scale(0), scale(1)];
                    repeat(G, |g| {
                        let dot = mma_m16n8k32_s8(a, [columns[g][2 * h], columns[g][2 * h + 1]], [0; 4]);
                        repeat(4, |i| total[g][i] += s[i / 2] * dot[i]);
                    });
                });
            });
            repeat(G, |g| {
                let scale = x.scale(g as u32);
                let digits = x.digits(g as u32);
                repeat(2, |r| {
                    let [d, dmin] = halves(rows[r][0]);
                    let [even, odd] = minima[r];
                    let mut minimum = 0;
                    repeat(3, |k| {
                        let [of_even, of_odd] = digits[2 - k];
                        minimum = dot4_s8(even, of_even, dot4_s8(odd, of_odd, minimum << 8));
                    });
                    let dot = (total[g][2 * r] as f32).mul_add(256.0, total[g][2 * r + 1] as f32);
                    sums[g][r] += scale * (d * dot - dmin * minimum as f32);
                });
            });
        }
    }
}
