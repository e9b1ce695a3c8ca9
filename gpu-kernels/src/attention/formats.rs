//! Formats of pages and of results, for the kernels that take several.
//!
//! # Pages of eight bits
//! What a page holds of a head is `[PAGE_SIZE, head_dim]` integers and behind them `[PAGE_SIZE, head_dim / 32]` scales, f16: 34 bytes for 32
//! values, as in a file's Q8_0, but so that both are aligned to what loads take at once.

use cuda_std::prelude::*;

#[device]
use super::Attention;
#[device]
use crate::{
    PAGE_SIZE, bias_rope_kv,
    grid::repeat,
    quantise_kv,
    vector::{Group, load_words},
};
#[device]
use cuda_std::memory;

/// Numbers of formats in arguments: f32.
pub const F32: u32 = 0;
/// f16.
pub const F16: u32 = 1;
/// bf16.
pub const BF16: u32 = 2;
/// Eight bits in blocks.
pub const Q8_0: u32 = 3;

/// No format.
pub const NONE: u32 = u32::MAX;

/// Values of a block of [`Q8_0`].
pub const BLOCK_VALUES: u32 = 32;

/// Bytes of `values` values of [`Q8_0`], whole blocks.
pub const fn q8_0_bytes(values: usize) -> usize {
    values / BLOCK_VALUES as usize * 34
}

/// The largest magnitude that [`Q8_0`] is given: 127 times a scale that f16 has, so that every value, rounded to f16, is finite.
pub const LARGEST: f32 = 127.0 * 512.0;

/// A byte of a page of [`Q8_0`].
#[device]
#[allow(non_camel_case_types)] // As in the names of kernels.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct q8_0(u8);

/// Where the scale of block `block` is, counted through the rows of a head of a page that begins at `head`.
///
/// # Safety
/// As for [`scale_of`].
#[device]
#[inline(always)]
unsafe fn scale_at(head: *const u8, head_dim: usize, block: u32) -> *const u16 {
    // SAFETY: behind the integers.
    unsafe { head.add(PAGE_SIZE as usize * head_dim).cast::<u16>().add(block as usize) }
}

/// The bits of the scale of block `block`, counted through the rows of a head of a page that begins at `head`.
///
/// # Safety
/// `head` leads to a head of a page, aligned to 2 bytes, of `head_dim` values, with this block.
#[device]
#[inline(always)]
pub(super) unsafe fn scale_of(head: *const u8, head_dim: usize, block: u32) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { scale_at(head, head_dim, block).read() }
}

/// Four integers of eight bits times the scale with the bits `scale`, exactly, without the slow conversion of integers: with its highest bit turned a byte `u` is
/// `code + 128`, and in the mantissa of 2^15 it is `2^15 + u`.
#[device]
#[inline(always)]
pub(super) fn scaled(codes: u32, scale: u16) -> [f32; 4] {
    let scale = <f16 as Element>::to_f32(f16::from_bits(scale));
    // Of twenty bits.
    let back = -(32_896.0 * scale);
    let codes = codes ^ 0x8080_8080;
    let value = |bits: u32| f32::from_bits(0x4700_0000 | bits & 0xff00).mul_add(scale, back);
    [value(codes << 8), value(codes), value(codes >> 8), value(codes >> 16)]
}

/// Pages whose values tensor cores multiply as f16.
#[device]
pub trait Pages: Copy + 'static {
    /// Eight neighbouring values of a key or value in registers, as they were loaded.
    type Eight: Copy;
    /// Any.
    const EMPTY: Self::Eight;

    /// How far into the pages the value is before which there are as many.
    fn place(values: usize) -> usize;

    /// Loads values `8 i ..` of the rows of a head of a page; with `NEWEST` past L1, which may have what was there before them, if their
    /// neighbours were loaded already.
    ///
    /// # Safety
    /// `head` leads to the head, aligned to 16 bytes, whose row with these values is written.
    unsafe fn load<const HEAD_DIM: usize, const NEWEST: bool>(head: *const Self, i: usize) -> Self::Eight;

    /// Stores the newest row of K and of V of a sequence, which is left beside the pages, if the arguments say so. Of key-value head
    /// `head` of row `row` of the batch; `first` is how many values are in the pages before its head of the page, `place` its row there.
    ///
    /// # Safety
    /// All threads of a block of eight warps call it together; the kernel before this one has ended, rows and pages are there.
    unsafe fn store_newest<const HEAD_DIM: usize>(
        a: &Attention<Self>,
        row: u32,
        head: u32,
        first: usize,
        place: u32,
    );

    /// Them as f16, each rounded to nearest.
    fn words(eight: Self::Eight) -> [u32; 4];
}

#[device]
impl Pages for f16 {
    type Eight = [u32; 4];
    const EMPTY: [u32; 4] = [0; 4];

    #[inline(always)]
    fn place(values: usize) -> usize {
        values
    }

    #[inline(always)]
    unsafe fn load<const HEAD_DIM: usize, const NEWEST: bool>(head: *const f16, i: usize) -> [u32; 4] {
        // Rows share no line of L1.
        // SAFETY: the caller's promise.
        unsafe { load_words(head.add(i * 8)) }
    }

