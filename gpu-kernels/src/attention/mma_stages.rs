//! Tiles of K and V in shared memory: their layout, and the copies that fill them.

use cuda_std::prelude::*;

#[device]
use super::prefill_mma::{MMA_BLOCK_SIZE, MMA_KEYS, mma_stages};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::async_copy;

/// Pages of a tile.
#[device]
pub(super) const TILE_PAGES: usize = (MMA_KEYS / crate::PAGE_SIZE) as usize;

/// This lane's view of the stages in shared memory.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Stages<const HEAD_DIM: usize> {
    /// Stages, each a tile of K and one of V.
    pub(super) words: Shared<[u32; 4]>,
}

#[device]
impl<const HEAD_DIM: usize> Stages<HEAD_DIM> {
    /// 16-byte words of a row.
    pub(super) const ROW: u32 = HEAD_DIM as u32 / 8;
    /// Of a tile of K or of V.
    pub(super) const TILE: u32 = MMA_KEYS * Self::ROW;
    /// Of a page.
    const PAGE: u32 = crate::PAGE_SIZE * Self::ROW;
    /// How many there are.
    pub(super) const COUNT: u32 = mma_stages(HEAD_DIM as u32);

    /// The tile of K in a stage; that of V is behind it.
    #[inline(always)]
    pub(super) fn keys(self, stage: u32) -> Shared<[u32; 4]> {
        self.words.add(stage * 2 * Self::TILE)
    }

    /// Starts copying the pages at `k` and `v` to a stage, of whose tile the sequence has the first `keys` keys; the threads of
    /// the block share the work.
    ///
    /// # Safety
    /// `k` and `v` lead to `keys` rows, page by page, aligned to 16 bytes; nobody uses the stage.
    #[inline(always)]
    pub(super) unsafe fn copy<E>(
        self,
        stage: u32,
        k: [*const E; TILE_PAGES],
        v: [*const E; TILE_PAGES],
        keys: u32,
    ) {
        let thread = thread::thread_idx_x();
        let (row, column) = (thread / Self::ROW, thread % Self::ROW);
        let rows_at_once = const { MMA_BLOCK_SIZE / Self::ROW };
        // Rows of one thread are 8 apart, whose columns are swapped alike, or 4: then every other one's are the other half of 8.
        const { assert!((MMA_BLOCK_SIZE / Self::ROW).is_multiple_of(4)) }
        let is_half = const { !(MMA_BLOCK_SIZE / Self::ROW).is_multiple_of(8) };
        let to = self.keys(stage).add(row * Self::ROW);
        let swapped = column ^ (row % 8);
        repeat(TILE_PAGES, |page| {
            repeat((Self::PAGE / MMA_BLOCK_SIZE) as usize, |i| {
                let word = i as u32 * MMA_BLOCK_SIZE;
                let key = page as u32 * crate::PAGE_SIZE + row + i as u32 * rows_at_once;
                let bytes = if key < keys { 16 } else { 0 };
                let column = if is_half && i % 2 == 1 { swapped ^ 4 } else { swapped };
                let to = to.add(page as u32 * Self::PAGE + word + column);
                let from = (thread + word) as usize * 8;
                // SAFETY: inside the page, whose rows from `keys` on are not read; each word has one thread.
                unsafe {
                    async_copy::copy_16_or_zero(to, k[page].wrapping_add(from), bytes);
                    async_copy::copy_16_or_zero(to.add(Self::TILE), v[page].wrapping_add(from), bytes);
                }
            });
        });
    }
}

/// The word `2 i` columns right of one of the first two of a row: its place exclusive-or `2 i`. Stages are aligned to 8 words, so
/// the address is.
#[device]
#[inline(always)]
pub(super) fn column_pair(word: Shared<[u32; 4]>, i: u32) -> Shared<[u32; 4]> {
    Shared::<[u32; 4]>::from_address(word.address() ^ (i % 4 * 2 * 16)).add(i / 4 * 8)
}
