//! A product of f32 matrices, tile by tile through shared memory.

use cuda_std::prelude::*;

/// Rows and columns of a block's part of the product.
pub const MATMUL_TILE: u32 = 64;
/// Columns of `a` and rows of `b` that are in shared memory at a time.
const DEPTH: u32 = 16;
/// From one column of `a`'s tile to the next: odd, so that threads that write a row of it do not wait for one another.
const A_STRIDE: u32 = MATMUL_TILE + 1;

/// `c = a · b`: f32 `[m, k]`, `[k, n]`, `[m, n]`, row-major, of any size. Grid `[ceil(n / 64), ceil(m / 64), 1]`, block
/// `[16, 16, 1]`: thread `(x, y)` has rows `y`, `y + 16`, … and columns `x`, `x + 16`, … of the block's tile, four of each. Every
/// value that it takes from shared memory is used four times, and every one from global memory 64 times.
///
/// # Safety
/// Grid and block are as above, arrays have these sizes, and `c` overlaps neither other.
#[kernel(max_threads = 256)]
pub unsafe fn matmul(m: u32, n: u32, k: u32, a: *const f32, b: *const f32, c: *mut f32) {
    let tile_a = shared_array![f32; (A_STRIDE * DEPTH) as usize];
    let tile_b = shared_array![f32; (MATMUL_TILE * DEPTH) as usize];
    let (x, y) = (thread::thread_idx_x(), thread::thread_idx_y());
    let (row0, column0) = (MATMUL_TILE * thread::block_idx_y(), MATMUL_TILE * thread::block_idx_x());
    let at = |row: u32, width: u32, column: u32| row as usize * width as usize + column as usize;

    let mut sums = [[0.0f32; 4]; 4];
    let mut k0 = 0;
    while k0 < k {
        for i in 0..4 {
            // SAFETY: inside the matrices, and in tiles that everybody has done with.
            unsafe {
                let value = 256 * i + 16 * y + x;
                let (row, depth) = (value / DEPTH, value % DEPTH);
                let inside = row0 + row < m && k0 + depth < k;
                let from = if inside { *a.add(at(row0 + row, k, k0 + depth)) } else { 0.0 };
                tile_a.set(A_STRIDE * depth + row, from);
                let (depth, column) = (value / MATMUL_TILE, value % MATMUL_TILE);
                let inside = k0 + depth < k && column0 + column < n;
                let from = if inside { *b.add(at(k0 + depth, n, column0 + column)) } else { 0.0 };
                tile_b.set(value, from);
            }
        }
        thread::sync_threads();
        for depth in 0..DEPTH {
            // SAFETY: inside the tiles, which are written.
            let (a, b) = unsafe {
                let (a, b) = (tile_a.add(A_STRIDE * depth + y), tile_b.add(MATMUL_TILE * depth + x));
                ([a.get(0), a.get(16), a.get(32), a.get(48)], [b.get(0), b.get(16), b.get(32), b.get(48)])
            };
            for i in 0..4 {
                for j in 0..4 {
                    sums[i][j] = a[i].mul_add(b[j], sums[i][j]);
                }
            }
        }
        thread::sync_threads();
        k0 += DEPTH;
    }
    for i in 0..4 {
        for j in 0..4 {
            let (row, column) = (row0 + y + 16 * i as u32, column0 + x + 16 * j as u32);
            if row < m && column < n {
                // SAFETY: inside the matrix; nobody else has this place.
                unsafe { *c.add(at(row, n, column)) = sums[i][j] };
            }
        }
    }
}

/// What [`matmul`] must write: a rounding for each of the `k` products that are added one after the other.
#[cfg(not(target_arch = "nvptx64"))]
pub fn matmul_reference(a: &[f32], b: &[f32], k: usize) -> std::vec::Vec<crate::Expected> {
    let n = b.len() / k;
    let a: std::vec::Vec<f64> = a.iter().map(|&a| a.into()).collect();
    let transposed: std::vec::Vec<f64> = (0..n * k).map(|i| b[i % k * n + i / k].into()).collect();
    crate::Expected::products(&a, &transposed, k, k)
}
