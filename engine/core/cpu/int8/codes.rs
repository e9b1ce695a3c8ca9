//! Codes of eight rows of a matrix in one register, and the operations that blocks of formats are unpacked with.

use std::array::from_fn;

/// Where the same place in each of eight rows is.
pub(in crate::cpu) type Rows = [*const u8; 8];

/// Four neighbouring bytes of each of eight rows, those of row `r` at `4r`.
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
    unsafe fn halves(rows: &Rows, at: usize) -> [f32; 8];
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
    unsafe fn numbers(self, i: usize) -> [f32; 8];
    /// Byte `i` of each row as a signed number.
    unsafe fn signed_numbers(self, i: usize) -> [f32; 8];
    /// Writes all 32 bytes.
    unsafe fn store(self, to: *mut u8);
}

/// [`Codes`] without vector instructions of a processor's own.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bytes32([u8; 32]);

impl Bytes32 {
    #[inline(always)]
    fn map(self, f: impl Fn(u8) -> u8) -> Self {
        Self(self.0.map(f))
    }
}

impl Codes for Bytes32 {
    #[inline(always)]
    unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: the caller's.
        from_fn(|i| unsafe { Self::rows4(rows, at + 4 * i) })
    }

    #[inline(always)]
    unsafe fn rows4(rows: &Rows, at: usize) -> Self {
        let mut bytes = [0; 32];
        for (bytes, row) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            // SAFETY: the caller's; an array of bytes needs no alignment.
            *bytes = unsafe { *row.add(at).cast::<[u8; 4]>() };
        }
        Self(bytes)
    }

    #[inline(always)]
    unsafe fn halves(rows: &Rows, at: usize) -> [f32; 8] {
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
    unsafe fn numbers(self, i: usize) -> [f32; 8] {
        from_fn(|row| f32::from(self.0[4 * row + i]))
    }

    #[inline(always)]
    unsafe fn signed_numbers(self, i: usize) -> [f32; 8] {
        from_fn(|row| f32::from(self.0[4 * row + i] as i8))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's; an array of bytes needs no alignment.
        unsafe { *to.cast::<[u8; 32]>() = self.0 }
    }
}

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod x86 {
    use super::{Codes, Rows};
    use std::arch::x86_64::*;

    /// [`Codes`] in AVX2.
    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Ymm(__m256i);

    #[inline(always)]
    unsafe fn array(v: __m256) -> [f32; 8] {
        let mut values = [0.0; 8];
        // SAFETY: there is room for eight; the caller vouches for the processor.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), v) };
        values
    }

    /// Of each row of four bytes: byte `i` of it in the last of them, zeros before.
    #[inline(always)]
    unsafe fn highest(v: __m256i, i: usize) -> __m256i {
        // SAFETY: the caller vouches for the processor; there is no memory in it.
        unsafe {
            let bits = _mm_cvtsi32_si128(24 - 8 * i as i32);
            _mm256_sll_epi32(v, bits)
        }
    }

    impl Codes for Ymm {
        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: any address may be prefetched; the caller vouches for the processor.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }

        /// The transpose of eight rows of four words.
        #[inline(always)]
        unsafe fn rows16(rows: &Rows, at: usize) -> [Self; 4] {
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
                    Self(_mm256_unpacklo_epi64(ab, cd)),
                    Self(_mm256_unpackhi_epi64(ab, cd)),
                    Self(_mm256_unpacklo_epi64(ab_high, cd_high)),
                    Self(_mm256_unpackhi_epi64(ab_high, cd_high)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn rows4(rows: &Rows, at: usize) -> Self {
            // SAFETY: the caller's: four bytes of each row are there, and the processor has the instructions.
            unsafe {
                let [a, b, c, d, e, f, g, h] = rows.map(|row| row.add(at).cast::<i32>().read_unaligned());
                Self(_mm256_setr_epi32(a, b, c, d, e, f, g, h))
            }
        }

        #[inline(always)]
        unsafe fn halves(rows: &Rows, at: usize) -> [f32; 8] {
            // SAFETY: the caller's: two bytes of each row are there, and the processor has the instructions.
            unsafe {
                let [a, b, c, d, e, f, g, h] = rows.map(|row| row.add(at).cast::<i16>().read_unaligned());
                array(_mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h)))
            }
        }

        #[inline(always)]
        unsafe fn down(self, n: usize, mask: u8) -> Self {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe {
                let shifted = _mm256_srl_epi16(self.0, _mm_cvtsi32_si128(n as i32));
                Self(_mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8)))
            }
        }

        #[inline(always)]
        unsafe fn up(self, n: usize, mask: u8) -> Self {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe {
                let shifted = _mm256_sll_epi16(self.0, _mm_cvtsi32_si128(n as i32));
                Self(_mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8)))
            }
        }

        #[inline(always)]
        unsafe fn or(self, other: Self) -> Self {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe { Self(_mm256_or_si256(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn lookup(self, table: &[i8; 16]) -> Self {
            // SAFETY: the table has 16 bytes; the caller vouches for the processor.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                Self(_mm256_shuffle_epi8(table, self.0))
            }
        }

        #[inline(always)]
        unsafe fn repeat(self, i: usize) -> Self {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe {
                let first = _mm256_setr_epi32(0, FOUR, 2 * FOUR, 3 * FOUR, 0, FOUR, 2 * FOUR, 3 * FOUR);
                let places = _mm256_add_epi8(first, _mm256_set1_epi8(i as i8));
                Self(_mm256_shuffle_epi8(self.0, places))
            }
        }

        #[inline(always)]
        unsafe fn where_set(self, masks: [u8; 4], value: u8) -> Self {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe {
                let masked = _mm256_and_si256(self.0, _mm256_set1_epi32(i32::from_le_bytes(masks)));
                let unset = _mm256_cmpeq_epi8(masked, _mm256_setzero_si256());
                Self(_mm256_andnot_si256(unset, _mm256_set1_epi8(value as i8)))
            }
        }

        #[inline(always)]
        unsafe fn numbers(self, i: usize) -> [f32; 8] {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe { array(_mm256_cvtepi32_ps(_mm256_srli_epi32::<24>(highest(self.0, i)))) }
        }

        #[inline(always)]
        unsafe fn signed_numbers(self, i: usize) -> [f32; 8] {
            // SAFETY: the caller vouches for the processor; there is no memory in it.
            unsafe { array(_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(highest(self.0, i)))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the caller's: there is room for 32 bytes, and the processor has the instructions.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) }
        }
    }

    /// The place 4 in each byte.
    const FOUR: i32 = 0x0404_0404;
}