    #[inline(always)]
    unsafe fn store_newest<const HEAD_DIM: usize>(_: &Attention<f16>, _: u32, _: u32, _: usize, _: u32) {}

    #[inline(always)]
    fn words(eight: [u32; 4]) -> [u32; 4] {
        eight
    }
}

#[device]
impl Pages for q8_0 {
    type Eight = ([u32; 2], u16);
    const EMPTY: ([u32; 2], u16) = ([0; 2], 0);

    #[inline(always)]
    fn place(values: usize) -> usize {
        q8_0_bytes(values)
    }

    #[inline(always)]
    unsafe fn load<const HEAD_DIM: usize, const NEWEST: bool>(
        head: *const q8_0,
        i: usize,
    ) -> ([u32; 2], u16) {
        let head = head.cast::<u8>();
        // SAFETY: the caller's promise.
        unsafe {
            let codes = head.add(8 * i).cast::<u64>();
            let scale = scale_at(head, HEAD_DIM, (i / 4) as u32);
            let (codes, scale) = if NEWEST {
                (memory::load_l2(codes), memory::load_l2(scale))
            } else {
                (codes.read(), scale.read())
            };
            ([codes as u32, (codes >> 32) as u32], scale)
        }
    }

    #[inline(always)]
    unsafe fn store_newest<const HEAD_DIM: usize>(
        a: &Attention<q8_0>,
        row: u32,
        head: u32,
        first: usize,
        place: u32,
    ) {
        if a.new_format == NONE {
            return;
        }
        let blocks = (HEAD_DIM / 32) as u32;
        let (block, warp) = (warp::warp_id() % blocks, warp::warp_id());
        // The same for the whole warp.
        if warp < 2 * blocks {
            let is_v = warp >= blocks;
            let (new, pages) = if is_v { (a.v_new, a.v_pages) } else { (a.k_new, a.k_pages) };
            let from = bias_rope_kv::place(row, head, a.num_key_value_heads, HEAD_DIM as u32);
            let from = from + (32 * block + warp::lane_id()) as usize;
            let at = place as usize * HEAD_DIM + 32 * block as usize;
            // SAFETY: the caller's promise. Past L1, as all that the kernel before has written.
            unsafe {
                let value = match a.new_format {
                    F32 => memory::load_l2(new.cast::<f32>().add(from)),
                    F16 => <f16 as Element>::to_f32(memory::load_l2(new.cast::<f16>().add(from))),
                    _ => <bf16 as Element>::to_f32(memory::load_l2(new.cast::<bf16>().add(from))),
                };
                quantise_kv::store(pages.cast_mut().cast(), Q8_0, first, at, HEAD_DIM as u32, value);
            }
        }
        thread::sync_threads();
    }

    #[inline(always)]
    fn words((codes, scale): ([u32; 2], u16)) -> [u32; 4] {
        let mut words = [0; 4];
        repeat(2, |i| {
            let [a, b, c, d] = scaled(codes[i], scale);
            words[2 * i] = f16::pack2(a, b);
            words[2 * i + 1] = f16::pack2(c, d);
        });
        words
    }
}

/// Where results go.
#[device]
pub trait Output<const N: usize>: Copy {
    /// Stores values `at ..`.
    ///
    /// # Safety
    /// They are in the array, aligned to their size together, 16 bytes at most.
    unsafe fn store(self, at: usize, values: [f32; N]);
}

#[device]
impl<E: Group<N>, const N: usize> Output<N> for *mut E {
    #[inline(always)]
    unsafe fn store(self, at: usize, values: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { E::store_group(self.add(at), values) }
    }
}

/// An array of floats whose format is one of the numbers of this module.
#[device]
#[derive(Clone, Copy)]
pub struct AnyFloats {
    pub to: *mut u8,
    pub format: u32,
}

#[device]
impl<const N: usize> Output<N> for AnyFloats
where
    f32: Group<N>,
    f16: Group<N>,
    bf16: Group<N>,
{
    #[inline(always)]
    unsafe fn store(self, at: usize, values: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.format {
                F32 => f32::store_group(self.to.cast::<f32>().add(at), values),
                F16 => f16::store_group(self.to.cast::<f16>().add(at), values),
                _ => bf16::store_group(self.to.cast::<bf16>().add(at), values),
            }
        }
    }
}

/// `N` neighbouring integers of eight bits that move in one access.
#[device]
pub trait Codes<const N: usize> {
    type Word: Bits;

    /// They times the scale with the bits `scale`, exactly.
    fn times(word: Self::Word, scale: u16) -> [f32; N];
}

macro_rules! codes {
    ($($n:literal $word:ty;)*) => { $(
        #[device]
        impl Codes<$n> for q8_0 {
            type Word = $word;

            #[inline(always)]
            fn times(word: $word, scale: u16) -> [f32; $n] {
                let mut values = [0.0; $n];
                repeat($n, |i| values[i] = scaled((u64::from(word) >> (32 * (i / 4))) as u32, scale)[i % 4]);
                values
            }
        }
    )* };
}
codes! { 1 u8; 2 u16; 4 u32; 8 u64; }
