//! Matrix products of one warp on tensor cores, and the loads that feed them.
//!
//! Route on the device: LLVM intrinsics; all 32 lanes take part in each instruction. The shared address of `ldmatrix` goes
//! through a generic pointer, since Rust has no other; ptxas turns it back into one `LDSM`.
//!
//! Fragments, for a lane with `row = lane / 4` and `pair = 2 * (lane % 4)` (PTX ISA, "Matrix Fragments for
//! mma.m16n8k16"; two neighbouring elements share a register, the first in its low half):
//! - `a` (16 × 16): `[row][pair..]`, `[row + 8][pair..]`, `[row][pair + 8..]`, `[row + 8][pair + 8..]`;
//! - `b` (16 × 8, k × n): `[pair..][row]`, `[pair + 8..][row]`;
//! - `c`, `d` (16 × 8): `[row][pair]`, `[row][pair + 1]`, `[row + 8][pair]`, `[row + 8][pair + 1]`.

use half::{bf16, f16};

use crate::shared::Shared;
use crate::target;
use crate::{Bits, PackedElement};

macro_rules! ldmatrix {
    ($($(#[$doc:meta])* $name:ident, $intrinsic:ident, $count:literal, |$m:ident| $result:expr;)*) => { $(
        $(#[$doc])*
        ///
        /// Lane `i` gives the address of row `i % 8` of matrix `i / 8`; a row is 8 elements of two bytes. The
        /// lane gets elements `2 * (lane % 4)` and the next of row `lane / 4` of each matrix (with `trans` of
        /// its transpose).
        ///
        /// # Safety
        /// All 32 lanes call it together; each of the first 8 × matrices lanes gives 16 bytes of the block's
        /// shared memory, aligned to 16, that nobody writes at the same time.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        #[must_use]
        pub unsafe fn $name<T: Bits>(row: Shared<T>) -> [u32; $count] {
            // SAFETY: the caller's promise.
            let $m = unsafe { target::$intrinsic(row.as_mut_ptr().cast_const().cast()) };
            $result
        }
    )* };
}

ldmatrix! {
    /// Loads one 8 × 8 matrix.
    ldmatrix_x1, ldmatrix_x1, 1, |m| [m];
    /// Loads one 8 × 8 matrix, transposed.
    ldmatrix_x1_trans, ldmatrix_x1_trans, 1, |m| [m];
    /// Loads two 8 × 8 matrices.
    ldmatrix_x2, ldmatrix_x2, 2, |m| [m.0, m.1];
    /// Loads two 8 × 8 matrices, transposed: `b` of [`mma_m16n8k16`](MmaElement::mma_m16n8k16) from a
    /// row-major tile.
    ldmatrix_x2_trans, ldmatrix_x2_trans, 2, |m| [m.0, m.1];
    /// Loads four 8 × 8 matrices: `a` of [`mma_m16n8k16`](MmaElement::mma_m16n8k16).
    ldmatrix_x4, ldmatrix_x4, 4, |m| [m.0, m.1, m.2, m.3];
    /// Loads four 8 × 8 matrices, transposed.
    ldmatrix_x4_trans, ldmatrix_x4_trans, 4, |m| [m.0, m.1, m.2, m.3];
}

/// An element type that the tensor cores multiply, with sums in `f32`.
pub trait MmaElement: PackedElement {
    /// `d = a · b + c` for 16 × 16 times 16 × 8.
    ///
    /// # Safety
    /// All 32 lanes of the warp call it together.
    #[must_use]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];

    /// `d = a · b + c` for 16 × 8 times 8 × 8: the first half of each fragment of `a` (two registers) and of
    /// `b` (one).
    ///
    /// # Safety
    /// All 32 lanes of the warp call it together.
    #[must_use]
    unsafe fn mma_m16n8k8(a: [u32; 2], b: u32, c: [f32; 4]) -> [f32; 4];
}

impl MmaElement for bf16 {
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        let d = unsafe { target::mma_k16_bf16(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
        [d.0, d.1, d.2, d.3]
    }

    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn mma_m16n8k8(a: [u32; 2], b: u32, c: [f32; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        let d = unsafe { target::mma_k8_bf16(a[0], a[1], b, c[0], c[1], c[2], c[3]) };
        [d.0, d.1, d.2, d.3]
    }
}

impl MmaElement for f16 {
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        let ([a0, a1, a2, a3], [b0, b1]) = (a.map(target::f16x2), b.map(target::f16x2));
        // SAFETY: the caller's promise.
        let d = unsafe { target::mma_k16_f16(a0, a1, a2, a3, b0, b1, c[0], c[1], c[2], c[3]) };
        [d.0, d.1, d.2, d.3]
    }

    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn mma_m16n8k8(a: [u32; 2], b: u32, c: [f32; 4]) -> [f32; 4] {
        let ([a0, a1], b) = (a.map(target::f16x2), target::f16x2(b));
        // SAFETY: the caller's promise.
        let d = unsafe { target::mma_k8_f16(a0, a1, b, c[0], c[1], c[2], c[3]) };
        [d.0, d.1, d.2, d.3]
    }
}

/// `d = a · b + c` for 16 × 8 times 8 × 8 numbers of 8 exponent and 10 fraction bits (TF32), each in a register as the `f32` whose last 13
/// bits do not count: they are cut off, so that what is to be rounded is given rounded ([`tf32`]). Sums are f32.
///
/// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k8"), for a lane with `row = lane / 4` and `column = lane % 4`: `a` is
/// `[row][column]`, `[row + 8][column]`, `[row][column + 4]`, `[row + 8][column + 4]`; `b` is `[column][row]`, `[column + 4][row]`; `c` and `d`
/// as for f16.
///
/// # Safety
/// All 32 lanes of the warp call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub unsafe fn mma_m16n8k8_tf32(a: [f32; 4], b: [f32; 2], c: [f32; 4]) -> [f32; 4] {
    let (a, b) = (a.map(f32::to_bits), b.map(f32::to_bits));
    // SAFETY: the caller's promise.
    let d = unsafe { target::mma_k8_tf32(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
    [d.0, d.1, d.2, d.3]
}

/// `value` rounded to what [`mma_m16n8k8_tf32`] multiplies, the nearest, of two the larger one; what is not finite stays so.
#[inline(always)]
#[must_use]
pub fn tf32(value: f32) -> f32 {
    let bits = value.to_bits();
    let is_finite = bits & 0x7f80_0000 != 0x7f80_0000;
    f32::from_bits(if is_finite { bits.wrapping_add(0x1000) & !0x1fff } else { bits })
}

/// `d = a · b + c` for 16 × 32 times 32 × 8 signed bytes, with exact i32 sums that wrap.
///
/// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k32"; four neighbouring elements share a register), for a lane with
/// `row = lane / 4` and `quad = 4 * (lane % 4)`: `a` is `[row][quad..]`, `[row + 8][quad..]`, `[row][quad + 16..]`,
/// `[row + 8][quad + 16..]`; `b` is `[quad..][row]`, `[quad + 16..][row]`; `c` and `d` as for f16.
///
/// # Safety
/// All 32 lanes of the warp call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub unsafe fn mma_m16n8k32_s8(a: [u32; 4], b: [u32; 2], c: [i32; 4]) -> [i32; 4] {
    // SAFETY: the caller's promise.
    let d = unsafe { target::mma_k32_s8(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
    [d.0, d.1, d.2, d.3]
}

/// `d = a · b + c` for 16 × 16 times 16 × 8 signed bytes: the first half of each fragment of [`mma_m16n8k32_s8`].
///
/// # Safety
/// All 32 lanes of the warp call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub unsafe fn mma_m16n8k16_s8(a: [u32; 2], b: u32, c: [i32; 4]) -> [i32; 4] {
    // SAFETY: the caller's promise.
    let d = unsafe { target::mma_k16_s8(a[0], a[1], b, c[0], c[1], c[2], c[3]) };
    [d.0, d.1, d.2, d.3]
}

/// `c` and the products of the four signed bytes of `a` with those of `b`: one instruction, `dp4a`.
#[inline(always)]
#[must_use]
pub fn dot4_s8(a: u32, b: u32, c: i32) -> i32 {
    target::math::dot4_s8(a, b, c)
}
