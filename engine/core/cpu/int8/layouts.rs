//! How blocks of 32 values become codes, scales and addends; those of 256 are in [`super::layouts_k`].

use super::codes::{Codes, Numbers, Rows};
use super::dot::{Group, STEP};
use crate::cpu::simd::LANES;
use crate::formats::{self, Blocks};

/// A matrix format as integers: a value is `scale * (code - OFFSET) + addend`, scale and addend those of its group of neighbours.
pub(super) trait Layout {
    type Format: Blocks;
    type Group: Group;
    /// What codes are above the integers that they stand for, where [`Group::RAISED`] says so.
    const OFFSET: u8 = 0;

    /// Unpacks the block that begins at each of `rows`.
    ///
    /// # Safety
    /// A block of the format is there in each row, `to` has room for its values, and the processor has the instructions of `C`.
    unsafe fn unpack<C: Codes>(rows: &Rows, to: &Room);
}

/// Groups of 32 codes up to 15.
pub(super) struct Nibbles;
/// The same with addends.
pub(super) struct NibblesAdded;
/// Groups of 32 codes up to 31.
pub(super) struct Fives;
/// The same with addends.
pub(super) struct FivesAdded;
/// Groups of 32 codes with a sign.
pub(super) struct Signed;

macro_rules! group {
    ($name:ident, $steps:literal, $largest:literal, $raised:literal, $addends:literal) => {
        impl Group for $name {
            const STEPS: usize = $steps;
            const LARGEST: u8 = $largest;
            const RAISED: bool = $raised;
            const ADDENDS: bool = $addends;
        }
    };
}
pub(super) use group;

group!(Nibbles, 8, 15, true, false);
group!(NibblesAdded, 8, 15, false, true);
group!(Fives, 8, 31, true, false);
group!(FivesAdded, 8, 31, false, true);
group!(Signed, 8, 0, false, false);

/// Where unpacked values of sixteen rows go.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// [`STEP`] bytes a step.
    pub codes: *mut u8,
    /// [`LANES`] a group.
    pub scales: *mut f32,
    /// The same.
    pub addends: *mut f32,
}

/// # Safety
/// All functions: there is room, and the processor has the instructions.
impl Room {
    /// Behind `groups` groups of `G`.
    #[inline(always)]
    pub unsafe fn behind<G: Group>(&self, groups: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            Self {
                codes: self.codes.add(groups * G::STEPS * STEP),
                scales: self.scales.add(groups * LANES),
                addends: self.addends.add(groups * LANES),
            }
        }
    }

    /// Four codes of each row.
    #[inline(always)]
    pub unsafe fn code<C: Codes>(&self, step: usize, codes: C) {
        // SAFETY: the caller's.
        unsafe { codes.store(self.codes.add(step * STEP)) }
    }

    #[inline(always)]
    pub unsafe fn scale(&self, group: usize, scales: Numbers) {
        // SAFETY: the caller's; an array of f32 needs the alignment of one.
        unsafe { *self.scales.add(group * LANES).cast::<Numbers>() = scales }
    }

    #[inline(always)]
    pub unsafe fn addend(&self, group: usize, addends: Numbers) {
        // SAFETY: the caller's; an array of f32 needs the alignment of one.
        unsafe { *self.addends.add(group * LANES).cast::<Numbers>() = addends }
    }

    /// 32 codes.
    #[inline(always)]
    pub unsafe fn all<C: Codes>(&self, codes: [C; 8]) {
        for (step, codes) in codes.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { self.code(step, codes) }
        }
    }
}

/// 32 codes from 16 bytes, those of the low halves before those of the high ones.
///
/// # Safety
/// As [`Codes`].
#[inline(always)]
unsafe fn nibbles<C: Codes>(rows: &Rows, at: usize) -> [C; 8] {
    // SAFETY: the caller's.
    unsafe {
        let [a, b, c, d] = C::rows16(rows, at);
        let low = [a.down(0, 15), b.down(0, 15), c.down(0, 15), d.down(0, 15)];
        let high = [a.down(4, 15), b.down(4, 15), c.down(4, 15), d.down(4, 15)];
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }
}

/// 32 codes from as many bits in four: what `table` has for them.
///
/// # Safety
/// As [`Codes`].
#[inline(always)]
pub(super) unsafe fn looked_up<C: Codes>(rows: &Rows, at: usize, table: &[i8; 16]) -> [C; 8] {
    // SAFETY: the caller's.
    unsafe {
        let mut codes = nibbles::<C>(rows, at);
        for codes in &mut codes {
            *codes = codes.lookup(table);
        }
        codes
    }
}

/// 32 codes of five bits: the fifth ones in four bytes, then the other four of each.
///
/// # Safety
/// As [`Codes`].
#[inline(always)]
unsafe fn fives<C: Codes>(rows: &Rows, at: usize) -> [C; 8] {
    // SAFETY: the caller's.
    unsafe {
        let fifths = C::rows4(rows, at);
        let mut codes = nibbles::<C>(rows, at + 4);
        for (step, codes) in codes.iter_mut().enumerate() {
            let masks = if step % 2 == 0 { [1, 2, 4, 8] } else { [16, 32, 64, 128] };
            *codes = codes.or(fifths.repeat(step / 2).where_set(masks, 16));
        }
        codes
    }
}

/// 32 codes, a byte each.
///
/// # Safety
/// As [`Codes`].
#[inline(always)]
unsafe fn bytes<C: Codes>(rows: &Rows, at: usize) -> [C; 8] {
    // SAFETY: the caller's.
    let ([a, b, c, d], [e, f, g, h]) = unsafe { (C::rows16(rows, at), C::rows16(rows, at + 16)) };
    [a, b, c, d, e, f, g, h]
}

macro_rules! layout {
    ($format:ident, $group:ident, $offset:expr, |$rows:ident, $to:ident, $codes:ident| $unpack:block) => {
        impl Layout for formats::$format {
            type Format = Self;
            type Group = $group;
            const OFFSET: u8 = $offset;

            #[inline(always)]
            unsafe fn unpack<$codes: Codes>($rows: &Rows, $to: &Room) {
                // SAFETY: the caller's: all of it is within a block of each row and the room of one.
                unsafe { $unpack }
            }
        }
    };
}
pub(super) use layout;

layout!(Q4_0, Nibbles, 8, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.all(nibbles::<C>(rows, 2));
});

layout!(Q4_1, NibblesAdded, 0, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.addend(0, C::halves(rows, 2));
    to.all(nibbles::<C>(rows, 4));
});

layout!(Q5_0, Fives, 16, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.all(fives::<C>(rows, 2));
});

layout!(Q5_1, FivesAdded, 0, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.addend(0, C::halves(rows, 2));
    to.all(fives::<C>(rows, 4));
});

layout!(Q8_0, Signed, 0, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.all(bytes::<C>(rows, 2));
});

layout!(IQ4_NL, Signed, 0, |rows, to, C| {
    to.scale(0, C::halves(rows, 0));
    to.all(looked_up::<C>(rows, 2, &formats::IQ4_CODES));
});

/// The doubled values of MXFP4, raised above zero.
const RAISED: [i8; 16] = {
    let mut raised = formats::FP4_DOUBLED;
    let mut i = 0;
    while i < raised.len() {
        raised[i] += 12;
        i += 1;
    }
    raised
};

layout!(MXFP4, Fives, 12, |rows, to, C| {
    to.scale(0, rows.map(|row| formats::mxfp4_step(*row)));
    to.all(looked_up::<C>(rows, 1, &RAISED));
});
