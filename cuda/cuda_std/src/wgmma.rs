//! Matrix products of a warpgroup on tensor cores (`wgmma`), which read their factors from shared memory. sm_90a.
//!
//! A warpgroup is four warps in a row, the first a multiple of four. A product takes 64 rows of A, 64 of the common dimension and `2 N` columns of B: each
//! thread has `N` of its sums, an array `[f32; N]` that must stay in registers. It is asynchronous: the sums are there after a
//! [`wait`](WgmmaElement::wait) that covers it, and until then nobody touches them nor writes the tiles.
//!
//! Route on the device: `asm!`, a block of instructions for each product: fence, four of 16 of the common dimension each, commit.
//!
//! # Where things lie
//! - Sums: of columns `8 j ..`, lane `l` of warp `w` has `d[4 j ..]` = `[row][pair]`, `[row][pair + 1]`, `[row + 8][pair]`, `[row + 8][pair + 1]` with
//!   `row = 16 (w % 4) + l / 4` and `pair = 2 (l % 4)`: those of [`mma`](crate::mma), one warp's 16 rows below the other's.
//! - A in registers likewise: `a[4 k ..]` is `a` of `mma_m16n8k16` for columns `16 k ..`. So sums of one product, packed in pairs, are A of the next
//!   ([`packed`]).
//! - Tiles in shared memory: see [`Descriptor`].
//!
//! # Contract of all products and waits
//! All threads of the warpgroup call them together, in the same order, with the same descriptors. Tiles are in shared memory, whole; what ordinary stores or `cp.async` wrote
//! there is followed by a [`fence_proxy_async_shared`](crate::async_copy::fence_proxy_async_shared): the writer's, before the barrier that makes it known, or behind that barrier one of each thread
//! of the warpgroup.
//! A in registers stays there until a wait covers the product. The compiler sees to that between products that follow each other, but not where a loop with a single
//! product goes round: the next A would come to the same registers, so such a loop waits for all, or has two products (found on an H200; the emulator has A from the start).
//! Nobody writes a tile before each of the four warps has waited for the products that read it. Sums are touched by nothing between a product and its wait, but by further
//! products.
//!
//! Facts beyond NVIDIA's PTX ISA ("Asynchronous Warpgroup Level Matrix Instructions") were measured on an H200.

use crate::shared::Shared;
use crate::{Bits, PackedElement};

/// Where a tile is: rows of 128 bytes, whose 16-byte words lie at their column exclusive-or the row modulo 8 (`CU_TENSOR_MAP_SWIZZLE_128B`).
/// A tile begins at a multiple of 1,024 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub(crate) u64);

impl Descriptor {
    /// A tile whose rows are rows of A or columns of B, with 64 of the common dimension each.
    #[inline(always)]
    #[must_use]
    pub fn k_major<T: Bits>(tile: Shared<T>) -> Self {
        Self::new(tile.address(), 16)
    }

    /// A tile of B whose rows are the 64 of the common dimension, with 64 columns each; the next 64 columns begin `leading` bytes behind.
    #[inline(always)]
    #[must_use]
    pub fn n_major<T: Bits>(tile: Shared<T>, leading: u32) -> Self {
        Self::new(tile.address(), leading)
    }

    /// The high word: swizzled by 128 bytes, and from 8 rows to the next 8 it is always 1,024 bytes.
    pub(crate) const HIGH: u32 = 1 << 30 | 1024 >> 4;

    #[inline(always)]
    fn new(address: u32, leading: u32) -> Self {
        let field = |bytes: u32| (bytes & 0x3_FFFF) >> 4;
        Self((field(address) | field(leading) << 16) as u64 | (Self::HIGH as u64) << 32)
    }
}

/// Factors of this type, with `N` sums a thread: 32, 64 or 128, for 64, 128 or 256 columns; of f16 8 or 16 as well.
pub trait WgmmaElement<const N: usize>: PackedElement {
    /// `d = a · b`, and `d += a · b` where `accumulate`; both [K-major](Descriptor::k_major).
    ///
    /// # Safety
    /// As the [module](self) says.
    unsafe fn multiply(d: &mut [f32; N], a: Descriptor, b: Descriptor, accumulate: bool);

    /// `d = a · b`, A in registers, B [K-major](Descriptor::k_major); what was in `d` does not count.
    ///
    /// # Safety
    /// As the [module](self) says.
    unsafe fn multiply_first(d: &mut [f32; N], a: [u32; 16], b: Descriptor);

    /// `d = a · b`, or `d += a · b` where `accumulate`, A in registers, B [K-major](Descriptor::k_major).
    ///
    /// # Safety
    /// As the [module](self) says.
    unsafe fn multiply_registers(d: &mut [f32; N], a: [u32; 16], b: Descriptor, accumulate: bool);

    /// `d += a · b`, A in registers, B [N-major](Descriptor::n_major).
    ///
    /// # Safety
    /// As the [module](self) says.
    unsafe fn multiply_transposed(d: &mut [f32; N], a: [u32; 16], b: Descriptor);

    /// Waits until at most `PENDING` of the warpgroup's products are under way, counted from the last one; those that are must not be ones that add to `d`,
    /// unless nobody reads it yet. Of several arrays each is waited for.
    ///
    /// # Safety
    /// As the [module](self) says.
    unsafe fn wait<const PENDING: u32>(d: &mut [f32; N]);
}

/// Sums of columns `64 part ..` as A of a product.
#[inline(always)]
#[must_use]
pub fn packed<E: PackedElement, const N: usize>(d: &[f32; N], part: usize) -> [u32; 16] {
    let mut a = [0; 16];
    let mut i = 0;
    while i < 16 {
        a[i] = E::pack2(d[32 * part + 2 * i], d[32 * part + 2 * i + 1]);
        i += 1;
    }
    a
}

pub use crate::target::wgmma::{decrease_registers, increase_registers};
