//! Writing K and V into pages.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// Where a head of the token in `slot` begins in the pages of a layer.
#[device]
#[inline(always)]
pub fn place(slot: u32, head: u32, num_key_value_heads: u32, head_dim: u32) -> usize {
    use crate::PAGE_SIZE;
    let (page, place) = (slot / PAGE_SIZE, slot % PAGE_SIZE);
    let head_of_page = page as usize * num_key_value_heads as usize + head as usize;
    (head_of_page * PAGE_SIZE as usize + place as usize) * head_dim as usize
}

#[device]
#[inline(always)]
unsafe fn plain<E: Element>(
    num_key_value_heads: u32,
    head_dim: u32,
    slots: *const u32,
    k: *const f32,
    v: *const f32,
    k_pages: *mut E,
    v_pages: *mut E,
) {
    use crate::grid::{divide, offset, row_and_column};
    let cols = num_key_value_heads * head_dim;
    let Some((row, column)) = row_and_column(cols) else { return };
    let (head, d) = divide(column, head_dim);
    // SAFETY: the grid has one row of blocks a token; every slot is one of the layer's, and no two tokens share one.
    unsafe {
        let slot = *slots.add(row as usize);
        let to = place(slot, head, num_key_value_heads, head_dim) + d as usize;
        let from = offset(row, cols, column);
        *k_pages.add(to) = E::from_f32(*k.add(from));
        *v_pages.add(to) = E::from_f32(*v.add(from));
    }
}

macro_rules! write_kv {
    ($($name:ident: $element:ident;)*) => { $(
        /// Writes each row of K and V to its slot in the pages of one layer, rounded to nearest even.
        ///
        /// - `slots`: u32 `[num_tokens]`, `page * PAGE_SIZE + place`, all different
        /// - `k`, `v`: f32 `[num_tokens, num_key_value_heads * head_dim]`
        #[doc = concat!("- `k_pages`, `v_pages`: ", stringify!($element), " `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`")]
        ///
        /// Grid `[num_tokens, ceil(num_key_value_heads * head_dim / BLOCK_SIZE), 1]`, exact in the rows; block
        /// `[BLOCK_SIZE, 1, 1]`. One thread an element of K and the same of V; a head's values stay neighbours.
        ///
        /// # Safety
        /// Grid and block are as above, arrays have these lengths and do not overlap, slots are in range and
        /// different.
        #[kernel]
        pub unsafe fn $name(
            num_key_value_heads: u32,
            head_dim: u32,
            slots: *const u32,
            k: *const f32,
            v: *const f32,
            k_pages: *mut $element,
            v_pages: *mut $element,
        ) {
            // SAFETY: the kernel's own contract.
            unsafe { plain(num_key_value_heads, head_dim, slots, k, v, k_pages, v_pages) }
        }
    )* };
}

write_kv! {
    write_kv_f32_plain: f32;
    write_kv_f16_plain: f16;
    write_kv_bf16_plain: bf16;
}
