//! The second half of the experts that rows go to, and their sum.

use crate::blocks::block_formats;
use cuda_std::prelude::*;

pub mod units;

#[device]
use crate::{
    blocks::{
        few_rows::{dot, dot_eights},
        *,
    },
    grid::offset,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// Values that a block computes: one a warp.
pub const WARPS_PER_BLOCK: u32 = BLOCK_SIZE / 32;

/// `out[i] += Σ_j weight(i, j) * (inner[i, j] · down[e(i, j)]ᵀ)` over the `num_chosen` experts `e(i, j)` that row `i` goes to.
#[kernel_args]
pub struct ExpertsOut {
    pub num_experts: u32,
    pub num_chosen: u32,
    /// Columns of an expert's matrix.
    pub intermediate_size: u32,
    /// Rows of an expert's matrix.
    pub hidden_size: u32,
    /// What values of `weight` are multiplied with.
    pub scale: f32,
    /// f32 `[num_rows, num_chosen * intermediate_size]`
    pub inner: *const f32,
    /// f32 `[num_rows, 2 * num_chosen]`: the numbers of the experts, then their weights, as [`crate::route`] leaves them.
    pub chosen: *const f32,
    /// `[num_experts * hidden_size, intermediate_size]`: down of all experts, one below the other.
    pub weight: *const u8,
    /// f32 `[num_rows, hidden_size]`
    pub out: *mut f32,
}

/// One of the kernels: `product` is what a lane has of that of a row of weights, of so many bytes, with a row of `inner`.
///
/// # Safety
/// As [`plain`].
#[device]
#[inline(always)]
unsafe fn multiply(a: ExpertsOut, row_bytes: usize, product: impl Fn(*const u8, *const f32) -> f32) {
    let ExpertsOut { num_experts, num_chosen, intermediate_size, hidden_size, scale, .. } = a;
    let ExpertsOut { inner, chosen, weight, out, .. } = a;
    let feature = thread::block_idx_y() * WARPS_PER_BLOCK + warp::warp_id();
    if feature >= hidden_size {
        return; // The whole warp: no shuffle below waits for it.
    }
    let row = thread::block_idx_x();
    // SAFETY: the grid has blocks for each row; the expert is below `num_experts`.
    unsafe {
        let chosen = chosen.add(offset(row, 2 * num_chosen, 0));
        let (mut total, mut place) = (0.0f32, 0);
        while place < num_chosen {
            let expert = (*chosen.add(place as usize) as u32).min(num_experts - 1);
            let weight = weight.add(offset(expert, hidden_size, feature) * row_bytes);
            let inner = inner.add(offset(row, num_chosen, place) * intermediate_size as usize);
            let share = *chosen.add((num_chosen + place) as usize);
            total = warp::reduce_sum(product(weight, inner)).fma(share, total);
            place += 1;
        }
        if warp::lane_id() == 0 {
            *out.add(offset(row, hidden_size, feature)) += total * scale;
        }
    }
}

/// Products and sums in f32, in an order that depends on the sizes alone: each lane adds its columns in ascending order, then the
/// lanes are added by a butterfly, and the experts in the order in which they are given. A number of an expert that does not exist
/// counts as the last.
///
/// Grid `[num_rows, ceil(hidden_size / WARPS_PER_BLOCK), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`: a warp for each value.
/// Written to be read: a value of the weights at a time.
///
/// # Safety
/// Grid and block are as above, sizes are not 0, arrays have the lengths of [`ExpertsOut`], rows of weights are whole blocks, `out`
/// overlaps nothing.
#[kernel(W = [f32, f16, bf16, block_formats!], name = "experts_out_{W}_plain")]
pub unsafe fn plain<W: Blocks>(a: ExpertsOut) {
    let cols = a.intermediate_size;
    // SAFETY: the kernel's own contract.
    unsafe { multiply(a, W::row_bytes(cols), |weight, inner| dot::<W, f32>(weight, inner, cols)) }
}

/// [`plain`] with eight neighbouring columns a lane, of which the compiler decodes once what they share.
///
/// # Safety
/// As [`plain`]; `inner` is aligned to 16 bytes.
#[kernel(W = [block_formats!], name = "experts_out_{W}_eights")]
pub unsafe fn eights<W: Blocks>(a: ExpertsOut) {
    let cols = a.intermediate_size;
    // SAFETY: the kernel's own contract.
    unsafe { multiply(a, W::row_bytes(cols), |weight, inner| dot_eights::<W, f32>(weight, inner, cols)) }
}
