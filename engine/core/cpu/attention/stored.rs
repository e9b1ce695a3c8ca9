//! How attention uses values of a page, each format's where they lie.

use crate::cpu::simd::{Element, LANES, Lanes};
use crate::kv_format::{BLOCK_BYTES, BLOCK_VALUES};

/// Sums that are under way together.
pub(super) const AT_ONCE: usize = 4;

/// Runs `$body` with the type `$stored` that stands for `$format`.
macro_rules! with_stored {
    ($format:expr, $stored:ident => $body:expr) => {
        match $format {
            $crate::kv_format::KvFormat::Float(dtype) => $crate::cpu::simd::with_element!(dtype, $stored => $body),
            $crate::kv_format::KvFormat::Q8_0 => {
                type $stored = $crate::cpu::attention::stored::Blocks;
                $body
            }
        }
    };
}
pub(super) use with_stored;

/// How values of a format are used where they lie.
///
/// # Safety
/// All functions: the processor has the instructions of `L`, slices are as long as they say.
#[allow(clippy::missing_safety_doc, reason = "one contract, stated above, for all of them")]
pub(super) trait Stored {
    /// The products of `q` and `k`, both `[head_dim]`, added up lane by lane as far as lanes are whole.
    unsafe fn lanes<L: Lanes>(q: &[f32], k: &[u8]) -> L;

    /// Adds the other products to `sum`.
    #[inline(always)]
    unsafe fn add_rest(_sum: &mut f32, _q: &[f32], _k: &[u8]) {}

    /// `q · k`.
    #[inline(always)]
    unsafe fn dot<L: Lanes>(q: &[f32], k: &[u8]) -> f32 {
        // SAFETY: the caller's.
        unsafe {
            let mut sum = Self::lanes::<L>(q, k).sum();
            Self::add_rest(&mut sum, q, k);
            sum
        }
    }

    /// [`Stored::dot`] of several keys, whose sums are under way together.
    #[inline(always)]
    unsafe fn dots<L: Lanes>(q: &[f32], keys: [&[u8]; AT_ONCE]) -> [f32; AT_ONCE] {
        let [a, b, c, d] = keys;
        // SAFETY: the caller's.
        unsafe {
            let mut sums =
                L::sum4([Self::lanes(q, a), Self::lanes(q, b), Self::lanes(q, c), Self::lanes(q, d)]);
            for (sum, key) in sums.iter_mut().zip(keys) {
                Self::add_rest(sum, q, key);
            }
            sums
        }
    }

    /// `out = out * rescale + Σ weights[t] * v[t]`, with `v` `[weights.len(), head_dim]` and `out` `[head_dim]`.
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]);
}

