//! A product of f16 matrices on tensor cores.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    async_copy,
    mma::{self, MmaElement},
};

/// Rows and columns of a block's part of the product.
pub const MMA_TILE: u32 = 64;
/// Columns of the operands that are in shared memory at a time.
pub const MMA_DEPTH: u32 = 32;
/// Threads of a block: four warps, each with 32 rows and 32 columns of the tile.
pub const MMA_BLOCK: u32 = 128;
/// From one row of a tile to the next: an odd number of 16 bytes, so that eight rows of a matrix are in different banks.
const STRIDE: u32 = MMA_DEPTH + 8;

/// `c = a · bᵀ`: f16 `[m, k]` and `[n, k]`, f32 `[m, n]`, row-major, sums in f32. Grid `[n / 64, m / 64, 1]`, block
/// `[128, 1, 1]`; `m` and `n` are multiples of 64 and `k` is of 32.
///
/// # Safety
/// Grid, block and sizes are as above, `a` and `b` are aligned to 16 bytes, `c` to 4 and overlaps neither.
#[kernel(max_threads = 128)]
pub unsafe fn matmul_tensor_cores(n: u32, k: u32, a: *const f16, b: *const f16, c: *mut f32) {
    let tile_a = shared_array![f16; (MMA_TILE * STRIDE) as usize];
    let tile_b = shared_array![f16; (MMA_TILE * STRIDE) as usize];
    let thread = thread::thread_idx_x();
    let (warp, lane) = (thread / 32, thread % 32);
    let (row0, column0) = (MMA_TILE * thread::block_idx_y(), MMA_TILE * thread::block_idx_x());
    // The warp's part of the tile.
    let (warp_row, warp_column) = (32 * (warp / 2), 32 * (warp % 2));

    let mut sums = [[[0.0f32; 4]; 4]; 2];
    let mut k0 = 0;
    while k0 < k {
        // 64 rows of four times 16 bytes; two of each tile for a thread.
        for i in 0..2 {
            let (row, column) = ((128 * i + thread) / 4, 8 * (thread % 4));
            let to = STRIDE * row + column;
            let from = |row: u32| row as usize * k as usize + (k0 + column) as usize;
            // SAFETY: inside the matrices, and in tiles that everybody has done with.
            unsafe {
                async_copy::copy_16(tile_a.add(to), a.add(from(row0 + row)));
                async_copy::copy_16(tile_b.add(to), b.add(from(column0 + row)));
            }
        }
        async_copy::wait_all();
        thread::sync_threads();
        for depth in [0, 16] {
            // SAFETY: all lanes come here; they name rows of the tiles, which are written.
            unsafe {
                // The lane's row of 8 by 8 matrices: for `a` two below two, for `b` two side by side (lanes 16 to 31 name the same).
                let of_a =
                    |i: u32| tile_a.add(STRIDE * (warp_row + 16 * i + lane % 16) + depth + 8 * (lane / 16));
                let of_b = |j: u32| {
                    tile_b.add(STRIDE * (warp_column + 8 * j + lane % 8) + depth + 8 * (lane / 8 % 2))
                };
                let rows = [mma::ldmatrix_x4(of_a(0)), mma::ldmatrix_x4(of_a(1))];
                for j in 0..4 {
                    let columns = mma::ldmatrix_x2(of_b(j as u32));
                    for i in 0..2 {
                        sums[i][j] = f16::mma_m16n8k16(rows[i], columns, sums[i][j]);
                    }
                }
            }
        }
        thread::sync_threads();
        k0 += MMA_DEPTH;
    }
    for i in 0..2 {
        for j in 0..4 {
            let row = row0 + warp_row + 16 * i as u32 + lane / 4;
            let column = column0 + warp_column + 8 * j as u32 + 2 * (lane % 4);
            let [a, b, c8, d8] = sums[i][j];
            // SAFETY: inside the matrix; nobody else has these places.
            unsafe {
                let to = c.add(row as usize * n as usize + column as usize);
                (*to, *to.add(1)) = (a, b);
                let below = to.add(8 * n as usize);
                (*below, *below.add(1)) = (c8, d8);
            }
        }
    }
}

/// What [`matmul_tensor_cores`] must write. The products are exact; sixteen at a time are added to the sum, with bits cut off below
/// the last one of the largest: that is four roundings at most for each addition.
#[cfg(not(target_arch = "nvptx64"))]
pub fn matmul_tensor_cores_reference(a: &[f16], b: &[f16], k: usize) -> std::vec::Vec<crate::Expected> {
    let exact = |values: &[f16]| values.iter().map(|value| value.to_f64()).collect::<std::vec::Vec<_>>();
    crate::Expected::products(&exact(a), &exact(b), k, 4 * k.div_ceil(16))
}
