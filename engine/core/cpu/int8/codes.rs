//! Codes of sixteen rows of a matrix, as registers take them, and the operations that blocks of formats are unpacked with.

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod x86;

use super::dot::STEP;
use crate::cpu::simd::LANES;
use std::array::from_fn;

/// Where the same place in each of sixteen rows is.
pub(in crate::cpu) type Rows = [*const u8; LANES];

/// A number of each row.
pub(in crate::cpu) type Numbers = [f32; LANES];

/// Four neighbouring bytes of each of sixteen rows, those of row `r` at `4r`.
///
/// # Safety
/// All functions: the processor has the instructions; what is read of each row is there, what is written has room.
#[allow(clippy::missing_safety_doc, reason = "one contract, stated above, for all of them")]
pub(in crate::cpu) trait Codes: Copy {
    /// Asks for the cache line at `address`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
    /// The 16 bytes behind the first `at` of each row, four by four.
    unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4];
    /// The four bytes behind the first `at` of each row.
    unsafe fn rows4(rows: &Rows, at: usize) -> Self;
    /// The f16 behind the first `at` bytes of each row.
    unsafe fn halves(rows: &Rows, at: usize) -> Numbers;
    /// `byte >> n & mask` of each byte; `mask` has none of the `n` highest bits.
    unsafe fn down(self, n: usize, mask: u8) -> Self;
    /// `byte << n & mask` of each byte; `mask` has none of the `n` lowest bits.
    unsafe fn up(self, n: usize, mask: u8) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    /// `table[byte]` of each byte; all are below 16.
    unsafe fn lookup(self, table: &[i8; 16]) -> Self;
    /// Byte `i` of each row, four times.
    unsafe fn repeat(self, i: usize) -> Self;
    /// `value` where a byte has a bit of its mask, 0 elsewhere; byte `i` of each row has mask `masks[i]`.
    unsafe fn where_set(self, masks: [u8; 4], value: u8) -> Self;
    /// Byte `i` of each row as a number.
    unsafe fn numbers(self, i: usize) -> Numbers;
    /// Byte `i` of each row as a signed number.
    unsafe fn signed_numbers(self, i: usize) -> Numbers;
    /// Writes all of them.
    unsafe fn store(self, to: *mut u8);
}

/// [`Codes`] without vector instructions of a processor's own.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bytes64([u8; STEP]);

impl Bytes64 {
    #[inline(always)]
    fn map(self, f: impl Fn(u8) -> u8) -> Self {
        Self(self.0.map(f))
    }
}

impl Codes for Bytes64 {
    #[inline(always)]
    unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: the caller's.
        from_fn(|i| unsafe { Self::rows4(rows, at + 4 * i) })
    }

    #[inline(always)]
    unsafe fn rows4(rows: &Rows, at: usize) -> Self {
        let mut bytes = [0; STEP];
        for (bytes, row) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            // SAFETY: the caller's; an array of bytes needs no alignment.
            *bytes = unsafe { *row.add(at).cast::<[u8; 4]>() };
        }
        Self(bytes)
    }

    #[inline(always)]
    unsafe fn halves(rows: &Rows, at: usize) -> Numbers {
        // SAFETY: the caller's; an array of bytes needs no alignment.
        let bytes = rows.map(|row| unsafe { *row.add(at).cast::<[u8; 2]>() });
        bytes.map(|bytes| half::f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn down(self, n: usize, mask: u8) -> Self {
        self.map(|byte| byte >> n & mask)
    }

    #[inline(always)]
    unsafe fn up(self, n: usize, mask: u8) -> Self {
        self.map(|byte| byte << n & mask)
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] | other.0[i]))
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[i8; 16]) -> Self {
        self.map(|byte| table[usize::from(byte & 15)] as u8)
    }

    #[inline(always)]
    unsafe fn repeat(self, i: usize) -> Self {
        Self(from_fn(|at| self.0[at / 4 * 4 + i]))
    }

    #[inline(always)]
    unsafe fn where_set(self, masks: [u8; 4], value: u8) -> Self {
        Self(from_fn(|i| if self.0[i] & masks[i % 4] != 0 { value } else { 0 }))
    }

    #[inline(always)]
    unsafe fn numbers(self, i: usize) -> Numbers {
        from_fn(|row| f32::from(self.0[4 * row + i]))
    }

    #[inline(always)]
    unsafe fn signed_numbers(self, i: usize) -> Numbers {
        from_fn(|row| f32::from(self.0[4 * row + i] as i8))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's; an array of bytes needs no alignment.
        unsafe { *to.cast::<[u8; STEP]>() = self.0 }
    }
}
