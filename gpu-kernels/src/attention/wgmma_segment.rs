//! The queries of one sequence that a block has, of the kernels of [`prefill_wgmma`](super::prefill_wgmma): who copies, who multiplies.

use cuda_std::prelude::*;

#[device]
use super::{
    formats::Output,
    mma_segment::{Segment, query_words},
    mma_softmax::{Queries, Scores},
    mma_stages::{Source, TILE_PAGES},
    prefill_wgmma::{WGMMA_KEYS, WGMMA_STAGES, wgmma_tile_bytes},
};
#[device]
use crate::{PAGE_SIZE, grid::repeat, stage::Stage};
#[device]
use cuda_std::{
    async_copy,
    mbarrier::{self, Mbarrier},
    mma::MmaElement,
    tensor_map::TensorMap,
    wgmma::{Descriptor, WgmmaElement, packed},
};

/// 16-byte words of a tile of 64 keys by 64 dimensions.
#[device]
const HALF: u32 = WGMMA_KEYS * 8;

/// The barrier of the threads that copy; those below are of turns.
#[device]
const COPIERS: u32 = 8;

/// Stages in shared memory, each a step's keys, then its values; then their barriers.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Pipeline<const HEAD_DIM: usize> {
    tiles: Shared<[u32; 4]>,
    barriers: Shared<u64>,
}

/// What a barrier is about.
#[device]
#[derive(Clone, Copy)]
enum Of {
    Keys = 0,
    Values = 1,
}

#[device]
impl<const HEAD_DIM: usize> Pipeline<HEAD_DIM> {
    const TILE: u32 = wgmma_tile_bytes(HEAD_DIM as u32) / 16;

    /// # Safety
    /// All threads of the block call it together, with the number of warpgroups that multiply; shared memory is as the kernels say.
    #[inline(always)]
    pub(super) unsafe fn start(groups: u32) -> Self {
        let base = (dynamic_shared::<u8>().address() + 1023) & !1023;
        let tiles = Shared::<[u32; 4]>::from_address(base);
        let barriers = Shared::from_address(base + WGMMA_STAGES * 2 * 16 * Self::TILE);
        let pipeline = Self { tiles, barriers };
        // SAFETY: nobody uses them yet.
        unsafe {
            if thread::thread_idx_x() == 0 {
                repeat(WGMMA_STAGES as usize, |stage| {
                    pipeline.full(Of::Keys, stage as u32).init(1);
                    pipeline.full(Of::Values, stage as u32).init(1);
                    pipeline.empty(Of::Keys, stage as u32).init(4 * groups);
                    pipeline.empty(Of::Values, stage as u32).init(4 * groups);
                });
                mbarrier::fence_init();
            }
        }
        thread::sync_threads();
        pipeline
    }

    /// The tile of a stage is there: its bytes, and a thread that copies has said how many.
    #[inline(always)]
    fn full(self, of: Of, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add((2 * of as u32) * WGMMA_STAGES + stage))
    }

    /// Nobody reads the tile of a stage any more: each warp that multiplies says so.
    #[inline(always)]
    fn empty(self, of: Of, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add((2 * of as u32 + 1) * WGMMA_STAGES + stage))
    }

    #[inline(always)]
    fn tile(self, of: Of, stage: u32) -> Shared<[u32; 4]> {
        self.tiles.add((2 * stage + of as u32) * Self::TILE)
    }

    /// For the warpgroup that copies, with maps of the pages of K and of V.
    #[inline(always)]
    pub(super) fn copier(self, maps: [*const TensorMap; 2]) -> Copier<HEAD_DIM> {
        Copier { pipeline: self, maps, at: Stage::FIRST }
    }

    /// For warpgroup `warpgroup` of `groups` that multiply, the first of which is 1.
    ///
    /// # Safety
    /// All threads of the warpgroup call it together, once.
    #[inline(always)]
    pub(super) unsafe fn reader(self, warpgroup: u32, groups: u32) -> Reader<HEAD_DIM> {
        if warpgroup == groups {
            // The first turn is the first's.
            // SAFETY: nobody has come to it.
            unsafe { thread::arrive_named(1, 256) }
        }
        Reader {
            pipeline: self,
            at: Stage::FIRST,
            warpgroup,
            next: if warpgroup == groups { 1 } else { warpgroup + 1 },
        }
    }
}

