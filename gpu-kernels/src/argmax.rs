//! The arg-max of rows of logits: what greedy rows of the sampler draw. One block a row would take longer than the head's product;
//! several share it.

use cuda_std::prelude::*;

use crate::sample::{Draw, SAMPLER_THREADS};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{is_last_block, repeat},
    reduce::{self, Max},
    sample::{from_order_key, order_key},
};
#[device]
use cuda_std::memory;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// The most blocks of a row.
pub const MAX_BLOCKS_PER_ROW: u32 = 64;

/// Logits that a thread loads before it compares the first of them.
#[device]
const AHEAD: usize = 4;

/// Writes the id of the best logit, unless that is NaN or infinite.
///
/// # Safety
/// `out` is this thread's.
#[device]
#[inline(always)]
unsafe fn write(best: u64, out: *mut u32) {
    if from_order_key((best >> 32) as u32).is_finite() {
        // SAFETY: the caller's promise.
        unsafe { *out = !(best as u32) }
    }
}

/// The smallest id among the largest logits of each greedy row. Other rows are left alone, and those with a logit that is NaN or infinite, or
/// of which all are -inf.
///
/// There are as many partials a row as blocks.
///
/// Grid `[blocks, num_rows, 1]`, at most [`MAX_BLOCKS_PER_ROW`] blocks a row, block `[BLOCK_SIZE, 1, 1]`. Each block finds the
/// best of every `blocks`-th part of its row; the last one to finish compares those.
///
/// # Safety
/// Grid and block are as above, arrays as [`Draw`] says, and do not overlap.
#[kernel(E = [f32], name = "argmax_{E}_split", max_threads = 256)]
pub unsafe fn split(Draw { vocab_size, rows, logits, partials, counters, out }: Draw) {
    launch_dependents();
    let bests = shared_array![u64; 32];
    let is_last = shared_array![u32; 1];
    let (block, row) = (thread::block_idx_x(), thread::block_idx_y() as usize);
    let blocks = thread::grid_dim_x();
    // SAFETY: every index is below `vocab_size`; each block writes its own partial, and only the last one reads them.
    unsafe {
        wait_for_dependencies();
        if (*rows.add(row)).temperature > 0.0 {
            return;
        }
        let logits = logits.add(row * vocab_size as usize);
        let partials = partials.add(row * blocks as usize);
        let mut best = 0u64;
        let stride = blocks * BLOCK_SIZE;
        let mut first = block * BLOCK_SIZE + thread::thread_idx_x();
        while first < vocab_size {
            let mut values = [f32::NEG_INFINITY; AHEAD];
            repeat(AHEAD, |i| {
                let id = first + i as u32 * stride;
                if id < vocab_size {
                    values[i] = *logits.add(id as usize);
                }
            });
            repeat(AHEAD, |i| {
                let id = first + i as u32 * stride;
                // The larger logit wins, then the smaller id: one comparison of 64-bit integers.
                let candidate = u64::from(order_key(values[i])) << 32 | u64::from(!id);
                if id < vocab_size && candidate > best {
                    best = candidate;
                }
            });
            first += AHEAD as u32 * stride;
        }
        best = reduce::block::<Max, u64>(best, bests, BLOCK_SIZE / 32);
        if thread::thread_idx_x() == 0 {
            memory::store(partials.add(block as usize), best);
        }
        if !is_last_block(counters.add(row), blocks, is_last) {
            return;
        }
        let thread = thread::thread_idx_x();
        // Past L1, which may hold older values.
        let partial =
            if thread < blocks { memory::load_l2(partials.add(thread as usize).cast_const()) } else { 0 };
        // Everybody has read the warps' values.
        thread::sync_threads();
        best = reduce::block::<Max, u64>(partial, bests, BLOCK_SIZE / 32);
        if thread == 0 {
            write(best, out.add(row));
        }
    }
}

/// As [`split`], with one block a row. Grid: `num_rows` blocks of [`SAMPLER_THREADS`].
///
/// # Safety
/// Grid, block and arrays are as above and do not overlap; there need be no `partials` and `counters`.
#[kernel(E = [f32], name = "argmax_{E}_plain", max_threads = 1024)]
pub unsafe fn plain(Draw { vocab_size, rows, logits, out, .. }: Draw) {
    // SAFETY: ids are below `vocab_size`; a block reads its own row and writes its own place of `out`.
    unsafe {
        let row = *rows.add(thread::block_idx_x() as usize);
        let logits = logits.add(thread::block_idx_x() as usize * vocab_size as usize);
        if row.temperature > 0.0 {
            return;
        }
        let thread = thread::thread_idx_x();
        // The larger logit wins, then the smaller id: one comparison of 64-bit integers.
        let mut best = 0u64;
        let mut i = thread;
        while i < vocab_size {
            let candidate = u64::from(order_key(*logits.add(i as usize))) << 32 | u64::from(!i);
            if candidate > best {
                best = candidate;
            }
            i += SAMPLER_THREADS;
        }
        let bests = shared_array![u64; 32];
        best = reduce::block::<Max, u64>(best, bests, SAMPLER_THREADS / 32);
        if thread == 0 {
            write(best, out.add(thread::block_idx_x() as usize));
        }
    }
}
