//! [`Codes`] in AVX2 and in AVX-512.

use super::{Codes, Numbers, Rows};
use crate::cpu::simd::LANES;
use std::arch::x86_64::*;

/// The place 4 in each byte.
const FOUR: i32 = 0x0404_0404;

/// Rows 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Ymm(__m256i, __m256i);

#[derive(Clone, Copy)]
pub(in crate::cpu) struct Zmm(__m512i);

/// The four bytes behind the first `at` of each row.
#[inline(always)]
unsafe fn fours(rows: &Rows, at: usize) -> [i32; LANES] {
    // SAFETY: the caller's.
    rows.map(|row| unsafe { row.add(at).cast::<i32>().read_unaligned() })
}

/// The two bytes behind the first `at` of each row.
#[inline(always)]
unsafe fn twos(rows: &Rows, at: usize) -> [i16; LANES] {
    // SAFETY: the caller's.
    rows.map(|row| unsafe { row.add(at).cast::<i16>().read_unaligned() })
}

/// The transpose of eight rows of four words of 32 bits.
#[inline(always)]
unsafe fn transposed(rows: &[*const u8; 8], at: usize) -> [__m256i; 4] {
    // SAFETY: the caller's: 16 bytes of each row are there, and the processor has the instructions.
    unsafe {
        let mut pairs = [_mm256_setzero_si256(); 4];
        for (i, pair) in pairs.iter_mut().enumerate() {
            let low = _mm_loadu_si128(rows[i].add(at).cast());
            let high = _mm_loadu_si128(rows[i + 4].add(at).cast());
            *pair = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
        }
        let [a, b, c, d] = pairs;
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// Of each four bytes: byte `i` of them in the last, zeros before.
#[inline(always)]
unsafe fn highest(v: __m256i, i: usize) -> __m256i {
    // SAFETY: the caller vouches for the processor; there is no memory in it.
    unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i as i32)) }
}

#[inline(always)]
unsafe fn array(low: __m256, high: __m256) -> Numbers {
    let mut values = [0.0; LANES];
    // SAFETY: there is room for sixteen; the caller vouches for the processor.
    unsafe {
        _mm256_storeu_ps(values.as_mut_ptr(), low);
        _mm256_storeu_ps(values.as_mut_ptr().add(8), high);
    }
    values
}

#[inline(always)]
unsafe fn array16(v: __m512) -> Numbers {
    let mut values = [0.0; LANES];
    // SAFETY: there is room for sixteen; the caller vouches for the processor.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) };
    values
}

