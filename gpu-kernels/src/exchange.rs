//! How ranks, each a device, tell each other f32 values: every rank writes its own into the memory of all others, and each reads what
//! came. No rank asks another for anything, so that a value takes one way over the link.
//!
//! Few values travel as words of 8 bytes, a value and the number of the exchange that it belongs to, which are written and read in one
//! piece: who reads that number has the value, and needs no flag, no fence and no order of other accesses (as in NCCL's LL protocol).
//! Many travel in chunks, whose numbers come behind them: half the bytes, but a fence a chunk.
//!
//! A rank's memory has two sets of slots, which exchanges use in turn: exchange `s + 2` begins on a rank when it has all of exchange
//! `s + 1`, so that all others have begun that, and have read all of exchange `s`.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{is_last_block, repeat},
};
#[device]
use cuda_std::atomic::{AtomicWord, Ordering, Scope};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Blocks of a kernel that a multiprocessor has room for, at least.
pub const RESIDENT: u32 = 4;
/// Words of [`Exchange::control`] of a rank: the number of its next exchange, 1 at first, then a counter of blocks, 0 between launches; on
/// cache lines of their own.
pub const CONTROL_WORDS: u32 = 64;
/// Values of a chunk.
pub const CHUNK: u32 = 1024;

/// Words of 8 bytes that are a rank's memory. It has two sets of slots, one for each rank that writes, thrice: `room` words a slot; then u32
/// for the numbers of `chunks` chunks; then f32 for their values. Words and values do not share memory: what a value left behind would
/// look like the number of a word some day.
pub const fn rank_words(num_ranks: usize, room: usize, chunks: usize) -> usize {
    first_value(num_ranks, room, chunks) + num_ranks * chunks * CHUNK as usize
}

/// The word of a rank's memory that values begin at: even, so that they are aligned to 16 bytes.
const fn first_value(num_ranks: usize, room: usize, chunks: usize) -> usize {
    (2 * num_ranks * room + num_ranks * chunks).next_multiple_of(2)
}

/// Where the counter is.
#[device]
const COUNTER: usize = 32;

/// How often a slot is looked at before a look at the clock.
#[device]
const LOOKS: u32 = 1024;

/// What a rank knows of an exchange.
#[device]
#[derive(Clone, Copy)]
pub struct Exchange {
    pub num_ranks: u32,
    pub rank: u32,
    /// Words of a slot, and chunks of one.
    pub room: u64,
    pub chunks: u64,
    /// Nanoseconds that a value is waited for.
    pub limit: u64,
    /// Addresses of the ranks' memory, [`rank_words`] each.
    pub peers: *const u64,
    /// Of this rank.
    pub control: *mut u32,
    /// Of all ranks, in memory that all of them and the host reach: not 0 once a wait was given up.
    pub given_up: *mut u32,
    /// The number of this exchange.
    number: u32,
}

#[device]
impl Exchange {
    /// The next exchange of this block's rank, behind the kernel before this one; and which of the launch's ranks that is. `ranks` is how many
    /// there are and which is the launch's first; `control` is of all of the launch.
    ///
    /// # Safety
    /// The pointers lead to what the fields say.
    #[inline(always)]
    pub unsafe fn begin(
        [num_ranks, first_rank]: [u32; 2],
        [room, chunks, limit]: [u64; 3],
        peers: *const u64,
        control: *mut u32,
        given_up: *mut u32,
    ) -> (Self, usize) {
        // Behind it all blocks run, so that the next kernel's weights may come meanwhile.
        launch_dependents();
        wait_for_dependencies();
        let of_launch = thread::block_idx_y();
        let rank = first_rank + of_launch;
        // SAFETY: the caller's promise.
        unsafe {
            let control = control.add((of_launch * CONTROL_WORDS) as usize);
            let number = u32::load(control, Ordering::Relaxed, Scope::Device);
            let exchange = Self { num_ranks, rank, room, chunks, limit, peers, control, given_up, number };
            (exchange, of_launch as usize)
        }
    }

    /// The memory of `reader`, and which of its slots `writer` writes in this exchange.
    ///
    /// # Safety
    /// Both are ranks.
    #[inline(always)]
    unsafe fn place(&self, reader: u32, writer: u32) -> (*mut u64, usize) {
        let slot = (self.number & 1) * self.num_ranks + writer;
        // SAFETY: the caller's promise.
        (unsafe { *self.peers.add(reader as usize) } as *mut u64, slot as usize)
    }

    /// Word `i` that `writer` writes for `reader`.
    ///
    /// # Safety
    /// Both are ranks, `i` is below `room`.
    #[inline(always)]
    unsafe fn word(&self, reader: u32, writer: u32, i: usize) -> *mut u64 {
        // SAFETY: the caller's promise.
        unsafe {
            let (memory, slot) = self.place(reader, writer);
            memory.add(slot * self.room as usize + i)
        }
    }

    /// Where the number of chunk `chunk` is that `writer` writes for `reader`.
    ///
    /// # Safety
    /// Both are ranks, the chunk is one of the slot's.
    #[inline(always)]
    unsafe fn number_of(&self, reader: u32, writer: u32, chunk: usize) -> *mut u32 {
        // SAFETY: the caller's promise.
        unsafe {
            let (memory, slot) = self.place(reader, writer);
            let numbers = memory.add(2 * self.num_ranks as usize * self.room as usize).cast::<u32>();
            numbers.add(slot * self.chunks as usize + chunk)
        }
    }

