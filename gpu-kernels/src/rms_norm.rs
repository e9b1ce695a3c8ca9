//! Root mean square normalisation.
//!
//! Measured on an H200, one row of 896 in bf16, launches in a row: `plain` 3.23 µs, `vec4` 2.32 (a quarter of the instructions, the same
//! waits), `registers` 2.13 (one wait for the memory less); 512 rows: 3.91, 2.88, 2.79. See docs/kernel-lab.md.

use cuda_std::prelude::*;

mod registers;

pub use crate::norm::scale;
pub use registers::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::repeat,
    vector::{Group, Saturate},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out = x / sqrt(mean(x²) + eps) * weight`, row by row (Zhang and Sennrich 2019, "Root mean square layer normalization").
#[kernel_args]
pub struct RmsNorm<E> {
    pub hidden_size: u32,
    /// f32 `[num_rows, hidden_size]`
    pub x: *const f32,
    /// f32 `[hidden_size]`
    pub weight: *const f32,
    pub eps: f32,
    /// E `[num_rows, hidden_size]`
    pub out: *mut E,
}

/// f32 throughout, rounded once at the end, no f16 to infinity. The sum of squares has a fixed order that depends on
/// `hidden_size` alone: each thread adds its columns from left to right, then butterflies over the block.
///
/// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes
/// columns `t`, `t + BLOCK_SIZE`, …. Any `hidden_size`. Written to be read: a row is read twice, value by value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`RmsNorm`], `out` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "rms_norm_{E}_plain")]
pub unsafe fn plain<E: Saturate>(a: RmsNorm<E>) {
    let RmsNorm { hidden_size, x, weight, eps, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    // SAFETY: the grid has a block a row; columns stay below `hidden_size`.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let mut sum = 0.0;
        let mut column = thread::thread_idx_x();
        while column < hidden_size {
            let value = *x.add(column as usize);
            sum = value.mul_add(value, sum);
            column += thread::block_dim_x();
        }
        let scale = scale(crate::reduce::block_sum(sum), hidden_size, eps);
        let mut column = thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            *out.add(i) = E::round(*x.add(i) * scale * *weight.add(i));
            column += thread::block_dim_x();
        }
    }
}

/// As [`plain`], thread `t` taking columns `4t .. 4t + 4`, …: loads of 16 bytes, a quarter of the instructions, and four times
/// the bytes in flight for each load that is waited for.
///
/// The order of the sum is another than the plain variant's, so results may differ in the last bit:
/// choose by `hidden_size`, never by the number of rows.
///
/// # Safety
/// As for [`plain`]; `hidden_size` is a multiple of 4 and all pointers are aligned to 16 bytes.
#[kernel(E = [f32, f16, bf16], name = "rms_norm_{E}_vec4")]
pub unsafe fn vec4<E: Group<4>>(a: RmsNorm<E>) {
    let RmsNorm { hidden_size, x, weight, eps, out } = a;
    launch_dependents();
    wait_for_dependencies();
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    // SAFETY: the grid has a block a row; groups of 4 columns stay below `hidden_size`, a multiple of 4.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let mut sum = 0.0;
        let mut column = 4 * thread::thread_idx_x();
        while column < hidden_size {
            let values: [f32; 4] = f32::load_group(x.add(column as usize));
            repeat(4, |i| sum = values[i].mul_add(values[i], sum));
            column += 4 * thread::block_dim_x();
        }
        let scale = scale(crate::reduce::block_sum(sum), hidden_size, eps);
        let mut column = 4 * thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            let (v, w): ([f32; 4], [f32; 4]) = (f32::load_group(x.add(i)), f32::load_group(weight.add(i)));
            let normed = [v[0] * scale * w[0], v[1] * scale * w[1], v[2] * scale * w[2], v[3] * scale * w[3]];
            E::store_saturated(out.add(i), normed);
            column += 4 * thread::block_dim_x();
        }
    }
}
