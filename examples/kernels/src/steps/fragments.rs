//! One instruction of a tensor core.

#[device]
use cuda_std::mma::MmaElement;
use cuda_std::prelude::*;

/// `c = a · bᵀ` of one warp: f16 `[16, 16]` and `[8, 16]`, f32 `[16, 8]`, row-major. One block of 32 threads.
///
/// # Safety
/// Grid and block are as above; the arrays have these sizes and are aligned to 4 bytes; `c` overlaps neither other.
#[kernel(max_threads = 32)]
pub unsafe fn product_of_warp(a: *const f16, b: *const f16, c: *mut f32) {
    let lane = thread::thread_idx_x() as usize;
    let (row, pair) = (lane / 4, 2 * (lane % 4));
    // SAFETY: inside the matrices, two values at an even column; all lanes come to the product.
    unsafe {
        let of_a = |row: usize, column: usize| *a.add(16 * row + column).cast::<u32>();
        let of_b = |row: usize, column: usize| *b.add(16 * row + column).cast::<u32>();
        let a = [of_a(row, pair), of_a(row + 8, pair), of_a(row, pair + 8), of_a(row + 8, pair + 8)];
        let b = [of_b(row, pair), of_b(row, pair + 8)];
        let sums = f16::mma_m16n8k16(a, b, [0.0; 4]);
        *c.add(8 * row + pair) = sums[0];
        *c.add(8 * row + pair + 1) = sums[1];
        *c.add(8 * (row + 8) + pair) = sums[2];
        *c.add(8 * (row + 8) + pair + 1) = sums[3];
    }
}

/// [`product_of_warp`] for the upper half of `c`, by the lanes that have its rows: so one would think.
///
/// # Safety
/// As for [`product_of_warp`].
#[kernel(max_threads = 32)]
pub unsafe fn product_in_branch(a: *const f16, b: *const f16, c: *mut f32) {
    let lane = thread::thread_idx_x() as usize;
    let (row, pair) = (lane / 4, 2 * (lane % 4));
    // SAFETY: none: the product is one of a whole warp.
    unsafe {
        let of_a = |row: usize, column: usize| *a.add(16 * row + column).cast::<u32>();
        let of_b = |row: usize, column: usize| *b.add(16 * row + column).cast::<u32>();
        if row < 4 {
            let a = [of_a(row, pair), 0, of_a(row, pair + 8), 0];
            let b = [of_b(row, pair), of_b(row, pair + 8)];
            let sums = f16::mma_m16n8k16(a, b, [0.0; 4]);
            *c.add(8 * row + pair) = sums[0];
            *c.add(8 * row + pair + 1) = sums[1];
        }
    }
}
