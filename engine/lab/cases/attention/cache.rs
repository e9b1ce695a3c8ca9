//! Values as pages have them.

use super::BLOCKS;
use crate::dtype::Dtype;
use crate::kv_format::{BLOCK_VALUES, KvFormat, KvFormats};
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use crate::lab::values::rounded;

/// What tensor cores are given of pages of `formats`, where what they write is `dtype`.
pub(super) fn factors(formats: KvFormats, dtype: Dtype) -> Dtype {
    if formats == BLOCKS { Dtype::F16 } else { dtype }
}

/// `values` as near as pages of `format` have them, of which f16 has the same.
pub(super) fn stored(format: KvFormat, mut values: Vec<f32>) -> Vec<f32> {
    let KvFormat::Float(dtype) = format else {
        for (i, block) in values.chunks_mut(BLOCK_VALUES).enumerate() {
            // A power of two as the scale, and a value that makes it that.
            let scale = 2f32.powi(-(i as i32 % 3) - 5);
            block.iter_mut().for_each(|value| *value = (*value / scale).round().clamp(-127.0, 127.0) * scale);
            let largest = &mut block[i % BLOCK_VALUES];
            *largest = 127.0f32.copysign(*largest) * scale;
        }
        return values;
    };
    rounded(dtype, values)
}

/// The pages of a layer that hold the rows of each sequence, `[tokens, num_key_value_heads * head_dim]`, in its pages; NaN
/// elsewhere.
pub(super) fn in_pages(layout: &KvLayout, pages: &[Vec<u32>], values: &[Vec<f32>]) -> Vec<f32> {
    let &KvLayout { num_pages, num_key_value_heads: heads, head_dim, .. } = layout;
    let mut layer = vec![f32::NAN; num_pages * layout.page_elements()];
    for (pages, values) in pages.iter().zip(values) {
        for (token, row) in values.chunks_exact(heads * head_dim).enumerate() {
            let (page, place) = (pages[token / PAGE_SIZE] as usize, token % PAGE_SIZE);
            for (head, row) in row.chunks_exact(head_dim).enumerate() {
                let to = ((page * heads + head) * PAGE_SIZE + place) * head_dim;
                layer[to..][..head_dim].copy_from_slice(row);
            }
        }
    }
    layer
}
