//! Q2_K: two bits of each value as [`twos`] has them; then for each row the 16 bytes of its scales and minima as in a file, in the low and the high
//! halves, and for each row `d` and `dmin`.

use super::q6_k::sum_sixteens;
use super::{EXPONENTS, HALVES_FACTOR, Halves, UNSIGNED, Unit, half, halves_of_bytes, scaled_half, twos};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::mma::mma_m16n8k16_s8;
use cuda_std::{f16x2, prelude::*};

/// Where the scales of a unit begin, and `d` with `dmin`.
#[device]
const SCALES: u32 = twos::BYTES;
#[device]
const D: u32 = SCALES + 256;

/// A block in a file: 16 bytes of scales and minima, 64 of quants, `d`, `dmin`.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct q2_k;

/// The low halves of four bytes.
#[device]
const LOW: u32 = 0x0f0f_0f0f;

#[device]
impl Unit for q2_k {
    const COLS: u32 = 256;
    const BYTES: u32 = D + 64;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < SCALES {
                twos::byte(|r| row(r).add(16), index)
            } else if index < D {
                *row((index - SCALES) / 16).add((index % 16) as usize)
            } else {
                *row((index - D) / 4).add((80 + index % 4) as usize)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let (word, register) = twos::word_of(unit, r, column);
            let scales = u32::from(*unit.add((SCALES + 16 * r + column / 16) as usize));
            let [d, dmin] = [0, 2].map(|at| half(unit.add((D + 4 * r + at) as usize)));
            let (d, minimum) = (d.mul_rn((scales & 15) as f32), dmin.mul_rn((scales >> 4) as f32));
            let quants = word >> (6 - 2 * register);
            let mut values = [0.0; 4];
            repeat(4, |j| values[j] = d.mul_rn((quants >> (8 * j) & 3) as f32).add_rn(-minimum));
            values
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let lane = warp::lane_id();
        let row = lane / 4;
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 2]>().add(lane);
            let scales = unit.add(SCALES).cast::<[u32; 4]>().add(row);
            let scales = [scales.get(0), scales.get(8)];
            let d = unit.add(D).cast::<u32>().add(row);
            let d = [d.get(0), d.get(8)].map(super::halves);
            let (mut total, mut minima) = ([[0i32; 4]; G], [[0i32; 4]; G]);
            repeat(4, |pair| {
                let words = words.get(32 * pair as u32);
                let mut columns = [[0; 4]; G];
                repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
                let scales = scales.map(|scales| scales[pair]);
                let scale = |r: usize, i: usize| (scales[r] >> (8 * i) & 15) as i32;
                sum_sixteens(|i| quants(words[i / 2], i as u32 % 2), scale, &columns, &mut total);
                // The minimum of 16 columns in each of them: so tensor cores sum up the inputs.
                let of_rows = scales.map(|scales| (scales >> 4) & LOW);
                repeat(4, |i| {
                    let a = of_rows.map(|minima| f16x2::bytes(minima, 0, 0x1111 * i as u32));
                    repeat(G, |g| minima[g] = mma_m16n8k16_s8(a, columns[g][i], minima[g]));
                });
            });
            repeat(G, |g| {
                let scale = x.scale(g as u32);
                repeat(2, |r| {
                    let of = |total: [i32; 4]| (total[2 * r] as f32).mul_add(256.0, total[2 * r + 1] as f32);
                    sums[g][r] += scale * (d[r][0] * of(total[g]) - d[r][1] * of(minima[g]));
                });
            });
        }
    }
}

#[device]
impl Halves for q2_k {
    /// `d` of both rows, each twice, as often as weights are larger; then `dmin`, less than 0.
    type Scales = [[u32; 2]; 2];

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, _: u32) -> Self::Scales {
        let d = unit.add(D).cast::<u32>().add(warp::lane_id() / 4);
        // SAFETY: the caller's promise.
        let d = unsafe { [d.get(0), d.get(8)] };
        [d.map(|d| scaled_half(d, 0, HALVES_FACTOR)), d.map(|d| scaled_half(d, 1, -HALVES_FACTOR))]
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        [d, dmin]: &Self::Scales,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let word = unit.cast::<u32>().get(2 * (32 * pair + lane) + odd);
            // Of each row those of both halves of the block.
            let scales = unit.add(SCALES).cast::<u16>().add(8 * (lane / 4) + 2 * pair + odd);
            let scales = [scales.get(0), scales.get(64)].map(u32::from);
            let factor = |r: usize, half: u32, d: u32, shift: u32| {
                let factor = f16x2::bytes((scales[r] >> shift) & LOW, EXPONENTS, 0x4040 + 0x0101 * half);
                f16x2::mul(f16x2::sub(factor, UNSIGNED), d)
            };
            let factors = |d: &[u32; 2], shift| {
                [
                    factor(0, 0, d[0], shift),
                    factor(1, 0, d[1], shift),
                    factor(0, 1, d[0], shift),
                    factor(1, 1, d[1], shift),
                ]
            };
            let ([a, b], [c, e]) = (quants(word, 0), quants(word, 1));
            halves_of_bytes::<false, APART>([a, b, c, e], factors(d, 0), Some(factors(dmin, 4)))
        }
    }
}

/// The first operand of 16 columns, half `half` of a block, of its word: unsigned bytes.
#[device]
#[inline(always)]
fn quants(word: u32, half: u32) -> [u32; 2] {
    const BITS: u32 = 0x0303_0303;
    let shift = 6 - 4 * half;
    [(word >> shift) & BITS, (word >> (shift - 2)) & BITS]
}
