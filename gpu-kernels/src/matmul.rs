//! Matrix product with transposed weights, in an order of addition that does not depend on the number of rows.
//!
//! `out[i, o] = scale · Σ_c x[i, c] · weight[o, c]`: x `[n, cols]` in the format of weight `[rows, cols]`, or f32; out f32
//! `[n, rows]`, all row-major; products and sums in f32. The large products of the engine go through cuBLAS, which
//! picks another algorithm for another `n`; these kernels give a row the same bits alone and in a batch, need
//! no library, and are what cuBLAS is compared with.
//!
//! A warp computes [`ROWS_PER_WARP`] rows of x times one row of the weights: each lane adds its share of the columns
//! in ascending order, then the lanes are added by a butterfly (the one-warp-per-row GEMV of many BLAS libraries).
//!
//! Measured on an H200, one row of f32 times bf16 `[151936, 896]`: `plain` 182 µs (two bytes a load), `gemv` 164 (16 bytes a load, but
//! one at a time for each lane: a third of the memory's rate), `ahead` 67 (93 % of it), cuBLAS 141. See docs/kernel-lab.md.

use cuda_std::prelude::*;

pub mod ahead;

/// `out[i, o] = scale · Σ_c x[i, c] · weight[o, c]`; neither `n` nor `rows` is 0.
#[kernel_args]
pub struct Matmul<E, X> {
    pub n: u32,
    pub rows: u32,
    pub cols: u32,
    /// From one row of `out` to the next, in values.
    pub out_stride: u32,
    pub scale: f32,
    /// X `[n, cols]`
    pub x: *const X,
    /// E `[rows, cols]`
    pub weight: *const E,
    /// f32 `[n, rows]`, in rows of `out_stride` values
    pub out: *mut f32,
}

/// Threads of a block.
pub const BLOCK_THREADS: u32 = 256;
/// Weight rows that a block computes: one a warp.
pub const WARPS_PER_BLOCK: u32 = BLOCK_THREADS / 32;
/// Rows of x that share one read of the weights.
pub const ROWS_PER_WARP: u32 = 4;

/// How a lane reads its share of a row of weights `E` and of inputs `X`.
#[device]
trait Step<E: Element, X: Element> {
    /// Columns that a lane reads at once.
    const WIDTH: usize;
    type Values: Copy;
    /// # Safety
    /// `WIDTH` values at `pointer`, aligned to `WIDTH` values.
    unsafe fn load(pointer: *const E) -> Self::Values;
    /// # Safety
    /// `WIDTH` values at `pointer`, aligned to 16 bytes or, where one is read, to itself.
    unsafe fn load_x(pointer: *const X) -> Self::Values;
    fn multiply_add(a: &Self::Values, b: &Self::Values, sum: f32) -> f32;
}

#[device]
struct One;

#[device]
impl<E: Element, X: Element> Step<E, X> for One {
    const WIDTH: usize = 1;
    type Values = f32;
    #[inline(always)]
    unsafe fn load(pointer: *const E) -> f32 {
        // SAFETY: the caller's.
        unsafe { pointer.read() }.to_f32()
    }
    #[inline(always)]
    unsafe fn load_x(pointer: *const X) -> f32 {
        // SAFETY: the caller's: the parts are those of its `WIDTH` values.
        unsafe { pointer.read() }.to_f32()
    }
    #[inline(always)]
    fn multiply_add(a: &f32, b: &f32, sum: f32) -> f32 {
        a.fma(*b, sum)
    }
}

/// 16 bytes of weights, and as many inputs.
#[device]
struct Wide;

