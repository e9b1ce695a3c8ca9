//! f16 in units, for matrices of experts: 16 bytes for a lane, `[32 columns][row r, r + 8][lane]`. A lane's words of both rows are the first operands
//! of two products of 16 columns each, whichever columns these are: the inputs' words are taken alike.

use super::{Halves, Unit};
#[device]
use crate::{fused::units::Inputs, grid::repeat};
use cuda_std::mma::MmaElement;
use cuda_std::prelude::*;

/// Bytes of 32 columns of a unit.
#[device]
const PART: u32 = 16 * 32 * 2;

/// A matrix of floats.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct f16;

#[device]
impl Unit for f16 {
    const COLS: u32 = 64;
    const BYTES: u32 = 2 * PART;
    const FACTOR: f32 = 1.0;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        let (part, lane) = (index / PART, index / 16 % 32);
        let r = lane / 4 + index / (PART / 2) % 2 * 8;
        // SAFETY: the caller's promise.
        unsafe { *row(r).add((64 * part + 16 * (lane % 4) + index % 16) as usize) }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let (part, lane) = (column / 32, 4 * (r % 8) + column % 32 / 8);
        let at = PART * part + PART / 2 * (r / 8) + 16 * lane + 2 * (column % 8);
        // SAFETY: the caller's promise.
        let words = unsafe { unit.add(at as usize).cast::<[u32; 2]>().read() };
        let [[a, b], [c, d]] = words.map(super::halves);
        [a, b, c, d]
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let words = unit.cast::<[u32; 4]>().add(warp::lane_id());
        // Of eight rows of inputs each: four and four of `sums`.
        let mut totals = [[0.0f32; 4]; G];
        // SAFETY: the caller's promise.
        unsafe {
            repeat(2, |part| {
                let (low, high) = (words.get(64 * part as u32), words.get(64 * part as u32 + 32));
                repeat(G.div_ceil(2), |m| {
                    let inputs = x.columns(m as u32, part as u32);
                    repeat(2, |i| {
                        let a = [low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]];
                        let b = [inputs[2 * i], inputs[2 * i + 1]];
                        totals[m] = cuda_std::prelude::f16::mma_m16n8k16(a, b, totals[m]);
                    });
                });
            });
            repeat(G, |g| {
                let scale = x.scale(g as u32);
                repeat(2, |r| sums[g][r] = totals[g / 2][2 * r + g % 2].mul_add(scale, sums[g][r]));
            });
        }
    }
}

#[device]
impl Halves for f16 {
    const TIMES: f32 = 1.0;
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    /// With `APART` not: its words are columns as they come, `8 c ..` of 32.
    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        let words = unit.cast::<[u32; 4]>().add(64 * (2 * pair + odd) + warp::lane_id());
        // SAFETY: the caller's promise.
        let (low, high) = unsafe { (words.get(0), words.get(32)) };
        [[low[0], high[0], low[1], high[1]], [low[2], high[2], low[3], high[3]]]
    }
}