    /// The values of chunks that `writer` writes for `reader`, aligned to 16 bytes.
    ///
    /// # Safety
    /// Both are ranks.
    #[inline(always)]
    pub unsafe fn values(&self, reader: u32, writer: u32) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let (memory, slot) = self.place(reader, writer);
            let first = first_value(self.num_ranks as usize, self.room as usize, self.chunks as usize);
            memory.add(first).cast::<f32>().add(slot * self.chunks as usize * CHUNK as usize)
        }
    }

    /// Calls `body` with every other rank.
    #[inline(always)]
    pub fn for_others(&self, mut body: impl FnMut(u32)) {
        repeat(self.num_ranks as usize, |rank| {
            if rank as u32 != self.rank {
                body(rank as u32);
            }
        });
    }

    /// Tells the other ranks that chunk `chunk` is in their slots.
    ///
    /// # Safety
    /// All threads of the block call it together, when they have written it.
    #[inline(always)]
    pub unsafe fn tell_chunk(&self, chunk: usize) {
        thread::sync_threads();
        let reader = thread::thread_idx_x();
        if reader < self.num_ranks && reader != self.rank {
            // SAFETY: the caller's promise.
            unsafe {
                let place = self.number_of(reader, self.rank, chunk);
                u32::store(place, self.number, Ordering::Release, Scope::System);
            }
        }
    }

    /// Waits until chunk `chunk` of all other ranks is in this one's slots; `is_over` as for [`Exchange::hear`].
    ///
    /// # Safety
    /// All threads of the block call it together; all ranks tell the chunk in this exchange.
    #[inline(always)]
    pub unsafe fn hear_chunk(&self, chunk: usize, is_over: &mut bool) {
        let writer = thread::thread_idx_x();
        if writer < self.num_ranks && writer != self.rank {
            // SAFETY: the caller's promise.
            unsafe {
                let place = self.number_of(self.rank, writer, chunk);
                self.wait(writer, is_over, || {
                    (u32::load(place, Ordering::Acquire, Scope::System) == self.number).then_some(())
                });
            }
        }
        thread::sync_threads();
    }

    /// Tells all other ranks value `i` of this one.
    ///
    /// # Safety
    /// `i` is below `room`; one thread calls it once for each.
    #[inline(always)]
    pub unsafe fn tell(&self, i: usize, value: f32) {
        let word = u64::from(self.number) << 32 | u64::from(value.to_bits());
        // SAFETY: the caller's promise.
        self.for_others(|reader| unsafe {
            u64::store(self.word(reader, self.rank, i), word, Ordering::Relaxed, Scope::System);
        });
    }

    /// Waits for value `i` of another rank. Whether waiting was given up, then and for all that is asked for later, is in `is_over`; the
    /// value means nothing then.
    ///
    /// # Safety
    /// `i` is below `room`, and `writer` tells it in this exchange.
    #[inline(always)]
    pub unsafe fn hear(&self, writer: u32, i: usize, is_over: &mut bool) -> f32 {
        // SAFETY: the caller's promise; a live word of this rank's slots.
        let value = unsafe {
            let place = self.word(self.rank, writer, i);
            self.wait(writer, is_over, || {
                let word = u64::load(place, Ordering::Relaxed, Scope::System);
                ((word >> 32) as u32 == self.number).then_some(word as u32)
            })
        };
        f32::from_bits(value.unwrap_or(0))
    }

    /// Looks until something is there that `writer` writes; `None` if waiting is over.
    ///
    /// # Safety
    /// The pointers lead to what the fields say.
    #[inline(always)]
    unsafe fn wait<T>(&self, writer: u32, is_over: &mut bool, look: impl Fn() -> Option<T>) -> Option<T> {
        let (mut looks, mut begin) = (0, 0);
        loop {
            let found = look();
            if found.is_some() || *is_over {
                return found;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                // SAFETY: the caller's promise.
                *is_over = unsafe { self.is_over(writer, &mut begin) };
            }
        }
    }

    /// Whether waiting for `writer` is given up: by somebody, or now, since it has taken too long since `begin`, 0 at first.
    ///
    /// # Safety
    /// The pointer leads to a live word.
    unsafe fn is_over(&self, writer: u32, begin: &mut u64) -> bool {
        let now = thread::globaltimer();
        if *begin == 0 {
            *begin = now;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if u32::load(self.given_up, Ordering::Relaxed, Scope::System) != 0 {
                return true;
            }
            let is_late = now - *begin > self.limit;
            if is_late {
                let who = 1 + self.rank * self.num_ranks + writer;
                u32::store(self.given_up, who, Ordering::Relaxed, Scope::System);
            }
            is_late
        }
    }

    /// Ends the exchange on this rank, whose launch has `blocks` blocks.
    ///
    /// # Safety
    /// All threads of each of them call it together, behind everything else.
    #[inline(always)]
    pub unsafe fn end(&self, blocks: u32) {
        // SAFETY: the counter is 0 between launches; all blocks have read the number when the last one comes.
        unsafe {
            let is_last = is_last_block(self.control.add(COUNTER), blocks, shared_array![u32; 1]);
            if is_last && thread::thread_idx_x() == 0 {
                // 0 is what slots have that were never written; sets go on taking turns.
                let next = if self.number == u32::MAX { 2 } else { self.number + 1 };
                u32::store(self.control, next, Ordering::Relaxed, Scope::Device);
            }
        }
    }
}
