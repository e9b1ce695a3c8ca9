//! matmul, variant `ahead`: weights are on their way before anything else happens.
//!
//! A product with few rows of x is bound by reading the weights, so bytes in flight are what counts. A lane of `gemv` asks for 16
//! bytes, multiplies them and asks for the next: the memory waits for the arithmetic, and each lane converts x anew for
//! every row of weights. Here
//!
//! - a lane asks for 7 words of 16 bytes of each of two rows at once: with 16 lanes a row, all of a row of 896 columns. They are
//!   asked for before x is read, even before the kernel before this one has ended, since that does not write them, and
//!   the next rows' while these are added up;
//! - x is converted once for the block, into shared memory, and each value read from there serves two rows of weights;
//! - the grid is what the device runs at a time, so x is staged once a block, not once every few rows.

#[device]
use crate::{
    fused::{Dot, Stage, WORD, launch_dependents, sum_of_lanes, wait_for_dependencies},
    grid::{offset, repeat},
    vector::Group,
};
use cuda_std::prelude::*;

/// Rows of x that a block of the kernels `few` takes.
pub const FEW: u32 = 4;
/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Lanes that compute [`ROWS`] columns of the output.
pub const LANES: u32 = 16;
/// Rows of weights that share one read of x.
pub const ROWS: u32 = 2;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / LANES * ROWS;
/// Words of each row that a lane has in flight.
const AHEAD: usize = 7;

/// # Safety
/// As the kernels.
#[device]
#[inline(always)]
unsafe fn ahead<E: PackedElement, X: Group<4>, const N: usize>(
    n: u32,
    rows: u32,
    cols: u32,
    x: *const X,
    weight: *const E,
    out: *mut f32,
) {
    launch_dependents();
    let lane = thread::thread_idx_x() % LANES;
    let words = cols / WORD;
    let first_x = thread::block_idx_y() * N as u32;
    let n = (n - first_x).min(N as u32);
    let stage = Stage::new(n, words);
    let step = thread::grid_dim_x() * COLUMNS_PER_BLOCK;
    let mut block_first = thread::block_idx_x() * COLUMNS_PER_BLOCK;
    let group = thread::thread_idx_x() / LANES * ROWS;
    // SAFETY: rows below `rows`; groups beyond the last row compute it again and do not store. Every lane of a warp
    // makes the same number of rounds.
    unsafe {
        let (x, out) = (x.add(offset(first_x, cols, 0)), out.add(offset(first_x, rows, 0)));
        let dot = |block_first: u32| {
            let row = |r: u32| weight.add(offset((block_first + group + r).min(rows - 1), cols, 0));
            Dot::<E, { ROWS as usize }, AHEAD, LANES>::new([row(0), row(1)], words, lane)
        };
        let mut products = dot(block_first);
        wait_for_dependencies();
        stage.copy(x);
        thread::sync_threads();
        loop {
            let shares = products.shares::<N>(lane, stage);
            let first = block_first + group;
            block_first += step;
            // The next weights are under way while these products are added up.
            if block_first < rows {
                products = dot(block_first);
            }
            let sums = sum_of_lanes::<{ ROWS as usize }, N, LANES>(shares);
            repeat(N, |i| {
                repeat(ROWS as usize, |r| {
                    let row = first + r as u32;
                    if lane == (i * ROWS as usize + r) as u32 && (i as u32) < n && row < rows {
                        *out.add(offset(i as u32, rows, row)) = sums[r][i];
                    }
                });
            });
            if block_first >= rows {
                return;
            }
        }
    }
}

macro_rules! ahead_kernels {
    ($($name:ident: $rows:literal, $element:ident, $x:ident;)*) => { $(
        #[doc = concat!("`out = x · weightᵀ`, ", stringify!($rows), " rows of x a block.")]
        ///
        #[doc = concat!("- `x`: ", stringify!($x), " `[n, cols]`; `weight`: ", stringify!($element), " `[rows, cols]`")]
        /// - `out`: f32 `[n, rows]`
        ///
        /// A lane adds its words in ascending order, then a butterfly adds 16 lanes: the order depends on `cols` alone, and
        /// is the same in the kernels of one row and of few.
        ///
        #[doc = concat!("Grid `[blocks, ceil(n / ", stringify!($rows), "), 1]`, any number of blocks from 1 to `ceil(rows / COLUMNS_PER_BLOCK)`; block")]
        /// `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`stage_bytes`](crate::fused::stage_bytes) of as many rows of `cols`,
        /// but no more than `n`. `cols` is a multiple of 8.
        ///
        /// # Safety
        /// Grid, block and arrays are as above, aligned to 16 bytes; `n`, `rows` and `cols` are not 0; `out` overlaps nothing.
        /// Of what the kernel before this one writes, only `x` is read.
        #[kernel(max_threads = 256, min_blocks = 2)]
        pub unsafe fn $name(n: u32, rows: u32, cols: u32, x: *const $x, weight: *const $element, out: *mut f32) {
            // SAFETY: the kernel's own contract.
            unsafe { ahead::<$element, $x, $rows>(n, rows, cols, x, weight, out) }
        }
    )* };
}

ahead_kernels! {
    matmul_f16_ahead_one: 1, f16, f16;
    matmul_bf16_ahead_one: 1, bf16, bf16;
    matmul_bf16_f32_ahead_one: 1, bf16, f32;
    matmul_f16_ahead_few: 4, f16, f16;
    matmul_bf16_ahead_few: 4, bf16, bf16;
    matmul_bf16_f32_ahead_few: 4, bf16, f32;
}
