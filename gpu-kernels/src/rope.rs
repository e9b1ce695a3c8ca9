//! Rotary position embedding.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// Rotates every head of every row by its position, in place. With `h = head_dim / 2`, `p = positions[row]` and
/// `j < h`: `(x[j], x[j + h]) = (x[j] cos[p, j] - x[j + h] sin[p, j], x[j + h] cos[p, j] + x[j] sin[p, j])` (Su
/// et al. 2021, "RoFormer", in the rotate-half form of GPT-NeoX that Qwen2 uses).
///
/// - `positions`: u32 `[num_tokens]`, each below `max_positions`
/// - `cos`, `sin`: f32 `[max_positions, head_dim / 2]`, of the angles `p * rope_theta^(-2j / head_dim)`; a
///   table made in higher precision on the host, so that large positions lose nothing here
/// - `x`: f32 `[num_tokens, num_heads * head_dim]`
///
/// Grid `[num_tokens, ceil(num_heads * head_dim / 2 / BLOCK_SIZE), 1]`, exact in the rows; block
/// `[BLOCK_SIZE, 1, 1]`. One thread a pair, which it reads and writes alone. `head_dim` is even.
///
/// # Safety
/// Grid and block are as above, arrays have these lengths and do not overlap, positions are in range.
#[kernel]
pub unsafe fn rope_f32_plain(
    num_heads: u32,
    head_dim: u32,
    positions: *const u32,
    cos: *const f32,
    sin: *const f32,
    x: *mut f32,
) {
    use crate::grid::{divide, offset, row_and_column};
    let half = head_dim / 2;
    let Some((row, pair)) = row_and_column(num_heads * half) else { return };
    let (head, j) = divide(pair, half);
    // SAFETY: the grid has one row of blocks a row of `x`; positions are rows of the tables.
    unsafe {
        let position = *positions.add(row as usize);
        let angle = offset(position, half, j);
        let (cos, sin) = (*cos.add(angle), *sin.add(angle));
        let low = x.add(offset(row, num_heads * head_dim, head * head_dim + j));
        let high = low.add(half as usize);
        let (a, b) = (*low, *high);
        *low = a.mul_add(cos, -(b * sin));
        *high = b.mul_add(cos, a * sin);
    }
}
