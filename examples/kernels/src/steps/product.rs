//! A product of matrices, first as it is defined, then through shared memory.

use cuda_std::prelude::*;

/// Rows and columns of a block's part of the product.
pub const PRODUCT_TILE: u32 = 16;

/// `c = a · b`: f32 `[m, k]`, `[k, n]`, `[m, n]`, row-major. Grid `[ceil(n / 16), ceil(m / 16), 1]`, block `[16, 16, 1]`: a
/// thread a value.
///
/// # Safety
/// Grid and block are as above; the arrays have these sizes, and `c` overlaps neither other.
#[kernel(max_threads = 256)]
pub unsafe fn product(m: u32, n: u32, k: u32, a: *const f32, b: *const f32, c: *mut f32) {
    let (column, row) = thread::index_2d();
    if row < m && column < n {
        let mut sum = 0.0;
        let mut i = 0;
        while i < k {
            // SAFETY: inside the matrices.
            unsafe { sum += *a.add((row * k + i) as usize) * *b.add((i * n + column) as usize) };
            i += 1;
        }
        // SAFETY: inside the matrix; nobody else has this place.
        unsafe { *c.add((row * n + column) as usize) = sum };
    }
}

/// [`product`] with a tile of each matrix in shared memory at a time, so that a value of global memory is read by one thread of 16.
///
/// # Safety
/// As for [`product`].
#[kernel(max_threads = 256)]
pub unsafe fn product_tiled(m: u32, n: u32, k: u32, a: *const f32, b: *const f32, c: *mut f32) {
    let tile_a = shared_array![f32; (PRODUCT_TILE * PRODUCT_TILE) as usize];
    let tile_b = shared_array![f32; (PRODUCT_TILE * PRODUCT_TILE) as usize];
    let (x, y) = (thread::thread_idx_x(), thread::thread_idx_y());
    let (column, row) = thread::index_2d();
    let mut sum = 0.0;
    let mut k0 = 0;
    while k0 < k {
        // SAFETY: inside the matrices, or nothing is read; in tiles that everybody has done with.
        unsafe {
            let inside = row < m && k0 + x < k;
            tile_a.set(16 * y + x, if inside { *a.add((row * k + k0 + x) as usize) } else { 0.0 });
            let inside = k0 + y < k && column < n;
            tile_b.set(16 * y + x, if inside { *b.add(((k0 + y) * n + column) as usize) } else { 0.0 });
        }
        thread::sync_threads(); // The tiles are written.
        for i in 0..PRODUCT_TILE {
            // SAFETY: inside the tiles.
            unsafe { sum += tile_a.get(16 * y + i) * tile_b.get(16 * i + x) };
        }
        thread::sync_threads(); // The tiles are read, and may be written again.
        k0 += PRODUCT_TILE;
    }
    if row < m && column < n {
        // SAFETY: inside the matrix; nobody else has this place.
        unsafe { *c.add((row * n + column) as usize) = sum };
    }
}

/// [`product_tiled`] without the barrier at the loop's end.
///
/// # Safety
/// As for [`product`].
#[kernel(max_threads = 256)]
pub unsafe fn product_without_second_barrier(
    m: u32,
    n: u32,
    k: u32,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) {
    let tile_a = shared_array![f32; (PRODUCT_TILE * PRODUCT_TILE) as usize];
    let tile_b = shared_array![f32; (PRODUCT_TILE * PRODUCT_TILE) as usize];
    let (x, y) = (thread::thread_idx_x(), thread::thread_idx_y());
    let (column, row) = thread::index_2d();
    let mut sum = 0.0;
    let mut k0 = 0;
    while k0 < k {
        // SAFETY: none: somebody may still read what was here.
        unsafe {
            let inside = row < m && k0 + x < k;
            tile_a.set(16 * y + x, if inside { *a.add((row * k + k0 + x) as usize) } else { 0.0 });
            let inside = k0 + y < k && column < n;
            tile_b.set(16 * y + x, if inside { *b.add(((k0 + y) * n + column) as usize) } else { 0.0 });
        }
        thread::sync_threads();
        for i in 0..PRODUCT_TILE {
            // SAFETY: inside the tiles.
            unsafe { sum += tile_a.get(16 * y + i) * tile_b.get(16 * i + x) };
        }
        k0 += PRODUCT_TILE;
    }
    if row < m && column < n {
        // SAFETY: inside the matrix; nobody else has this place.
        unsafe { *c.add((row * n + column) as usize) = sum };
    }
}
