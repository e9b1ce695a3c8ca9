//! Normalisation by mean and variance.

use cuda_std::prelude::*;

#[device]
use crate::{
    reduce::{Sum, block},
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias`, row by row (Ba, Kiros and Hinton 2016, "Layer normalization").
#[kernel_args]
pub struct LayerNorm<E> {
    pub hidden_size: u32,
    /// f32 `[num_rows, hidden_size]`
    pub x: *const f32,
    /// f32 `[hidden_size]`
    pub weight: *const f32,
    /// f32 `[hidden_size]`, or null.
    pub bias: *const f32,
    pub eps: f32,
    /// E `[num_rows, hidden_size]`
    pub out: *mut E,
}

/// f32 throughout, rounded once at the end, no f16 to infinity. Both sums have a fixed order that depends on `hidden_size` alone: each
/// thread adds its columns from left to right, then butterflies over the block.
///
/// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes columns `t`, `t + BLOCK_SIZE`, …. Any
/// `hidden_size` but 0. Written to be read: a row is read three times, value by value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`LayerNorm`], `out` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "layer_norm_{E}_plain")]
pub unsafe fn plain<E: Saturate>(a: LayerNorm<E>) {
    let LayerNorm { hidden_size, x, weight, bias, eps, out } = a;
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    let (first, step) = (thread::thread_idx_x(), thread::block_dim_x());
    let of_sum = shared_array![f32; 32];
    let of_squares = shared_array![f32; 32];
    // SAFETY: the grid has a block a row; columns stay below `hidden_size`; each sum has an array of its own, with a place for every
    // warp.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let mut sum = 0.0;
        let mut column = first;
        while column < hidden_size {
            sum += *x.add(column as usize);
            column += step;
        }
        let mean = block::<Sum, f32>(sum, of_sum, step / 32) / hidden_size as f32;
        let mut squares = 0.0;
        let mut column = first;
        while column < hidden_size {
            let centred = *x.add(column as usize) - mean;
            squares = centred.mul_add(centred, squares);
            column += step;
        }
        let variance = block::<Sum, f32>(squares, of_squares, step / 32) / hidden_size as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        let mut column = first;
        while column < hidden_size {
            let i = column as usize;
            let mut value = (*x.add(i) - mean) * scale * *weight.add(i);
            if !bias.is_null() {
                value += *bias.add(i);
            }
            *out.add(i) = E::round(value);
            column += step;
        }
    }
}