/// The copying warpgroup's way through the stages.
#[device]
pub(super) struct Copier<const HEAD_DIM: usize> {
    pipeline: Pipeline<HEAD_DIM>,
    maps: [*const TensorMap; 2],
    at: Stage<WGMMA_STAGES>,
}

#[device]
impl<const HEAD_DIM: usize> Copier<HEAD_DIM> {
    /// 16-byte words of a row.
    const ROW: u32 = HEAD_DIM as u32 / 8;

    /// Starts to copy a tile, box by box; rows that no key is in are copied as they are.
    ///
    /// # Safety
    /// One thread calls it; nobody uses the stage; `rows` are where the pages of a sequence begin.
    #[inline(always)]
    unsafe fn copy_boxes(&self, of: Of, rows: [u32; TILE_PAGES]) {
        let (tile, full) = (self.pipeline.tile(of, self.at.stage), self.pipeline.full(of, self.at.stage));
        // SAFETY: the caller's promise.
        unsafe {
            full.arrive_expect_tx(const { wgmma_tile_bytes(HEAD_DIM as u32) });
            repeat(TILE_PAGES, |page| {
                repeat(HEAD_DIM / 64, |part| {
                    let to = tile.add(part as u32 * HALF + page as u32 * (PAGE_SIZE * 8));
                    async_copy::tensor_copy(to, self.maps[of as usize], [64 * part as u32, rows[page]], full);
                });
            });
        }
    }

    /// Copies this thread's words of 64 rows from two pages to a tile, of which `keys` rows are there.
    ///
    /// # Safety
    /// Nobody uses the tile; the pages are readable and aligned to 16 bytes.
    #[inline(always)]
    unsafe fn copy<E>(tile: Shared<[u32; 4]>, pages: [*const E; TILE_PAGES], keys: u32) {
        let thread = thread::thread_idx_x();
        let (row, column) = (thread / Self::ROW, thread % Self::ROW);
        // A thread's rows are 16 apart, or 8, so that their columns are swapped alike.
        let rows_at_once = const { 128 / Self::ROW };
        let to = tile.add(column / 8 * HALF + row * 8 + ((column % 8) ^ (row % 8)));
        let times = const { PAGE_SIZE as usize * HEAD_DIM / 8 / 128 };
        repeat(TILE_PAGES, |page| {
            repeat(times, |i| {
                let key = PAGE_SIZE * page as u32 + row + rows_at_once * i as u32;
                let bytes = if key < keys { 16 } else { 0 };
                let to = to.add((PAGE_SIZE * page as u32 + rows_at_once * i as u32) * 8);
                let from = pages[page].wrapping_add((thread as usize + 128 * i) * 8);
                // SAFETY: inside the page, whose rows from `keys` on are not read; each word has one thread.
                unsafe { async_copy::copy_16_or_zero(to, from, bytes) }
            });
        });
    }
}

/// The way through the stages of a warpgroup that multiplies.
#[device]
pub(super) struct Reader<const HEAD_DIM: usize> {
    pipeline: Pipeline<HEAD_DIM>,
    at: Stage<WGMMA_STAGES>,
    warpgroup: u32,
    /// Whose turn it is next.
    next: u32,
}

#[device]
impl<const HEAD_DIM: usize> Reader<HEAD_DIM> {
    /// Waits for a tile.
    ///
    /// # Safety
    /// All threads of the warpgroup call it together; the stage is the next.
    #[inline(always)]
    unsafe fn wait(&self, of: Of, at: Stage<WGMMA_STAGES>) {
        // SAFETY: the barrier's phase is the current one or the one before.
        unsafe { self.pipeline.full(of, at.stage).wait(at.parity) }
    }

