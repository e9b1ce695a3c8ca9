//! Rows of the embedding table.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

#[device]
#[inline(always)]
unsafe fn plain<E: Element>(hidden_size: u32, tokens: *const u32, table: *const E, out: *mut f32) {
    use crate::grid::{offset, row_and_column};
    let Some((row, column)) = row_and_column(hidden_size) else { return };
    // SAFETY: the grid has one row of blocks a token, and every token is a row of the table.
    unsafe {
        let token = *tokens.add(row as usize);
        *out.add(offset(row, hidden_size, column)) =
            (*table.add(offset(token, hidden_size, column))).to_f32();
    }
}

macro_rules! embed {
    ($($name:ident: $element:ident;)*) => { $(
        /// `out[i] = table[tokens[i]]`, converted to f32 (exactly).
        ///
        /// - `tokens`: u32 `[num_tokens]`, each below `vocab_size`
        #[doc = concat!("- `table`: ", stringify!($element), " `[vocab_size, hidden_size]`; `vocab_size * hidden_size` may exceed 2^32")]
        /// - `out`: f32 `[num_tokens, hidden_size]`
        ///
        /// Grid `[num_tokens, ceil(hidden_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
        /// One thread an element: neighbours read neighbouring elements of one row.
        ///
        /// # Safety
        /// Grid and block are as above, arrays have these lengths, `out` overlaps nothing, tokens are in range.
        #[kernel]
        pub unsafe fn $name(hidden_size: u32, tokens: *const u32, table: *const $element, out: *mut f32) {
            // The first kernel of a step: the next may fetch its weights.
            crate::fused::launch_dependents();
            // SAFETY: the kernel's own contract.
            unsafe { plain(hidden_size, tokens, table, out) }
        }
    )* };
}

embed! {
    embed_f32_plain: f32;
    embed_f16_plain: f16;
    embed_bf16_plain: bf16;
}
