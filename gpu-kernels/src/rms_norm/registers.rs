//! rms_norm, variant `registers`: a thread's part of the row waits in registers.
//!
//! A row is a block's work of a few hundred nanoseconds, and most of it is waiting. Of every 1024 columns `vec4` waits for x, whose squares
//! it adds up, and after the barrier for x again (from a cache) and the weight. Here the weight and x are asked for together, before
//! anything is computed, and stay in registers until the sum is known: one latency of the memory, whatever the row's length, for 32
//! registers a thread. The one barrier that a sum over a block needs is left.

use super::RmsNorm;
#[device]
use super::scale;
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::repeat,
    vector::Group,
};
use cuda_std::prelude::*;

/// Groups of 4 columns that a thread keeps.
const GROUPS: usize = 4;

/// The longest row: what [`BLOCK_SIZE`](super::BLOCK_SIZE) threads keep.
pub const MAX_HIDDEN_SIZE: u32 = 4 * GROUPS as u32 * super::BLOCK_SIZE;

/// As [`vec4`](super::vec4), with the same thread mapping and order of the sum, reading x once and all of it and of the weight
/// before the first use.
///
/// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. Thread `t` takes columns
/// `4t .. 4t + 4`, `4 (t + BLOCK_SIZE) ..`, …, at most 16 of them.
///
/// # Safety
/// As for [`vec4`](super::vec4); `hidden_size` is at most [`MAX_HIDDEN_SIZE`].
#[kernel(E = [f32, f16, bf16], name = "rms_norm_{E}_registers", max_threads = 256)]
pub unsafe fn registers<E: Group<4>>(a: RmsNorm<E>) {
    let RmsNorm { hidden_size, x, weight, eps, out } = a;
    launch_dependents();
    let start = crate::grid::offset(thread::block_idx_x(), hidden_size, 0);
    let column = |group: usize| 4 * (thread::thread_idx_x() + group as u32 * super::BLOCK_SIZE);
    // SAFETY: the grid has a block a row; groups of 4 columns stay below `hidden_size`, a multiple of 4.
    unsafe {
        let (x, out) = (x.add(start), out.add(start));
        let (mut v, mut w) = ([[0.0f32; 4]; GROUPS], [[0.0f32; 4]; GROUPS]);
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                w[i] = f32::load_group(weight.add(column(i) as usize));
            }
        });
        // Where nothing stands between, the assembler moves these loads behind the sum, to wait for the memory a second time.
        // It becomes no instruction of its own on compute capability 9.0.
        warp::sync_warp(u32::MAX);
        // The weight is there at any time, x once the kernel before this one has ended.
        wait_for_dependencies();
        repeat(GROUPS, |i| {
            if column(i) < hidden_size {
                v[i] = f32::load_group(x.add(column(i) as usize));
            }
        });
        // Columns right of the row are zeros, which change no sum.
        let mut sum = 0.0;
        repeat(GROUPS, |i| repeat(4, |j| sum = v[i][j].mul_add(v[i][j], sum)));
        let scale = scale(crate::reduce::block_sum(sum), hidden_size, eps);
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