    /// This warp reads a tile no more.
    ///
    /// # Safety
    /// It has waited for its products.
    #[inline(always)]
    unsafe fn release(&self, of: Of, stage: u32) {
        // SAFETY: once a warp and phase.
        unsafe { self.pipeline.empty(of, stage).arrive_if(warp::lane_id() == 0) }
    }
}

#[device]
impl<E: MmaElement + Source<HEAD_DIM>, O: Output<2>, const HEAD_DIM: usize> Segment<E, E, O, HEAD_DIM> {
    /// Copies the keys and values of all steps, as stages become free.
    ///
    /// # Safety
    /// As for the kernels; all threads of the warpgroup that copies call it together.
    #[inline(always)]
    pub(super) unsafe fn copy_steps(&self, copier: &mut Copier<HEAD_DIM>) {
        // The last row sees the most keys.
        let all_keys = self.num_keys(self.stop - 1);
        // SAFETY: pages of the sequence hold the keys that its rows see; a stage is written when it is empty.
        unsafe {
            let mut pages = self.pages(0, all_keys);
            let mut first_key = 0;
            while first_key < all_keys {
                let [_, v] = self.page_starts(pages);
                let mut rows = [0; TILE_PAGES];
                repeat(TILE_PAGES, |i| {
                    rows[i] = (pages[i] * self.num_key_value_heads + self.key_value_head) * PAGE_SIZE;
                });
                // Loaded a step before they are needed.
                pages = self.pages(first_key + WGMMA_KEYS, all_keys);
                let keys = all_keys - first_key;
                let Copier { pipeline, at, .. } = *copier;
                pipeline.empty(Of::Keys, at.stage).wait(at.parity ^ 1);
                pipeline.empty(Of::Values, at.stage).wait(at.parity ^ 1);
                if thread::thread_idx_x() == 0 {
                    copier.copy_boxes(Of::Keys, rows);
                    if keys >= WGMMA_KEYS {
                        copier.copy_boxes(Of::Values, rows);
                    }
                }
                if keys < WGMMA_KEYS {
                    // What weighs 0 must not be NaN: rows behind the last key become zeros.
                    Copier::<HEAD_DIM>::copy(pipeline.tile(Of::Values, at.stage), v, keys);
                    async_copy::wait_all();
                    async_copy::fence_proxy_async_shared();
                    thread::sync_named(COPIERS, 128);
                    pipeline.full(Of::Values, at.stage).arrive_if(thread::thread_idx_x() == 0);
                }
                copier.at = at.next();
                first_key += WGMMA_KEYS;
            }
        }
    }

