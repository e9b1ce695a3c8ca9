//! What adapters add to products: rows go through two small matrices, `shrink` through the first and `plain` through the second.

use cuda_std::prelude::*;

#[device]
use crate::{
    grid::{offset, row_and_column},
    reduce::block_sum,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `inner[i, r] = scales[i] * factor * Σ_k a[r, k] * x[i, k]` for rows whose scale is not 0; the others keep what was there.
#[kernel_args]
pub struct Shrink<E> {
    pub in_features: u32,
    pub rank: u32,
    /// What every row is multiplied with.
    pub factor: f32,
    /// f32 `[num_rows]`
    pub scales: *const f32,
    /// E `[num_rows, in_features]`
    pub x: *const E,
    /// f32 `[rank, in_features]`
    pub a: *const f32,
    /// f32 `[num_rows, rank]`
    pub inner: *mut f32,
}

/// `out[i, first + o] += Σ_r b[o, r] * inner[i, r]` for rows whose scale is not 0; the others keep their bits.
#[kernel_args]
pub struct LoraAdd {
    pub rank: u32,
    pub out_features: u32,
    /// Columns of `out`, at least `first + out_features`.
    pub cols: u32,
    pub first: u32,
    /// f32 `[num_rows]`
    pub scales: *const f32,
    /// f32 `[out_features, rank]`
    pub b: *const f32,
    /// f32 `[num_rows, rank]`
    pub inner: *const f32,
    /// f32 `[num_rows, cols]`
    pub out: *mut f32,
}

/// f32 throughout. The sum has a fixed order that depends on `in_features` alone: each thread adds its columns from left to right, then
/// butterflies over the block.
///
/// Grid `[num_rows, rank, 1]`, exact: one block a value; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes columns `t`, `t + BLOCK_SIZE`, …. Blocks of
/// rows without the adapter end at once, as in Punica's kernels for rows of different adapters (Chen et al. 2023).
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`Shrink`], `inner` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "lora_add_{E}_shrink")]
pub unsafe fn shrink<E: Element>(a: Shrink<E>) {
    let Shrink { in_features, rank, factor, scales, x, a, inner } = a;
    let (row, r) = (thread::block_idx_x(), thread::block_idx_y());
    // SAFETY: the grid has a block for each row and value between the matrices; columns stay below `in_features`.
    unsafe {
        let scale = *scales.add(row as usize);
        if scale == 0.0 {
            return;
        }
        let (x, a) = (x.add(offset(row, in_features, 0)), a.add(offset(r, in_features, 0)));
        let (mut sum, mut column) = (0.0, thread::thread_idx_x());
        while column < in_features {
            sum = x.add(column as usize).read().to_f32().fma(*a.add(column as usize), sum);
            column += BLOCK_SIZE;
        }
        let sum = block_sum(sum);
        if thread::thread_idx_x() == 0 {
            *inner.add(offset(row, rank, r)) = scale * factor * sum;
        }
    }
}

/// f32 throughout, from left to right. Grid `[num_rows, ceil(out_features / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
/// One thread a value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`LoraAdd`], `out` overlaps nothing.
#[kernel(E = [f32], name = "lora_add_{E}_plain")]
pub unsafe fn plain(a: LoraAdd) {
    let LoraAdd { rank, out_features, cols, first, scales, b, inner, out } = a;
    let Some((row, column)) = row_and_column(out_features) else { return };
    // SAFETY: the grid has one row of blocks a row, columns stay below `out_features`, and `first` with them below `cols`.
    unsafe {
        if *scales.add(row as usize) == 0.0 {
            return;
        }
        let (b, inner) = (b.add(offset(column, rank, 0)), inner.add(offset(row, rank, 0)));
        let (mut sum, mut r) = (0.0, 0);
        while r < rank {
            sum = (*b.add(r as usize)).fma(*inner.add(r as usize), sum);
            r += 1;
        }
        *out.add(offset(row, cols, first + column)) += sum;
    }
}
