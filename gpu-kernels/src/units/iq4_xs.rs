//! IQ4_XS: nibbles as [`codes`](super::codes) has them; then eight bytes for each row: `d`, the high two bits of the scales of the even blocks of 32 and those of
//! the odd ones, a byte each, and the low four bits of all (of even blocks in the low half of a byte, of odd ones in the high half).

use super::codes::byte_of_nibbles;
use super::{
    HALVES_FACTOR, Halves, Unit, add_scaled, byte_of, bytes_of_rows, half, halves_of_bytes, scaled_halves,
};
#[device]
use crate::{blocks::iq4::CODES, fused::units::Inputs, grid::repeat};
use cuda_std::mma::mma_m16n8k32_s8;
use cuda_std::{f16x2, prelude::*};

/// Bytes of nibbles of a unit.
#[device]
const QUANTS: u32 = 2048;

/// What scales are stored with beside them.
#[device]
const ZERO: u8 = 32;

/// A block in a file: `d`, two bytes of the high bits of eight scales, four of their low ones, 128 of nibbles.
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
pub struct iq4_xs;

/// The six bits of the scales of the even blocks, or the odd ones, of a row: a byte each. Of its eight bytes.
#[device]
#[inline(always)]
fn scales_of_row([d, low]: [u32; 2], odd: u32) -> u32 {
    const LOW: u32 = 0x0f0f_0f0f;
    let high = d >> (16 + 8 * odd) & 255;
    // Two bits to each byte, in two steps.
    let high = (high | high << 12) & 0x000f_000f;
    let high = (high | high << 6) & 0x0303_0303;
    (low >> (4 * odd)) & LOW | high << 4
}

#[device]
impl Unit for iq4_xs {
    const COLS: u32 = 256;
    const BYTES: u32 = QUANTS + 128;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn byte(row: impl Fn(u32) -> *const u8, index: u32) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if index < QUANTS {
                return byte_of_nibbles(|r, block| row(r).add((8 + 16 * block) as usize), index);
            }
            let (block, byte) = (row((index - QUANTS) / 8), (index - QUANTS) % 8);
            if byte / 2 != 1 {
                return *block.add(byte as usize);
            }
            let high = u32::from(*block.add(2)) | u32::from(*block.add(3)) << 8;
            let mut bits = 0;
            repeat(4, |i| bits |= (high >> (2 * (2 * i as u32 + byte % 2)) & 3) << (2 * i));
            bits as u8
        }
    }

    #[inline(always)]
    unsafe fn quad(unit: *const u8, r: u32, column: u32) -> [f32; 4] {
        let block = column / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let row = unit.add((QUANTS + 8 * r) as usize);
            let low = *row.add((4 + block / 2) as usize) >> (4 * (block % 2)) & 15;
            let high = *row.add((2 + block % 2) as usize) >> (block / 2 * 2) & 3;
            let scale = i32::from(low | high << 4) - i32::from(ZERO);
            let d = half(row).mul_rn(scale as f32);
            CODES.quad(unit, r, column).map(|code| d.mul_rn(code))
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize>(unit: Shared<u8>, x: &Inputs, sums: &mut [[f32; 2]; G]) {
        let row = warp::lane_id() / 4;
        // SAFETY: the caller's promise.
        unsafe {
            let words = unit.cast::<[u32; 4]>().add(warp::lane_id());
            let rows = unit.add(QUANTS).cast::<[u32; 2]>().add(row);
            let rows = [rows.get(0), rows.get(8)];
            let scales = rows.map(|row| [0, 1].map(|odd| scales_of_row(row, odd)));
            let mut total = [[0i32; 4]; G];
            repeat(4, |pair| {
                let [a, b, c, d] = words.get(32 * pair as u32);
                let operands = [CODES.operand([a, b]), CODES.operand([c, d])];
                let mut columns = [[0; 4]; G];
                repeat(G, |g| columns[g] = x.columns(g as u32, pair as u32));
                repeat(2, |h| {
                    let scale = |r: usize| byte_of(scales[r][h], pair as u32) - i32::from(ZERO);
                    let s = [scale(0), scale(1)];
                    repeat(G, |g| {
                        let b = [columns[g][2 * h], columns[g][2 * h + 1]];
                        let dot = mma_m16n8k32_s8(operands[h], b, [0; 4]);
                        repeat(4, |i| total[g][i] += s[i / 2] * dot[i]);
                    });
                });
            });
            let d = rows.map(|[d, _]| super::halves(d)[0]);
            add_scaled(&total, d, x, sums);
        }
    }
}

#[device]
impl Halves for iq4_xs {
    /// `d` of both rows, as often as weights are larger, and for the first two of such blocks and the others the scales of either row.
    type Scales = (u32, [u32; 2]);

    #[inline(always)]
    unsafe fn scales(unit: Shared<u8>, odd: u32) -> Self::Scales {
        let rows = unit.add(QUANTS).cast::<[u32; 2]>().add(warp::lane_id() / 4);
        // SAFETY: the caller's promise.
        let rows = unsafe { [rows.get(0), rows.get(8)] };
        let factor = f16x2::splat(f16::from_f32_const(HALVES_FACTOR));
        let d = f16x2::mul(f16x2::bytes(rows[0][0], rows[1][0], 0x5410), factor);
        (d, bytes_of_rows(rows.map(|row| scales_of_row(row, odd))))
    }

    #[inline(always)]
    unsafe fn halves<const APART: bool>(
        unit: Shared<u8>,
        &(d, scales): &Self::Scales,
        odd: u32,
        pair: u32,
    ) -> [[u32; 4]; 2] {
        const BIASED: u32 = f16x2::splat(f16::from_f32_const(1024.0 + ZERO as f32));
        // SAFETY: the caller's promise.
        let words = unsafe { unit.cast().get(2 * (32 * pair + warp::lane_id()) + odd) };
        let [low, high] = scaled_halves(scales, pair, BIASED, d);
        halves_of_bytes::<true, APART>(CODES.operand(words), [low, high, low, high], None)
    }
}