impl Codes for Ymm {
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: any address may be prefetched; the caller vouches for the processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4] {
        let [low, high] = rows.as_chunks::<8>().0 else { unreachable!() };
        // SAFETY: the caller's: 16 bytes of each row are there, and the processor has the instructions.
        let ([a, b, c, d], [e, f, g, h]) = unsafe { (transposed(low, at), transposed(high, at)) };
        [Self(a, e), Self(b, f), Self(c, g), Self(d, h)]
    }

    #[inline(always)]
    unsafe fn rows4(rows: &Rows, at: usize) -> Self {
        // SAFETY: the caller's: four bytes of each row are there, and the processor has the instructions.
        unsafe {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = fours(rows, at);
            Self(_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(i, j, k, l, m, n, o, p))
        }
    }

    #[inline(always)]
    unsafe fn halves(rows: &Rows, at: usize) -> Numbers {
        // SAFETY: the caller's: two bytes of each row are there, and the processor has the instructions.
        unsafe {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = twos(rows, at);
            let (low, high) =
                (_mm_setr_epi16(a, b, c, d, e, f, g, h), _mm_setr_epi16(i, j, k, l, m, n, o, p));
            array(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn down(self, n: usize, mask: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            let (low, high) = (_mm256_srl_epi16(self.0, n), _mm256_srl_epi16(self.1, n));
            Self(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask))
        }
    }

    #[inline(always)]
    unsafe fn up(self, n: usize, mask: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            let (low, high) = (_mm256_sll_epi16(self.0, n), _mm256_sll_epi16(self.1, n));
            Self(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask))
        }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm256_or_si256(self.0, other.0), _mm256_or_si256(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[i8; 16]) -> Self {
        // SAFETY: the table has 16 bytes; the caller vouches for the processor.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm256_shuffle_epi8(table, self.0), _mm256_shuffle_epi8(table, self.1))
        }
    }

    #[inline(always)]
    unsafe fn repeat(self, i: usize) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let first = _mm256_setr_epi32(0, FOUR, 2 * FOUR, 3 * FOUR, 0, FOUR, 2 * FOUR, 3 * FOUR);
            let places = _mm256_add_epi8(first, _mm256_set1_epi8(i as i8));
            Self(_mm256_shuffle_epi8(self.0, places), _mm256_shuffle_epi8(self.1, places))
        }
    }

    #[inline(always)]
    unsafe fn where_set(self, masks: [u8; 4], value: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let (masks, zero) = (_mm256_set1_epi32(i32::from_le_bytes(masks)), _mm256_setzero_si256());
            let value = _mm256_set1_epi8(value as i8);
            let low = _mm256_cmpeq_epi8(_mm256_and_si256(self.0, masks), zero);
            let high = _mm256_cmpeq_epi8(_mm256_and_si256(self.1, masks), zero);
            Self(_mm256_andnot_si256(low, value), _mm256_andnot_si256(high, value))
        }
    }

    #[inline(always)]
    unsafe fn numbers(self, i: usize) -> Numbers {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let low = _mm256_srli_epi32::<24>(highest(self.0, i));
            let high = _mm256_srli_epi32::<24>(highest(self.1, i));
            array(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn signed_numbers(self, i: usize) -> Numbers {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let low = _mm256_srai_epi32::<24>(highest(self.0, i));
            let high = _mm256_srai_epi32::<24>(highest(self.1, i));
            array(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's: there is room for 64 bytes, and the processor has the instructions.
        unsafe {
            _mm256_storeu_si256(to.cast(), self.0);
            _mm256_storeu_si256(to.add(32).cast(), self.1);
        }
    }
}

impl Codes for Zmm {
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: any address may be prefetched; the caller vouches for the processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    /// The transpose of sixteen rows of four words.
    #[inline(always)]
    unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: the caller's: 16 bytes of each row are there, and the processor has the instructions.
        unsafe {
            let mut fours = [_mm512_setzero_si512(); 4];
            for (i, four) in fours.iter_mut().enumerate() {
                let first = _mm512_castsi128_si512(_mm_loadu_si128(rows[i].add(at).cast()));
                let second = _mm512_inserti32x4::<1>(first, _mm_loadu_si128(rows[i + 4].add(at).cast()));
                let third = _mm512_inserti32x4::<2>(second, _mm_loadu_si128(rows[i + 8].add(at).cast()));
                *four = _mm512_inserti32x4::<3>(third, _mm_loadu_si128(rows[i + 12].add(at).cast()));
            }
            let [a, b, c, d] = fours;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                Self(_mm512_unpacklo_epi64(ab, cd)),
                Self(_mm512_unpackhi_epi64(ab, cd)),
                Self(_mm512_unpacklo_epi64(ab_high, cd_high)),
                Self(_mm512_unpackhi_epi64(ab_high, cd_high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn rows4(rows: &Rows, at: usize) -> Self {
        // SAFETY: the caller's: four bytes of each row are there, and the processor has the instructions.
        unsafe {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = fours(rows, at);
            Self(_mm512_setr_epi32(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p))
        }
    }

    #[inline(always)]
    unsafe fn halves(rows: &Rows, at: usize) -> Numbers {
        // SAFETY: the caller's: two bytes of each row are there, and the processor has the instructions.
        unsafe {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = twos(rows, at);
            array16(_mm512_cvtph_ps(_mm256_setr_epi16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)))
        }
    }

    #[inline(always)]
    unsafe fn down(self, n: usize, mask: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let shifted = _mm512_srl_epi16(self.0, _mm_cvtsi32_si128(n as i32));
            Self(_mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8)))
        }
    }

    #[inline(always)]
    unsafe fn up(self, n: usize, mask: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let shifted = _mm512_sll_epi16(self.0, _mm_cvtsi32_si128(n as i32));
            Self(_mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8)))
        }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe { Self(_mm512_or_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[i8; 16]) -> Self {
        // SAFETY: the table has 16 bytes; the caller vouches for the processor.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm512_shuffle_epi8(table, self.0))
        }
    }

    #[inline(always)]
    unsafe fn repeat(self, i: usize) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let first = _mm512_broadcast_i32x4(_mm_setr_epi32(0, FOUR, 2 * FOUR, 3 * FOUR));
            let places = _mm512_add_epi8(first, _mm512_set1_epi8(i as i8));
            Self(_mm512_shuffle_epi8(self.0, places))
        }
    }

    #[inline(always)]
    unsafe fn where_set(self, masks: [u8; 4], value: u8) -> Self {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let set = _mm512_test_epi8_mask(self.0, _mm512_set1_epi32(i32::from_le_bytes(masks)));
            Self(_mm512_maskz_set1_epi8(set, value as i8))
        }
    }

    #[inline(always)]
    unsafe fn numbers(self, i: usize) -> Numbers {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let highest = _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(24 - 8 * i as i32));
            array16(_mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(highest)))
        }
    }

    #[inline(always)]
    unsafe fn signed_numbers(self, i: usize) -> Numbers {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let highest = _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(24 - 8 * i as i32));
            array16(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(highest)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's: there is room for 64 bytes, and the processor has the instructions.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
}
