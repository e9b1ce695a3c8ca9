//! How threads find their elements.

use cuda_std::prelude::*;

/// Calls `body` with every index below `count` that belongs to this thread, for any one-dimensional grid: thread `t`
/// of `T` takes `t`, `t + T`, `t + 2T`, …
#[device]
#[inline(always)]
pub fn stride_loop(count: u64, body: impl Fn(usize)) {
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
