//! Rows of the embedding table.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::launch_dependents,
    grid::{offset, row_and_column},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// In `sampled_rows`: the token is in `tokens`.
pub const GIVEN: u32 = u32::MAX;

/// `out[i] = scale * table[token(i)]`, in f32 (exactly, where `scale` is a power of two), where `token(i)` is `tokens[i]`, or what was drawn last for row
/// `sampled_rows[i]` of the logits: then the host need not know it yet.
#[kernel_args]
pub struct Embed<E> {
    pub hidden_size: u32,
    /// Not 0.
    pub vocab_size: u32,
    /// u32 `[num_tokens]`
    pub tokens: *const u32,
    /// u32 `[num_tokens]`, each [`GIVEN`] (the token is in `tokens`) or a row of `sampled`
    pub sampled_rows: *const u32,
    /// u32, what the sampler drew. Instead of a token that is not below `vocab_size` 0 is taken.
    pub sampled: *const u32,
    /// What values of the table are multiplied with.
    pub scale: f32,
    /// E `[vocab_size, hidden_size]`; `vocab_size * hidden_size` may exceed 2^32
    pub table: *const E,
    /// f32 `[num_tokens, hidden_size]`
    pub out: *mut f32,
}

/// Grid `[num_tokens, ceil(hidden_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
/// One thread an element: neighbours read neighbouring elements of one row.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`Embed`], `out` overlaps nothing.
#[kernel(E = [f32, f16, bf16], name = "embed_{E}_plain")]
pub unsafe fn plain<E: Element>(a: Embed<E>) {
    let Embed { hidden_size, vocab_size, tokens, sampled_rows, sampled, scale, table, out } = a;
    // The first kernel of a step: the next may fetch its weights.
    launch_dependents();
    let Some((row, column)) = row_and_column(hidden_size) else { return };
    // SAFETY: the grid has one row of blocks a token, every row of the draw exists, and no token is beyond the table.
    unsafe {
        let (given, sampled_row) = (*tokens.add(row as usize), *sampled_rows.add(row as usize));
        let token = if sampled_row == GIVEN { given } else { *sampled.add(sampled_row as usize) };
        // A draw that found no token left a number beyond all; whoever reads it says so, and this row is not used.
        let token = if token < vocab_size { token } else { 0 };
        *out.add(offset(row, hidden_size, column)) =
            (*table.add(offset(token, hidden_size, column))).to_f32() * scale;
    }
}
