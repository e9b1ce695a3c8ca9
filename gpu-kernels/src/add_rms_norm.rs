//! The residual addition fused with the norm that follows it.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

#[device]
#[inline(always)]
unsafe fn plain<E: Element>(
    hidden_size: u32,
    delta: *const f32,
    weight: *const f32,
    eps: f32,
    x: *mut f32,
    out: *mut E,
) {
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    // SAFETY: the grid has a block a row; columns stay below `hidden_size`. A thread reads back only what it wrote.
    unsafe {
        let (delta, x, out) = (delta.add(start), x.add(start), out.add(start));
        let mut sum = 0.0;
        let mut column = thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            let value = *x.add(i) + *delta.add(i);
            *x.add(i) = value;
            sum = value.mul_add(value, sum);
            column += thread::block_dim_x();
        }
        let scale = crate::rms_norm::scale(crate::reduce::block_sum(sum), hidden_size, eps);
        let mut column = thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            *out.add(i) = E::from_f32(*x.add(i) * scale * *weight.add(i));
            column += thread::block_dim_x();
        }
    }
}

#[device]
#[inline(always)]
unsafe fn vec4<E: crate::vector::Group<4>>(
    hidden_size: u32,
    delta: *const f32,
    weight: *const f32,
    eps: f32,
    x: *mut f32,
    out: *mut E,
) {
    use crate::{grid::repeat, vector::Group};
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    // SAFETY: the grid has a block a row; groups of 4 columns stay below `hidden_size`, a multiple of 4. A thread
    // reads back only what it wrote.
    unsafe {
        let (delta, x, out) = (delta.add(start), x.add(start), out.add(start));
        let mut sum = 0.0;
        let mut column = 4 * thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            let (a, b): ([f32; 4], [f32; 4]) = (f32::load_group(x.add(i)), f32::load_group(delta.add(i)));
            let values = [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]];
            f32::store_group(x.add(i), values);
            repeat(4, |i| sum = values[i].mul_add(values[i], sum));
            column += 4 * thread::block_dim_x();
        }
        let scale = crate::rms_norm::scale(crate::reduce::block_sum(sum), hidden_size, eps);
        let mut column = 4 * thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            let (v, w): ([f32; 4], [f32; 4]) = (f32::load_group(x.add(i)), f32::load_group(weight.add(i)));
            let normed = [v[0] * scale * w[0], v[1] * scale * w[1], v[2] * scale * w[2], v[3] * scale * w[3]];
            E::store_group(out.add(i), normed);
            column += 4 * thread::block_dim_x();
        }
    }
}

macro_rules! plain_kernels {
    ($($element:ident $name:ident;)*) => { $(
        /// `x += delta`, in place, then `out = x / sqrt(mean(x²) + eps) * weight`, row by row: one pass over
        /// the residual stream instead of two.
        ///
        /// - `delta`: f32 `[num_rows, hidden_size]`
        /// - `weight`: f32 `[hidden_size]`
        /// - `x`: f32 `[num_rows, hidden_size]`
        #[doc = concat!("- `out`: ", stringify!($element), " `[num_rows, hidden_size]`")]
        ///
        /// The same bits as the addition followed by `rms_norm`'s variant of the same name: same thread
        /// mapping, same order of the sum.
        ///
        /// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes
        /// columns `t`, `t + BLOCK_SIZE`, …. Any `hidden_size`.
        ///
        /// # Safety
        /// Grid and block are as above, arrays have these lengths and do not overlap.
        #[kernel]
        pub unsafe fn $name(
            hidden_size: u32,
            delta: *const f32,
            weight: *const f32,
            eps: f32,
            x: *mut f32,
            out: *mut $element,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { plain(hidden_size, delta, weight, eps, x, out) }
        }
    )* };
}

plain_kernels! {
    f32 add_rms_norm_f32_plain;
    f16 add_rms_norm_f16_plain;
    bf16 add_rms_norm_bf16_plain;
}

macro_rules! vec4_kernels {
    ($($element:ident $name:ident;)*) => { $(
        #[doc = concat!("As [`add_rms_norm_", stringify!($element), "_plain`], thread `t` taking columns `4t .. 4t + 4`, …: loads of 16 bytes, a quarter of the instructions.")]
        ///
        /// The order of the sum is another than the plain variant's, so results may differ in the last bit:
        /// choose by `hidden_size`, never by the number of rows.
        ///
        /// # Safety
        #[doc = concat!("As for [`add_rms_norm_", stringify!($element), "_plain`]; `hidden_size` is a multiple of 4 and all pointers are aligned to 16 bytes.")]
        #[kernel]
        pub unsafe fn $name(
            hidden_size: u32,
            delta: *const f32,
            weight: *const f32,
            eps: f32,
            x: *mut f32,
            out: *mut $element,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { vec4(hidden_size, delta, weight, eps, x, out) }
        }
    )* };
}

vec4_kernels! {
    f32 add_rms_norm_f32_vec4;
    f16 add_rms_norm_f16_vec4;
    bf16 add_rms_norm_bf16_vec4;
}