    /// The queries from `first` on that the warpgroup has.
    ///
    /// # Safety
    /// As for the kernels; all threads of the warpgroup call it together. `SUMS` is half of `HEAD_DIM`, `N` an eighth, `PARTS` a 64th.
    #[inline(always)]
    pub(super) unsafe fn attend_steps<const SUMS: usize, const N: usize, const PARTS: usize>(
        &self,
        reader: &mut Reader<HEAD_DIM>,
        first: u32,
    ) where
        E: WgmmaElement<32> + WgmmaElement<SUMS>,
    {
        const { assert!(2 * SUMS == HEAD_DIM && 8 * N == HEAD_DIM && 64 * PARTS == HEAD_DIM) }
        let Reader { pipeline, warpgroup, next, .. } = *reader;
        let warp_first = first + 64 * (warpgroup - 1) + 16 * (warp::warp_id() % 4);
        let all_keys = self.num_keys(self.stop - 1);
        // Keys that the warp's last query sees. Each query before it sees one key less at most.
        let warp_keys =
            if warp_first < self.stop { self.num_keys((warp_first + 16).min(self.stop) - 1) } else { 0 };
        // SAFETY: queries below `stop` are rows of the batch. A tile is read between the barrier that says it is there and the one that says it is
        // free, sums behind the wait for them.
        unsafe {
            let mut queries = [[0; 16]; PARTS];
            let rows = self.query_rows(warp_first);
            repeat(PARTS, |part| {
                repeat(4, |i| {
                    let words = query_words::<E, HEAD_DIM>(rows, 4 * part + i);
                    repeat(4, |word| queries[part][4 * i + word] = words[word]);
                });
            });
            let scores = |s: &mut [f32; 32], stage: u32| {
                let tile = pipeline.tile(Of::Keys, stage);
                E::multiply_first(s, queries[0], Descriptor::k_major(tile));
                if PARTS == 2 {
                    E::multiply_registers(s, queries[PARTS - 1], Descriptor::k_major(tile.add(HALF)), true);
                }
            };
            // The output is apart: `wgmma` wants its sums in a row.
            let mut state = Queries::<0>::EMPTY;
            let (mut s, mut out) = ([0.0; 32], [0.0; SUMS]);
            let mut step_key = 0;
            // Scores become weights, which are rounded later: factors of a product are not made while another is under way. Returns what the output
            // must be scaled with.
            let mut weigh = |s: &mut [f32; 32], state: &mut Queries<0>| {
                let scores = &mut *(&raw mut *s).cast::<Scores<8>>();
                if step_key + WGMMA_KEYS + 16 > warp_keys {
                    self.mask(scores, step_key, warp_first);
                }
                step_key += WGMMA_KEYS;
                let shrink = state.refer(scores);
                state.shrink(shrink);
                repeat(4, |i| {
                    let [left, right] = state.powers(scores, i);
                    (scores[2 * i], scores[2 * i + 1]) = (left, right);
                });
                shrink
            };

            let mut at = reader.at;
            reader.wait(Of::Keys, at);
            scores(&mut s, at.stage);
            <E as WgmmaElement<32>>::wait::<0>(&mut s);
            reader.release(Of::Keys, at.stage);
            weigh(&mut s, &mut state);
            let mut weights = packed::<E, 32>(&s, 0);
            let mut last = at;
            at = at.next();
            let mut first_key = WGMMA_KEYS;
            while first_key < all_keys {
                reader.wait(Of::Keys, at);
                thread::sync_named(warpgroup, 256);
                scores(&mut s, at.stage);
                reader.wait(Of::Values, last);
                let values = Descriptor::n_major(pipeline.tile(Of::Values, last.stage), HALF * 16);
                <E as WgmmaElement<SUMS>>::multiply_transposed(&mut out, weights, values);
                thread::arrive_named(next, 256);
                <E as WgmmaElement<32>>::wait::<1>(&mut s);
                reader.release(Of::Keys, at.stage);
                let shrink = weigh(&mut s, &mut state);
                <E as WgmmaElement<SUMS>>::wait::<0>(&mut out);
                reader.release(Of::Values, last.stage);
                if warp::warp_vote_any(warp::FULL_MASK, shrink[0] != 1.0 || shrink[1] != 1.0) {
                    repeat(SUMS, |i| out[i] *= shrink[i / 2 % 2]);
                }
                weights = packed::<E, 32>(&s, 0);
                (last, at) = (at, at.next());
                first_key += WGMMA_KEYS;
            }
            reader.wait(Of::Values, last);
            let values = Descriptor::n_major(pipeline.tile(Of::Values, last.stage), HALF * 16);
            <E as WgmmaElement<SUMS>>::multiply_transposed(&mut out, weights, values);
            <E as WgmmaElement<SUMS>>::wait::<0>(&mut out);
            reader.release(Of::Values, last.stage);
            reader.at = at;
            if warp_first < self.stop {
                let acc = core::mem::transmute_copy::<[f32; SUMS], [[f32; 4]; N]>(&out);
                self.store(warp_first, &Queries { reference: state.reference, sum: state.sum, acc });
            }
        }
    }
}