impl<E: Element> Stored for E {
    #[inline(always)]
    unsafe fn lanes<L: Lanes>(q: &[f32], k: &[u8]) -> L {
        let whole = q.len() / LANES * LANES;
        // SAFETY: i + 16 <= head_dim; k has as many values as q.
        unsafe {
            let mut sums = L::splat(0.0);
            for i in (0..whole).step_by(LANES) {
                let q = L::load_f32(q.as_ptr().add(i).cast());
                sums = q.mul_add(E::load(k.as_ptr().add(i * E::SIZE)), sums);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn add_rest(sum: &mut f32, q: &[f32], k: &[u8]) {
        let whole = q.len() / LANES * LANES;
        for (i, q) in q.iter().enumerate().skip(whole) {
            // SAFETY: k has as many values as q.
            *sum += q * unsafe { E::get(k.as_ptr().add(i * E::SIZE)) };
        }
    }

    #[inline(always)]
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]) {
        let head_dim = out.len();
        let whole = head_dim / LANES * LANES;
        let fours = whole / (AT_ONCE * LANES) * (AT_ONCE * LANES);
        // SAFETY: i + 16 <= head_dim; v has weights.len() rows of head_dim values.
        unsafe {
            for i in (0..fours).step_by(AT_ONCE * LANES) {
                add_lanes::<L, E, AT_ONCE>(weights, v, rescale, out, i);
            }
            for i in (fours..whole).step_by(LANES) {
                add_lanes::<L, E, 1>(weights, v, rescale, out, i);
            }
            for (i, out) in out.iter_mut().enumerate().skip(whole) {
                *out *= rescale;
                for (t, weight) in weights.iter().enumerate() {
                    *out += weight * E::get(v.as_ptr().add((t * head_dim + i) * E::SIZE));
                }
            }
        }
    }
}

/// [`Stored::add_weighted`] of values `i` to `i + 16 * N`: `N` sums are under way together.
///
/// # Safety
/// They are there, and the processor has the instructions of `L`.
#[inline(always)]
unsafe fn add_lanes<L: Lanes, E: Element, const N: usize>(
    weights: &[f32],
    v: &[u8],
    rescale: f32,
    out: &mut [f32],
    i: usize,
) {
    let head_dim = out.len();
    // SAFETY: the caller's; v has weights.len() rows of head_dim values.
    unsafe {
        let (to, from) = (out.as_mut_ptr().add(i), v.as_ptr().add(i * E::SIZE));
        let mut sums = [L::splat(0.0); N];
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = L::load_f32(to.add(j * LANES).cast()).mul_add(L::splat(rescale), *sum);
        }
        for (t, &weight) in weights.iter().enumerate() {
            let weight = L::splat(weight);
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = E::load::<L>(from.add((t * head_dim + j * LANES) * E::SIZE)).mul_add(weight, *sum);
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            sum.store(to.add(j * LANES));
        }
    }
}

/// [`KvFormat::Q8_0`]: blocks of [`BLOCK_VALUES`] values, twice [`LANES`].
pub(super) struct Blocks;

const _: () = assert!(BLOCK_VALUES == 2 * LANES);

/// The scale of a block, to f32 without a call.
#[inline(always)]
fn scale_of(block: &[u8]) -> f32 {
    const TO_F32: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes([block[0], block[1]]));
    // Not negative; the exponent of all ones is that of NaN.
    if bits & 0x7c00 == 0x7c00 { f32::NAN } else { f32::from_bits(bits << 13) * TO_F32 }
}

impl Stored for Blocks {
    #[inline(always)]
    unsafe fn lanes<L: Lanes>(q: &[f32], k: &[u8]) -> L {
        let (q, k) = (q.as_chunks::<BLOCK_VALUES>().0, k.as_chunks::<BLOCK_BYTES>().0);
        // SAFETY: a block has 32 values behind its scale.
        unsafe {
            let mut sums = L::splat(0.0);
            for (q, block) in q.iter().zip(k) {
                let (q, codes) = (q.as_ptr(), block.as_ptr().add(2));
                let low = L::load_f32(q.cast()).mul(L::load_i8(codes));
                let both = L::load_f32(q.add(LANES).cast()).mul_add(L::load_i8(codes.add(LANES)), low);
                sums = both.mul_add(L::splat(scale_of(block)), sums);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn add_weighted<L: Lanes>(weights: &[f32], v: &[u8], rescale: f32, out: &mut [f32]) {
        let blocks = out.len() / BLOCK_VALUES;
        let v = v.as_chunks::<BLOCK_BYTES>().0;
        // SAFETY: a block has 32 values behind its scale, and there are as many of `out`.
        unsafe {
            for (i, out) in out.as_chunks_mut::<BLOCK_VALUES>().0.iter_mut().enumerate() {
                let (to, rescale) = (out.as_mut_ptr(), L::splat(rescale));
                let mut low = L::load_f32(to.cast()).mul(rescale);
                let mut high = L::load_f32(to.add(LANES).cast()).mul(rescale);
                for (block, &weight) in v.iter().skip(i).step_by(blocks).zip(weights) {
                    let (weight, codes) = (L::splat(weight * scale_of(block)), block.as_ptr().add(2));
                    low = L::load_i8(codes).mul_add(weight, low);
                    high = L::load_i8(codes.add(LANES)).mul_add(weight, high);
                }
                low.store(to);
                high.store(to.add(LANES));
            }
        }
    }
}