#[device]
impl<E: Element, X: Element> Step<E, X> for Wide {
    const WIDTH: usize = E::LANES;
    type Values = E::Lanes;
    #[inline(always)]
    unsafe fn load(pointer: *const E) -> E::Lanes {
        // SAFETY: the caller's.
        unsafe { E::load(pointer) }
    }
    #[inline(always)]
    unsafe fn load_x(pointer: *const X) -> E::Lanes {
        let mut values = E::splat(0.0);
        // An f32 input takes two loads for eight weights of two bytes.
        for part in 0..E::LANES / X::LANES {
            // SAFETY: the caller's: the parts are those of its `WIDTH` values.
            let lanes = unsafe { X::load(pointer.add(part * X::LANES)) };
            for i in 0..X::LANES {
                values.as_mut()[part * X::LANES + i] = lanes.as_ref()[i];
            }
        }
        values
    }
    #[inline(always)]
    fn multiply_add(a: &E::Lanes, b: &E::Lanes, mut sum: f32) -> f32 {
        let (a, b) = (a.as_ref(), b.as_ref());
        for i in 0..E::LANES {
            sum = a[i].fma(b[i], sum);
        }
        sum
    }
}

/// # Safety
/// As the kernels below.
#[device]
#[inline(always)]
unsafe fn matmul<E: Element, X: Element, S: Step<E, X>>(a: Matmul<E, X>) {
    let Matmul { n, rows, cols, out_stride, scale, x, weight, out } = a;
    const TILE: usize = ROWS_PER_WARP as usize;
    let lane = thread::thread_idx_x() % 32;
    let row = thread::block_idx_x() * WARPS_PER_BLOCK + thread::thread_idx_x() / 32;
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    let first = thread::block_idx_y() * ROWS_PER_WARP;
    let cols = cols as usize;
    // SAFETY: `row` is below `rows`, as all rows of the matrix are.
    let weight = unsafe { weight.add(row as usize * cols) };
    // Rows beyond the last are computed from the last and not stored: no branch inside the loop.
    let mut x_rows = [x; TILE];
    for i in 0..TILE {
        let index = (first + i as u32).min(n - 1);
        // SAFETY: `index` is below `n`.
        x_rows[i] = unsafe { x.add(index as usize * cols) };
    }

    let mut sums = [0.0f32; TILE];
    let mut column = lane as usize * S::WIDTH;
    while column < cols {
        // SAFETY: `column + WIDTH <= cols`, since `WIDTH` divides both.
        let w = unsafe { S::load(weight.add(column)) };
        for i in 0..TILE {
            // SAFETY: as for the weights.
            let values = unsafe { S::load_x(x_rows[i].add(column)) };
            sums[i] = S::multiply_add(&values, &w, sums[i]);
        }
        column += 32 * S::WIDTH;
    }
    for i in 0..TILE {
        let sum = warp::reduce_sum(sums[i]);
        let index = first + i as u32;
        if lane == 0 && index < n {
            // SAFETY: `index < n` and `row < rows`.
            unsafe { *out.add(crate::grid::offset(index, out_stride, row)) = sum * scale };
        }
    }
}

/// Any number of columns. Written to be read: neighbouring lanes read neighbouring values, one at a time.
///
/// # Safety
/// Grid `[ceil(rows / WARPS_PER_BLOCK), ceil(n / ROWS_PER_WARP), 1]`, block `[BLOCK_THREADS, 1, 1]`; arrays have the sizes of
/// [`Matmul`] and do not overlap.
#[kernel(
    (E, X) = [(f32, f32), (f16, f16), (bf16, bf16), bf16_f32: (bf16, f32)],
    name = "matmul_{E}_plain",
    max_threads = 256,
)]
pub unsafe fn plain<E: Element, X: Element>(a: Matmul<E, X>) {
    // SAFETY: the kernel's own contract.
    unsafe { matmul::<E, X, One>(a) }
}

/// Reads 16 bytes at once, the most that a load can: an eighth of the plain kernel's loads for weights of two bytes.
/// `cols` is a multiple of the values in them.
///
/// # Safety
/// As for [`plain`]; `x` and `weight` are aligned to 16 bytes.
#[kernel(
    (E, X) = [(f32, f32), (f16, f16), (bf16, bf16), bf16_f32: (bf16, f32)],
    name = "matmul_{E}_gemv",
    max_threads = 256,
)]
pub unsafe fn gemv<E: Element, X: Element>(a: Matmul<E, X>) {
    // SAFETY: the kernel's own contract.
    unsafe { matmul::<E, X, Wide>(a) }
}
