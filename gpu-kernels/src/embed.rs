//! Rows of the embedding table.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// In `drawn_rows`: the token is in `tokens`.
pub const GIVEN: u32 = u32::MAX;

#[device]
#[inline(always)]
unsafe fn plain<E: Element>(
    hidden_size: u32,
    vocab_size: u32,
    tokens: *const u32,
    drawn_rows: *const u32,
    drawn: *const u32,
    table: *const E,
    out: *mut f32,
) {
    use crate::grid::{offset, row_and_column};
    let Some((row, column)) = row_and_column(hidden_size) else { return };
    // SAFETY: the grid has one row of blocks a token, every row of the draw exists, and no token is beyond the table.
    unsafe {
        let (given, drawn_row) = (*tokens.add(row as usize), *drawn_rows.add(row as usize));
        let token = if drawn_row == GIVEN { given } else { *drawn.add(drawn_row as usize) };
        // A draw that found no token left a number beyond all; whoever reads it says so, and this row is not used.
        let token = if token < vocab_size { token } else { 0 };
        *out.add(offset(row, hidden_size, column)) =
            (*table.add(offset(token, hidden_size, column))).to_f32();
    }
}

macro_rules! embed {
    ($($name:ident: $element:ident;)*) => { $(
        /// `out[i] = table[token(i)]`, converted to f32 (exactly), where `token(i)` is `tokens[i]`, or what was drawn last for row
        /// `drawn_rows[i]` of the logits: then the host need not know it yet.
        ///
        /// - `tokens`: u32 `[num_tokens]`
        /// - `drawn_rows`: u32 `[num_tokens]`, each [`GIVEN`] (the token is in `tokens`) or a row of `drawn`
        /// - `drawn`: u32, what the sampler drew. Instead of a token that is not below `vocab_size` 0 is taken.
        #[doc = concat!("- `table`: ", stringify!($element), " `[vocab_size, hidden_size]`; `vocab_size * hidden_size` may exceed 2^32")]
        /// - `out`: f32 `[num_tokens, hidden_size]`
        ///
        /// Grid `[num_tokens, ceil(hidden_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
        /// One thread an element: neighbours read neighbouring elements of one row.
        ///
        /// # Safety
        /// Grid and block are as above, arrays have these lengths, `out` overlaps nothing, `vocab_size` is not 0.
        #[kernel]
        pub unsafe fn $name(
            hidden_size: u32,
            vocab_size: u32,
            tokens: *const u32,
            drawn_rows: *const u32,
            drawn: *const u32,
            table: *const $element,
            out: *mut f32,
        ) {
            // The first kernel of a step: the next may fetch its weights.
            crate::fused::launch_dependents();
            // SAFETY: the kernel's own contract.
            unsafe { plain(hidden_size, vocab_size, tokens, drawn_rows, drawn, table, out) }
        }
    )* };
}

embed! {
    embed_f32_plain: f32;
    embed_f16_plain: f16;
    embed_bf16_plain: bf16;
}
