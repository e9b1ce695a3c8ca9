//! How blocks of 256 values become codes, scales and addends, as [`super::layouts`].

use super::codes::{Codes, Numbers, Rows};
use super::dot::Group;
use super::layouts::{FivesAdded, Layout, NibblesAdded, Room, Signed, group, layout, looked_up};
use crate::formats;
use std::array::from_fn;

/// Groups of 16 codes up to 63.
pub(super) struct Sixes16;
/// Groups of 16 codes up to 7.
pub(super) struct Threes16;
/// Groups of 16 codes up to 3 with addends.
pub(super) struct Twos16;

group!(Sixes16, 4, 63, true, false);
group!(Threes16, 4, 7, true, false);
group!(Twos16, 4, 3, false, true);

#[inline(always)]
fn times(a: Numbers, b: Numbers) -> Numbers {
    from_fn(|i| a[i] * b[i])
}

#[inline(always)]
fn minus_times(a: Numbers, b: Numbers) -> Numbers {
    from_fn(|i| -(a[i] * b[i]))
}

/// A bit that is at place `from` of each byte, at place `to`.
#[inline(always)]
unsafe fn bit<C: Codes>(codes: C, from: usize, to: usize) -> C {
    // SAFETY: the caller's.
    unsafe { if from <= to { codes.up(to - from, 1 << to) } else { codes.down(from - to, 1 << to) } }
}

/// Scales and minima of Q4_K and Q5_K: `scale_and_min` of `formats::k`, behind `d` and `dmin`.
#[inline(always)]
unsafe fn scales_and_mins<C: Codes>(rows: &Rows, to: &Room) {
    // SAFETY: the caller's.
    unsafe {
        let (d, dmin) = (C::halves(rows, 0), C::halves(rows, 2));
        let (low, mins, high) = (C::rows4(rows, 4), C::rows4(rows, 8), C::rows4(rows, 12));
        let scales = [low.down(0, 63), high.down(0, 15).or(low.down(6, 3).up(4, 48))];
        let mins = [mins.down(0, 63), high.down(4, 15).or(mins.down(6, 3).up(4, 48))];
        for b in 0..8 {
            to.scale(b, times(d, scales[b / 4].numbers(b % 4)));
            to.addend(b, minus_times(dmin, mins[b / 4].numbers(b % 4)));
        }
    }
}

layout!(Q4_K, NibblesAdded, 0, |rows, to, C| {
    scales_and_mins::<C>(rows, to);
    for half in 0..8 {
        let bytes = C::rows16(rows, 16 + 16 * half);
        for (i, bytes) in bytes.into_iter().enumerate() {
            let step = half / 2 * 16 + half % 2 * 4 + i;
            to.code(step, bytes.down(0, 15));
            to.code(step + 8, bytes.down(4, 15));
        }
    }
});

layout!(Q5_K, FivesAdded, 0, |rows, to, C| {
    scales_and_mins::<C>(rows, to);
    for half in 0..2 {
        let fifths = C::rows16(rows, 16 + 16 * half);
        for pair in 0..4 {
            for (i, bytes) in C::rows16(rows, 48 + 32 * pair + 16 * half).into_iter().enumerate() {
                let step = 16 * pair + 4 * half + i;
                to.code(step, bytes.down(0, 15).or(bit(fifths[i], 2 * pair, 4)));
                to.code(step + 8, bytes.down(4, 15).or(bit(fifths[i], 2 * pair + 1, 4)));
            }
        }
    }
});

layout!(Q6_K, Sixes16, 32, |rows, to, C| {
    let d = C::halves(rows, 208);
    for (i, scales) in C::rows16(rows, 192).into_iter().enumerate() {
        for j in 0..4 {
            to.scale(4 * i + j, times(d, scales.signed_numbers(j)));
        }
    }
    for (run, half) in (0..4).map(|i| (i / 2, i % 2)) {
        let at = 64 * run + 16 * half;
        let low = [C::rows16(rows, at), C::rows16(rows, at + 32)];
        let high = C::rows16(rows, 128 + 32 * run + 16 * half);
        for i in 0..4 {
            let step = 32 * run + 4 * half + i;
            to.code(step, low[0][i].down(0, 15).or(high[i].up(4, 48)));
            to.code(step + 8, low[1][i].down(0, 15).or(high[i].up(2, 48)));
            to.code(step + 16, low[0][i].down(4, 15).or(high[i].down(0, 48)));
            to.code(step + 24, low[1][i].down(4, 15).or(high[i].down(2, 48)));
        }
    }
});

layout!(Q3_K, Threes16, 4, |rows, to, C| {
    let d = C::halves(rows, 108);
    let (first, second, high) = (C::rows4(rows, 96), C::rows4(rows, 100), C::rows4(rows, 104));
    for b in 0..16 {
        let low = [first, second][b / 4 % 2].down(b / 8 * 4, 15);
        let scale = low.or(high.down(b / 4 * 2, 3).up(4, 48)).numbers(b % 4);
        to.scale(b, times(d, scale.map(|scale| scale - 32.0)));
    }
    for half in 0..2 {
        let thirds = C::rows16(rows, 16 * half);
        for run in 0..2 {
            for (i, bytes) in C::rows16(rows, 32 + 32 * run + 16 * half).into_iter().enumerate() {
                for j in 0..4 {
                    let third = bit(thirds[i], 4 * run + j, 2);
                    to.code(32 * run + 8 * j + 4 * half + i, bytes.down(2 * j, 3).or(third));
                }
            }
        }
    }
});

layout!(Q2_K, Twos16, 0, |rows, to, C| {
    let (d, dmin) = (C::halves(rows, 80), C::halves(rows, 82));
    for (i, both) in C::rows16(rows, 0).into_iter().enumerate() {
        for j in 0..4 {
            to.scale(4 * i + j, times(d, both.down(0, 15).numbers(j)));
            to.addend(4 * i + j, minus_times(dmin, both.down(4, 15).numbers(j)));
        }
    }
    for (run, half) in (0..4).map(|i| (i / 2, i % 2)) {
        for (i, bytes) in C::rows16(rows, 16 + 32 * run + 16 * half).into_iter().enumerate() {
            for j in 0..4 {
                to.code(32 * run + 8 * j + 4 * half + i, bytes.down(2 * j, 3));
            }
        }
    }
});

layout!(IQ4_XS, Signed, 0, |rows, to, C| {
    let (d, low, high) = (C::halves(rows, 0), C::rows4(rows, 4), C::rows4(rows, 0));
    for b in 0..8 {
        let low = low.down(b % 2 * 4, 15).numbers(b / 2);
        let high = high.down(2 * (b % 4), 3).numbers(2 + b / 4);
        to.scale(b, times(d, from_fn(|i| low[i] + 16.0 * high[i] - 32.0)));
        to.behind::<Signed>(b).all(looked_up::<C>(rows, 8 + 16 * b, &formats::IQ4_CODES));
    }
});
