//! MXFP4: nibbles as [`codes`](super::codes) has them; then for each row the four exponents of its blocks, a byte each.

use super::codes::byte_of_nibbles;
use super::q4_0::words_of_block;
use super::q8_0::multiply_scaled;
use super::{HALVES_FACTOR, Halves, Unit, halves_of_bytes};
use crate::blocks::fp4::{DOUBLED, half_of_power};
#[device]
use crate::fused::units::Inputs;
use cuda_std::prelude::*;

/// Bytes of a block in a file: the exponent, then 16 of nibbles.
#[device]
const BLOCK: u32 = 17;
/// Bytes of nibbles of a unit.
#[device]
const QUANTS: u32 = 1024;

#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct mxfp4;

#[device]
impl Unit for mxfp4 {
    const COLS: u32 = 128;
    const BYTES: u32 = QUANTS + 64;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                byte_of_nibbles(|r, block| row(r).add((block * BLOCK + 1) as usize), index)
            } else {
                let place = index - QUANTS;
                *row(place / 4).add((place % 4 * BLOCK) as usize)
            }
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let d = half_of_power((*unit.add((QUANTS + 4 * r + column / 32) as usize)).into());
            DOUBLED.quad(unit, r, column).map(|code| d.mul_rn(code))
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let row = warp::lane_id() / 4;
        // SAFETY: the caller's promise.
        unsafe {
            let of_block = |block| DOUBLED.operand(words_of_block(unit, block));
            let exponents = unit.add(QUANTS).cast::<u32>().add(row);
            let exponents = [exponents.get(0), exponents.get(8)];
            let scales = |r: usize, pair: usize| {
                [0, 8].map(|bit| half_of_power(exponents[r] >> (16 * pair + bit) & 255))
            };
            multiply_scaled(of_block, scales, x, sums);
        }
    }
}

#[device]
impl Halves for mxfp4 {
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: Shared<u8>, _: u32) {}

    #[inline(always)]
    unsafe fn halves<const APART: bool>(unit: Shared<u8>, (): &(), odd: u32, pair: u32) -> [[u32; 4]; 2] {
        // Of the largest f16 that is a power of two, 2^15.
        const LARGEST: f32 = 32768.0;
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast().get(2 * (32 * pair + lane) + odd);
            let exponents = unit.add(QUANTS + 4 * (lane / 4) + 2 * pair + odd);
            let [low, high] = [exponents.get(0), exponents.get(32)].map(|exponent| {
                let scale = (half_of_power(exponent.into()) * HALVES_FACTOR).min(LARGEST);
                f16::pack2(scale, scale)
            });
            halves_of_bytes::<true, APART>(DOUBLED.operand(words), [low, high, low, high], None)
        }
    }
}
