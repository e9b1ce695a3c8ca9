//! How threads find their elements, loops, and which block ends last.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    atomic::{AtomicAdd, Ordering, Scope},
    memory,
};

/// Calls `body` with every index below `count` that belongs to this thread, for any one-dimensional grid: thread `t`
/// of `T` takes `t`, `t + T`, `t + 2T`, …
#[device]
#[inline(always)]
pub fn stride_loop(count: u64, mut body: impl FnMut(usize)) {
    let stride = u64::from(thread::grid_dim_x()) * u64::from(thread::block_dim_x());
    let mut index = u64::from(thread::block_idx_x()) * u64::from(thread::block_dim_x())
        + u64::from(thread::thread_idx_x());
    while index < count {
        body(index as usize);
        index += stride;
    }
}

/// The row and column of this thread in a matrix of `cols` columns, where the grid is `[rows, ceil(cols / block)]`
/// and the block one-dimensional; `None` for threads right of the last column.
#[device]
#[inline(always)]
pub fn row_and_column(cols: u32) -> Option<(u32, u32)> {
    let column = thread::block_idx_y() * thread::block_dim_x() + thread::thread_idx_x();
    (column < cols).then_some((thread::block_idx_x(), column))
}

/// The offset of element (`row`, `column`) in a row-major matrix of `cols` columns.
#[device]
#[inline(always)]
pub fn offset(row: u32, cols: u32, column: u32) -> usize {
    row as usize * cols as usize + column as usize
}

/// Calls `body` with 0, 1, …, `count` - 1. With a constant `count` the loop is unrolled and arrays indexed by it stay
/// in registers; `for` loops and iterator chains do not get there, since device code is compiled without the pass
/// that would resolve their `Option`s (MIR's jump threading, see `cuda_std`), and end in local memory.
#[device]
#[inline(always)]
pub fn repeat(count: usize, mut body: impl FnMut(usize)) {
    let mut i = 0;
    while i < count {
        body(i);
        i += 1;
    }
}

/// `a / b` and `a % b` without the branch to a panic; 0 and `a` where `b` is 0, which no kernel's contract allows.
#[device]
#[inline(always)]
pub fn divide(a: u32, b: u32) -> (u32, u32) {
    let quotient = a.checked_div(b).unwrap_or(0);
    (quotient, a - quotient * b)
}

/// Whether this block is the last of `count` to come here; what the others wrote before is then visible to it. Leaves the
/// counter at 0.
///
/// # Safety
/// All threads of the block call it together; `counter` was 0 before the first of the blocks, `shared` has one value that
/// nobody else uses.
#[device]
#[inline(always)]
pub unsafe fn is_last_block(counter: *mut u32, count: u32, shared: Shared<u32>) -> bool {
    // SAFETY: one thread touches the counter; the barriers order it against the others' writes and reads.
    unsafe {
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            let before = u32::fetch_add(counter, 1, Ordering::AcqRel, Scope::Device);
            let is_last = before + 1 == count;
            if is_last {
                memory::store(counter, 0);
            }
            shared.set(0, is_last.into());
        }
        thread::sync_threads();
        shared.get(0) != 0
    }
}
