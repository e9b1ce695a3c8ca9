//! The residual addition fused with the norm that follows it.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, repeat},
    reduce::block_sum,
    rms_norm::scale,
    vector::{Group, Saturate},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

#[device]
#[inline(always)]
unsafe fn plain<E: Saturate>(
    hidden_size: u32,
    delta: *const f32,
    weight: *const f32,
    eps: f32,
    x: *mut f32,
    out: *mut E,
) {
    launch_dependents();
    wait_for_dependencies();
    let start = offset(thread::block_idx_x(), hidden_size, 0);
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
        let scale = scale(block_sum(sum), hidden_size, eps);
        let mut column = thread::thread_idx_x();
        while column < hidden_size {
            let i = column as usize;
            *out.add(i) = E::round(*x.add(i) * scale * *weight.add(i));
            column += thread::block_dim_x();
        }
    }
}

#[device]
#[inline(always)]
unsafe fn vec4<E: Group<4>>(
    hidden_size: u32,
    delta: *const f32,
    weight: *const f32,
    eps: f32,
    x: *mut f32,
    out: *mut E,
) {
    launch_dependents();
    wait_for_dependencies();
    let start = offset(thread::block_idx_x(), hidden_size, 0);
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
        let scale = scale(block_sum(sum), hidden_size, eps);
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

/// Groups of 4 columns that a thread of the variant `registers` keeps.
const GROUPS: usize = 4;

/// The longest row that the variant `registers` takes: what [`BLOCK_SIZE`] threads keep.
pub const MAX_HIDDEN_SIZE: u32 = 4 * GROUPS as u32 * BLOCK_SIZE;

#[device]
#[inline(always)]
unsafe fn registers<E: Group<4>>(
    hidden_size: u32,
    delta: *const f32,
    weight: *const f32,
    eps: f32,
    x: *mut f32,
    out: *mut E,
) {
    launch_dependents();
    let start = offset(thread::block_idx_x(), hidden_size, 0);
    let column = |group: usize| 4 * (thread::thread_idx_x() + group as u32 * BLOCK_SIZE);
    // SAFETY: the grid has a block a row; groups of 4 columns stay below `hidden_size`, a multiple of 4.
    unsafe {
        let (delta, x, out) = (delta.add(start), x.add(start), out.add(start));
        let (mut v, mut d, mut w) = ([[0.0f32; 4]; GROUPS], [[0.0f32; 4]; GROUPS], [[0.0f32; 4]; GROUPS]);
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                w[i] = f32::load_group(weight.add(column(i) as usize));
            }
        });
        // As in rms_norm's variant of this name: the loads are not to move behind the sum.
        warp::sync_warp(u32::MAX);
        wait_for_dependencies();
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                v[i] = f32::load_group(x.add(column(i) as usize));
                d[i] = f32::load_group(delta.add(column(i) as usize));
            }
        });
        let mut sum = 0.0;
        repeat(GROUPS, |i| {
            repeat(4, |j| {
                v[i][j] += d[i][j];
                sum = v[i][j].mul_add(v[i][j], sum);
            })
        });
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                f32::store_group(x.add(column(i) as usize), v[i]);
            }
        });
        let scale = scale(block_sum(sum), hidden_size, eps);
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                let (v, w) = (v[i], w[i]);
                let normed =
                    [v[0] * scale * w[0], v[1] * scale * w[1], v[2] * scale * w[2], v[3] * scale * w[3]];
                E::store_saturated(out.add(column(i) as usize), normed);
            }
        });
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

macro_rules! registers_kernels {
    ($($element:ident $name:ident;)*) => { $(
        #[doc = concat!("As [`add_rms_norm_", stringify!($element), "_vec4`], with the same thread mapping and order of the sum, the row in registers between: it and")]
        /// `delta` and the weight are asked for before the first is used, and read once.
        ///
        /// # Safety
        #[doc = concat!("As for [`add_rms_norm_", stringify!($element), "_vec4`]; `hidden_size` is at most [`MAX_HIDDEN_SIZE`].")]
        #[kernel(max_threads = 256)]
        pub unsafe fn $name(
            hidden_size: u32,
            delta: *const f32,
            weight: *const f32,
            eps: f32,
            x: *mut f32,
            out: *mut $element,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { registers(hidden_size, delta, weight, eps, x, out) }
        }
    )* };
}

registers_kernels! {
    f32 add_rms_norm_f32_registers;
    f16 add_rms_norm_f16_registers;
    bf16 add_rms_norm_bf16_registers;
}
