//! How ranks, each a device, tell each other f32 values: every rank writes its own into the memory of all others, and each reads what
//! came. No rank asks another for anything, so that a value takes one way over the link.
//!
//! A value travels with the number of the exchange that it belongs to in one word of 8 bytes, which is written and read in one piece:
//! who reads that number has the value, and needs no flag, no fence and no order of other accesses (NCCL's LL protocol). A rank's
//! memory has two sets of slots, which exchanges use in turn: exchange `s + 2` begins on a rank when it has all of exchange `s + 1`, so
//! that all others have begun that, and have read all of exchange `s`.

use cuda_std::prelude::*;

#[device]
use crate::grid::{is_last_block, repeat};
#[device]
use cuda_std::atomic::{AtomicWord, Ordering, Scope};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Words of [`Exchange::control`] of a rank: the number of its next exchange, 1 at first, then a counter of blocks, 0 between launches; on
/// cache lines of their own.
pub const CONTROL_WORDS: u32 = 64;
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
    /// Words of a slot.
    pub room: u64,
    /// Nanoseconds that a value is waited for.
    pub limit: u64,
    /// Addresses of the ranks' slots, `[2, num_ranks, room]` words each: of both sets, one for each rank that writes.
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
    /// The next exchange of rank `rank`.
    ///
    /// # Safety
    /// The pointers lead to what the fields say.
    #[inline(always)]
    pub unsafe fn new(
        [num_ranks, rank]: [u32; 2],
        [room, limit]: [u64; 2],
        peers: *const u64,
        control: *mut u32,
        given_up: *mut u32,
    ) -> Self {
        // SAFETY: the caller's promise.
        let number = unsafe { u32::load(control, Ordering::Relaxed, Scope::Device) };
        Self { num_ranks, rank, room, limit, peers, control, given_up, number }
    }

    /// Word `i` that `writer` writes for `reader`.
    ///
    /// # Safety
    /// Both are ranks, `i` is below `room`.
    #[inline(always)]
    unsafe fn word(&self, reader: u32, writer: u32, i: usize) -> *mut u64 {
        // SAFETY: the caller's promise.
        unsafe {
            let slots = *self.peers.add(reader as usize) as *mut u64;
            let slot = (self.number & 1) * self.num_ranks + writer;
            slots.add(slot as usize * self.room as usize + i)
        }
    }

    /// Tells all other ranks value `i` of this one.
    ///
    /// # Safety
    /// `i` is below `room`; one thread calls it once for each.
    #[inline(always)]
    pub unsafe fn tell(&self, i: usize, value: f32) {
        let word = u64::from(self.number) << 32 | u64::from(value.to_bits());
        repeat(self.num_ranks as usize, |reader| {
            if reader as u32 != self.rank {
                // SAFETY: the caller's promise.
                unsafe {
                    let place = self.word(reader as u32, self.rank, i);
                    u64::store(place, word, Ordering::Relaxed, Scope::System);
                }
            }
        });
    }

    /// Waits for value `i` of another rank. Whether waiting was given up, then and for all that is asked for later, is in `is_over`; the
    /// value means nothing then.
    ///
    /// # Safety
    /// `i` is below `room`, and `writer` tells it in this exchange.
    #[inline(always)]
    pub unsafe fn hear(&self, writer: u32, i: usize, is_over: &mut bool) -> f32 {
        // SAFETY: the caller's promise.
        let place = unsafe { self.word(self.rank, writer, i) };
        let (mut looks, mut begin) = (0, 0);
        loop {
            // SAFETY: a live word of this rank's slots.
            let word = unsafe { u64::load(place, Ordering::Relaxed, Scope::System) };
            if (word >> 32) as u32 == self.number || *is_over {
                return f32::from_bits(word as u32);
            }
            looks += 1;
            if looks % LOOKS == 0 {
                // SAFETY: the pointer leads to a live word.
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
