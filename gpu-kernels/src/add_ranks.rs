//! The sum over ranks.

use cuda_std::prelude::*;

pub use crate::exchange::{BLOCK_SIZE, CHUNK, RESIDENT};
#[device]
use crate::{
    exchange::Exchange,
    grid::{repeat, stride_loop},
    vector::Group,
};

/// Blocks of [`bulk`] that a multiprocessor has room for: the more there are, the less each waits for its chunks to arrive.
pub const RESIDENT_OF_BULK: u32 = 8;

/// `x[i] += Σ part_r[i]` over the ranks `r`, in their order; then `part[i] = 0` for the first `i`.
#[kernel_args]
pub struct AddRanks {
    pub num_ranks: u32,
    /// Of the launch's first row of blocks; further rows are those of the ranks behind it, on the same device.
    pub first_rank: u32,
    /// Values that are added up.
    pub count: u64,
    /// Values of `part` that are set to 0 at least: fewer than `count`, or more.
    pub zeros: u64,
    /// From one rank's values to those of the next one of the launch.
    pub stride: u64,
    /// Words of a slot, at least `count` for kernels that tell words.
    pub room: u64,
    /// Chunks of a slot, at least `count / CHUNK` for those that tell chunks.
    pub chunks: u64,
    /// Nanoseconds that a value is waited for.
    pub limit: u64,
    /// u64 `[num_ranks]`: where the memory of each rank is, u64 `[rank_words(num_ranks, room, chunks)]`
    pub peers: *const u64,
    /// Those of this rank, or of all ranks of the launch: `peers` leads to them, but an emulator knows by this that the launch may touch them.
    pub slots: *mut u64,
    /// u32 `[ranks of the launch, CONTROL_WORDS]`
    pub control: *mut u32,
    /// u32 `[1]`
    pub given_up: *mut u32,
    /// f32 `[max(count, zeros)]` of each rank of the launch
    pub part: *mut f32,
    /// f32 `[count]` of each rank of the launch
    pub x: *mut f32,
}

/// This rank's exchange, its `part` and its `x`; behind the kernel before this one.
///
/// # Safety
/// As for the kernels.
#[device]
#[inline(always)]
unsafe fn begin(a: AddRanks) -> (Exchange, *mut f32, *mut f32) {
    let sizes = [a.room, a.chunks, a.limit];
    // SAFETY: the caller's promise.
    unsafe {
        let (exchange, of_launch) =
            Exchange::begin([a.num_ranks, a.first_rank], sizes, a.peers, a.control, a.given_up);
        let first = of_launch * a.stride as usize;
        (exchange, a.part.add(first), a.x.add(first))
    }
}

/// Grid `[any, ranks of the launch, 1]`, the same on all ranks and no larger than what the device runs at once; block `[BLOCK_SIZE, 1, 1]`.
/// Thread `t` of `T` takes the values `t`, `t + T`, …: it tells all of them, then waits for the others' of the same numbers. Sums are of
/// f32 in the order of the ranks: all ranks have the same bits.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`AddRanks`], all ranks launch it with the same `count`.
#[kernel(E = [f32], name = "add_ranks_{E}_plain", max_threads = 256, min_blocks = 4)]
pub unsafe fn plain(a: AddRanks) {
    // SAFETY: values belong to one thread; the words of slots are those of `count` values.
    unsafe {
        let (exchange, part, x) = begin(a);
        stride_loop(a.count, |i| exchange.tell(i, *part.add(i)));
        let mut is_over = false;
        stride_loop(a.count, |i| {
            let mut sum = 0.0;
            repeat(a.num_ranks as usize, |r| {
                let r = r as u32;
                sum += if r == exchange.rank { *part.add(i) } else { exchange.hear(r, i, &mut is_over) };
            });
            *x.add(i) = sum + *x.add(i);
            if (i as u64) < a.zeros {
                *part.add(i) = 0.0;
            }
        });
        clear_behind(a, part);
        exchange.end(thread::grid_dim_x());
    }
}

/// Many values: a link carries no numbers, and reading what came goes on beside writing what follows.
///
/// Grid and block as for [`plain`]. Block `b` of `B` takes the chunks of [`CHUNK`] values `b`, `b + B`, …: it writes one ahead of the one
/// that it adds up. Sums are those of [`plain`].
///
/// # Safety
/// As for [`plain`]; `count` is a multiple of 4, arrays are aligned to 16 bytes.
#[kernel(E = [f32], name = "add_ranks_{E}_bulk", max_threads = 256, min_blocks = 8)]
pub unsafe fn bulk(a: AddRanks) {
    // SAFETY: values belong to one thread, and so do their places in slots; those of other ranks are read behind their numbers.
    unsafe {
        let (exchange, part, x) = begin(a);
        let chunks = a.count.div_ceil(u64::from(CHUNK)) as usize;
        let (blocks, block) = (thread::grid_dim_x() as usize, thread::block_idx_x() as usize);
        let groups = a.count as usize / 4;
        let mut is_over = false;
        // Of the block's chunks, one beside the other, which is written and which is added up.
        let (mut told, mut heard) = (block, block);
        let mut ahead = 0;
        while heard < chunks {
            if told < chunks {
                for_groups(told, groups, |i| {
                    let values: [f32; 4] = f32::load_group(part.add(i));
                    exchange.for_others(|reader| {
                        f32::store_group(exchange.values(reader, exchange.rank).add(i), values);
                    });
                });
                exchange.tell_chunk(told);
                told += blocks;
            }
            if ahead < AHEAD {
                ahead += 1;
                continue;
            }
            exchange.hear_chunk(heard, &mut is_over);
            for_groups(heard, groups, |i| {
                let mut sum = [0.0; 4];
                repeat(a.num_ranks as usize, |r| {
                    let r = r as u32;
                    let slot = exchange.values(exchange.rank, r).add(i);
                    let from = if r == exchange.rank { part.add(i) } else { slot };
                    let values: [f32; 4] = f32::load_group(from);
                    repeat(4, |j| sum[j] += values[j]);
                });
                let before: [f32; 4] = f32::load_group(x.add(i));
                repeat(4, |j| sum[j] += before[j]);
                f32::store_group(x.add(i), sum);
                if (i as u64) < a.zeros {
                    f32::store_group(part.add(i), [0.0; 4]);
                }
            });
            heard += blocks;
        }
        clear_behind(a, part);
        exchange.end(thread::grid_dim_x());
    }
}

/// Sets what is to be 0 behind the values that are added up.
///
/// # Safety
/// As for the kernels.
#[device]
#[inline(always)]
unsafe fn clear_behind(a: AddRanks, part: *mut f32) {
    // SAFETY: values belong to one thread.
    stride_loop(a.zeros.saturating_sub(a.count), |i| unsafe { *part.add(a.count as usize + i) = 0.0 });
}

/// Chunks that a block writes ahead of the one that it adds up. More of them are slower: between two H200s 29 MB take 104 µs with one, 108
/// with two, 124 with eight.
#[device]
const AHEAD: usize = 1;

/// Calls `body` with the first value of each of this thread's groups of four in a chunk, of `groups` in all.
#[device]
#[inline(always)]
fn for_groups(chunk: usize, groups: usize, mut body: impl FnMut(usize)) {
    repeat((CHUNK / (4 * BLOCK_SIZE)) as usize, |round| {
        let of_chunk = round * BLOCK_SIZE as usize + thread::thread_idx_x() as usize;
        let group = chunk * (CHUNK / 4) as usize + of_chunk;
        if group < groups {
            body(4 * group);
        }
    });
}
