//! The second half of the experts that rows go to, and their sum.

use crate::blocks::for_each_format;
use cuda_std::prelude::*;

pub mod units;

#[device]
use crate::{blocks::*, grid::offset};

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

/// Makes the kernels of the formats in the list.
macro_rules! formats {
    ($($file:ident::$format:ident)*) => {
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
        #[kernel(W = [f32, f16, bf16, $($file::$format),*], name = "experts_out_{W}_plain")]
        pub unsafe fn plain<W: Blocks>(a: ExpertsOut) {
            let ExpertsOut { num_experts, num_chosen, intermediate_size, hidden_size, scale, inner, chosen, weight, out } = a;
            let lane = warp::lane_id();
            let feature = thread::block_idx_y() * WARPS_PER_BLOCK + warp::warp_id();
            if feature >= hidden_size {
                return; // The whole warp: no shuffle below waits for it.
            }
            let row = thread::block_idx_x();
            // SAFETY: the grid has blocks for each row; columns stay below `intermediate_size`, the expert below `num_experts`.
            unsafe {
                let chosen = chosen.add(offset(row, 2 * num_chosen, 0));
                let (mut total, mut place) = (0.0f32, 0);
                while place < num_chosen {
                    let expert = (*chosen.add(place as usize) as u32).min(num_experts - 1);
                    let weight = weight.add(offset(expert, hidden_size, feature) * W::row_bytes(intermediate_size));
                    let inner = inner.add(offset(row, num_chosen, place) * intermediate_size as usize);
                    let (mut sum, mut column) = (0.0f32, lane);
                    while column < intermediate_size {
                        sum = (*inner.add(column as usize)).fma(W::in_row(weight, column), sum);
                        column += 32;
                    }
                    let share = *chosen.add((num_chosen + place) as usize);
                    total = warp::reduce_sum(sum).fma(share, total);
                    place += 1;
                }
                if lane == 0 {
                    *out.add(offset(row, hidden_size, feature)) += total * scale;
                }
            }
        }
    };
}
for_each_format!(formats);
