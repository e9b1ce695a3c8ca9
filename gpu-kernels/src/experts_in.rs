//! The first half of the experts that rows go to.

use crate::blocks::block_formats;
use cuda_std::prelude::*;

pub mod units;

#[device]
use crate::{
    blocks::{
        few_rows::{dot, dot_eights},
        *,
    },
    grid::{divide, offset},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Values that a block computes: one a warp.
pub const WARPS_PER_BLOCK: u32 = BLOCK_SIZE / 32;

/// For each row and each of its experts `e`, the `j`th of them: `inner[i, j] = x[i] · gate[e]ᵀ`, or with `is_up` not 0
/// `inner[i, j] = silu(inner[i, j]) * (x[i] · up[e]ᵀ)`. Twice launched it is both, so gate and up may differ in format.
#[kernel_args]
pub struct ExpertsIn<X> {
    pub num_experts: u32,
    pub num_chosen: u32,
    pub hidden_size: u32,
    /// Rows of an expert's matrix.
    pub intermediate_size: u32,
    pub is_up: u32,
    /// What values of `weight` are multiplied with.
    pub scale: f32,
    /// X `[num_rows, hidden_size]`
    pub x: *const X,
    /// f32 `[num_rows, 2 * num_chosen]`: the numbers of the experts, then their weights, as [`crate::route`] leaves them.
    pub chosen: *const f32,
    /// `[num_experts * intermediate_size, hidden_size]`: gate or up of all experts, one below the other.
    pub weight: *const u8,
    /// f32 `[num_rows, num_chosen * intermediate_size]`
    pub inner: *mut f32,
}

/// One of the kernels: `product` is what a lane has of that of a row of weights, of so many bytes, with a row of x.
///
/// # Safety
/// As [`plain`].
#[device]
#[inline(always)]
unsafe fn multiply<X>(a: ExpertsIn<X>, row_bytes: usize, product: impl Fn(*const u8, *const X) -> f32) {
    let ExpertsIn { num_experts, num_chosen, hidden_size, intermediate_size, is_up, scale, .. } = a;
    let ExpertsIn { x, chosen, weight, inner, .. } = a;
    let feature = thread::block_idx_y() * WARPS_PER_BLOCK + warp::warp_id();
    if feature >= intermediate_size {
        return; // The whole warp: no shuffle below waits for it.
    }
    let (row, place) = divide(thread::block_idx_x(), num_chosen);
    // SAFETY: the grid has blocks for each row and each of its experts; the expert is below `num_experts`.
    unsafe {
        let expert = (*chosen.add(offset(row, 2 * num_chosen, place)) as u32).min(num_experts - 1);
        let weight = weight.add(offset(expert, intermediate_size, feature) * row_bytes);
        let sum = product(weight, x.add(offset(row, hidden_size, 0)));
        let product = warp::reduce_sum(sum) * scale;
        if warp::lane_id() == 0 {
            let out = inner.add(offset(thread::block_idx_x(), intermediate_size, feature));
            if is_up != 0 {
                let gate = *out;
                *out = gate / (1.0 + (-gate).exp()) * product;
            } else {
                *out = product;
            }
        }
    }
}

/// Products and sums in f32, in an order that depends on `hidden_size` alone: each lane adds its columns in ascending order, then the
/// lanes are added by a butterfly. A number of an expert that does not exist counts as the last.
///
/// Grid `[num_rows * num_chosen, ceil(intermediate_size / WARPS_PER_BLOCK), 1]`, exact in the first; block `[BLOCK_SIZE, 1, 1]`: a warp
/// for each value. Written to be read: a value of the weights at a time.
///
/// # Safety
/// Grid and block are as above, sizes are not 0, arrays have the lengths of [`ExpertsIn`], rows of weights are whole blocks, `inner`
/// overlaps nothing.
#[kernel(W = [f32, f16, bf16, block_formats!], X = [f32, f16], name = "experts_in_{W}_{X}_plain")]
pub unsafe fn plain<W: Blocks, X: Element>(a: ExpertsIn<X>) {
    let cols = a.hidden_size;
    // SAFETY: the kernel's own contract.
    unsafe { multiply(a, W::row_bytes(cols), |weight, x| dot::<W, X>(weight, x, cols)) }
}

/// [`plain`] with eight neighbouring columns a lane, of which the compiler decodes once what they share.
///
/// # Safety
/// As [`plain`]; `x` is aligned to 16 bytes.
#[kernel(W = [block_formats!], X = [f32, f16], name = "experts_in_{W}_{X}_eights")]
pub unsafe fn eights<W: Blocks, X: Element>(a: ExpertsIn<X>) {
    let cols = a.hidden_size;
    // SAFETY: the kernel's own contract.
    unsafe { multiply(a, W::row_bytes(cols), |weight, x| dot_eights::<W, X>(weight, x, cols)) }
}
