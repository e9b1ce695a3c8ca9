//! Tiles of K and V in shared memory: their layout, and the copies that fill them.
//!
//! Pages of floats are copied some stages ahead. Those of eight bits have one stage, and as they lie in memory wait behind it: each
//! thread copies words of its own there, one tile ahead, and decodes them itself, once nobody uses the tile before any more.

use cuda_std::prelude::*;

#[device]
use super::{
    formats::{Pages, q8_0, q8_0_bytes, scale_of},
    prefill_mma::{MMA_BLOCK_SIZE, MMA_KEYS, mma_stages},
};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::async_copy;

/// Pages of a tile.
#[device]
pub const TILE_PAGES: usize = (MMA_KEYS / crate::PAGE_SIZE) as usize;

/// This lane's view of the stages in shared memory.
#[device]
#[derive(Clone, Copy)]
pub struct Stages<const HEAD_DIM: usize> {
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

    /// The tile of K in a stage; that of V is behind it.
    #[inline(always)]
    pub(super) fn keys(self, stage: u32) -> Shared<[u32; 4]> {
        self.words.add(stage * 2 * Self::TILE)
    }

    /// Where this thread's word `i` of a page of eight bits waits: of K (0) or of V (1).
    #[inline(always)]
    fn waiting(self, of: usize, page: usize, i: usize) -> Shared<[u32; 4]> {
        let place = (of * TILE_PAGES + page) * rounds(HEAD_DIM) + i;
        self.words.add(2 * Self::TILE + place as u32 * MMA_BLOCK_SIZE + thread::thread_idx_x())
    }

    /// [`Source::copy`] of floats.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn copy<E>(self, stage: u32, k: [*const E; TILE_PAGES], v: [*const E; TILE_PAGES], keys: u32) {
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

/// How pages become tiles.
#[device]
pub trait Source<const HEAD_DIM: usize>: Copy + 'static {
    /// Whether words wait to be decoded.
    const DECODES: bool;
    /// Stages.
    const COUNT: u32;
    /// 16-byte words of shared memory, all in all.
    const WORDS: u32;
    /// What a thread keeps of its words in registers until it decodes them.
    type Held: Copy;
    const NOTHING: Self::Held;

    /// How far into the pages the value is before which there are as many.
    fn place(values: usize) -> usize;

    /// Starts copying the pages at `k` and `v` to a stage, or to where they wait, of whose tile the sequence has the first `keys` keys;
    /// the threads of the block share the work.
    ///
    /// # Safety
    /// `k` and `v` lead to `keys` rows, page by page, aligned to 16 bytes; nobody uses the stage.
    unsafe fn copy(
        stages: Stages<HEAD_DIM>,
        stage: u32,
        k: [*const Self; TILE_PAGES],
        v: [*const Self; TILE_PAGES],
        keys: u32,
    ) -> Self::Held;

    /// Decodes to the stage what this thread has copied last.
    ///
    /// # Safety
    /// Its copies are complete; nobody uses the stage.
    unsafe fn decode(stages: Stages<HEAD_DIM>, held: Self::Held);
}

macro_rules! floats {
    ($($element:ident),*) => { $(
        #[device]
        impl<const HEAD_DIM: usize> Source<HEAD_DIM> for $element {
            const DECODES: bool = false;
            const COUNT: u32 = mma_stages(HEAD_DIM as u32);
            const WORDS: u32 = mma_stages(HEAD_DIM as u32) * 2 * Stages::<HEAD_DIM>::TILE;
            type Held = ();
            const NOTHING: () = ();

            #[inline(always)]
            fn place(values: usize) -> usize {
                values
            }

            #[inline(always)]
            unsafe fn copy(
                stages: Stages<HEAD_DIM>,
                stage: u32,
                k: [*const $element; TILE_PAGES],
                v: [*const $element; TILE_PAGES],
                keys: u32,
            ) {
                // SAFETY: the caller's promise.
                unsafe { stages.copy(stage, k, v, keys) }
            }

            #[inline(always)]
            unsafe fn decode(_: Stages<HEAD_DIM>, (): ()) {}
        }
    )* };
}
floats!(f16, bf16);

/// Times that a block's threads take a word each of the integers of a page: at most 2.
#[device]
const fn rounds(head_dim: usize) -> usize {
    crate::PAGE_SIZE as usize * head_dim / 16 / MMA_BLOCK_SIZE as usize
}

#[device]
impl<const HEAD_DIM: usize> Source<HEAD_DIM> for q8_0 {
    const DECODES: bool = true;
    const COUNT: u32 = 1;
    const WORDS: u32 = 3 * Stages::<HEAD_DIM>::TILE;
    /// Of K and of V, for each page: the scales of its words, two in each.
    type Held = [[u32; TILE_PAGES]; 2];
    const NOTHING: Self::Held = [[0; TILE_PAGES]; 2];

    #[inline(always)]
    fn place(values: usize) -> usize {
        q8_0_bytes(values)
    }

    #[inline(always)]
    unsafe fn copy(
        stages: Stages<HEAD_DIM>,
        _: u32,
        k: [*const q8_0; TILE_PAGES],
        v: [*const q8_0; TILE_PAGES],
        keys: u32,
    ) -> Self::Held {
        const { assert!(rounds(HEAD_DIM) >= 1 && rounds(HEAD_DIM) <= 2) }
        let thread = thread::thread_idx_x();
        let mut held = <Self as Source<HEAD_DIM>>::NOTHING;
        repeat(TILE_PAGES, |page| {
            repeat(rounds(HEAD_DIM), |i| {
                let word = thread + i as u32 * MMA_BLOCK_SIZE;
                let key = page as u32 * crate::PAGE_SIZE + word / (HEAD_DIM as u32 / 16);
                let is_there = key < keys;
                let bytes = if is_there { 16 } else { 0 };
                repeat(2, |of| {
                    let head = if of == 0 { k[page] } else { v[page] }.cast::<u8>();
                    let waiting = stages.waiting(of, page, i);
                    // SAFETY: inside the page, whose rows from `keys` on are not read; each word has one thread.
                    unsafe {
                        async_copy::copy_16_or_zero(waiting, head.wrapping_add(16 * word as usize), bytes);
                        // What is not there becomes 0: zeros times no NaN.
                        if is_there {
                            held[of][page] |= u32::from(scale_of(head, HEAD_DIM, word / 2)) << (16 * i);
                        }
                    }
                });
            });
        });
        held
    }

    #[inline(always)]
    unsafe fn decode(stages: Stages<HEAD_DIM>, held: Self::Held) {
        let row_words = Stages::<HEAD_DIM>::ROW;
        repeat(2, |of| {
            let tile = stages.keys(0).add(of as u32 * Stages::<HEAD_DIM>::TILE);
            repeat(TILE_PAGES, |page| {
                repeat(rounds(HEAD_DIM), |i| {
                    let word = thread::thread_idx_x() + i as u32 * MMA_BLOCK_SIZE;
                    let (row, column) = (word / (row_words / 2), word % (row_words / 2));
                    let row_of_tile = tile.add((page as u32 * crate::PAGE_SIZE + row) * row_words);
                    let scale = (held[of][page] >> (16 * i)) as u16;
                    // SAFETY: the thread's own word, and places in the tile that are its alone.
                    unsafe {
                        let codes = stages.waiting(of, page, i).get(0);
                        repeat(2, |half| {
                            let words = q8_0::words(([codes[2 * half], codes[2 * half + 1]], scale));
                            row_of_tile.set((2 * column + half as u32) ^ (row % 8), words);
                        });
                    }
                });
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
