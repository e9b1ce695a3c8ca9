//! Writes new rows of K and V to their slots in the pages.

use super::expect_below;
use super::kv::KvCache;
use super::simd::{Element, with_element};
use super::tensor::Tensor;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE};

/// Row `i` of `k` and `v`, `[slots.len(), num_key_value_heads * head_dim]`, goes to page `slots[i] / PAGE_SIZE`,
/// offset `slots[i] % PAGE_SIZE` of `layer`, rounded to the format of the cache.
///
/// # Errors
/// [`crate::Error::Request`] if a slot or the layer is beyond the cache or the shapes do not fit.
pub fn write_kv(slots: &[u32], layer: usize, k: &Tensor, v: &Tensor, cache: &mut KvCache) -> Result<()> {
    let KvLayout { num_pages, num_key_value_heads: heads, head_dim, .. } = *cache.layout();
    cache.expect_layer("write_kv", layer)?;
    expect_below("write_kv", "slot", slots, num_pages * PAGE_SIZE)?;
    k.expect("write_kv", "k", slots.len(), heads * head_dim)?;
    v.expect("write_kv", "v", slots.len(), heads * head_dim)?;
    let layout = *cache.layout();
    let (k_pages, v_pages) = cache.layer_mut(layer);
    for (pages, rows) in [(k_pages, k), (v_pages, v)] {
        for (i, &slot) in slots.iter().enumerate() {
            write_row(&layout, slot, rows.row(i), pages);
        }
    }
    Ok(())
}

/// One row, `[num_key_value_heads * head_dim]`, to its slot in the pages of a layer.
pub(super) fn write_row(layout: &KvLayout, slot: u32, row: &[f32], pages: &mut [u8]) {
    let &KvLayout { dtype, num_key_value_heads: heads, head_dim, .. } = layout;
    let (page, offset) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
    for (head, values) in row.chunks_exact(head_dim).enumerate() {
        let at = ((page * heads + head) * PAGE_SIZE + offset) * head_dim;
        with_element!(dtype, E => {
            let to = &mut pages[at * E::SIZE..][..head_dim * E::SIZE];
            for (to, &value) in to.chunks_exact_mut(E::SIZE).zip(values) {
                // SAFETY: a chunk is one value.
                unsafe { E::set(to.as_mut_ptr(), value) };
            }
        });
    }
}
