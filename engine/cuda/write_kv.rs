//! Writing K and V into pages.

use super::batch::{CudaBatch, expect_bound};
use super::device::Device;
use super::launch::{by_dtype, dimension, elements_of_rows};
use super::tensor::{KvCache, Tensor};
use crate::error::Result;
use crate::kv_layout::PAGE_SIZE;
use gpu_kernels::write_kv::{BLOCK_SIZE, write_kv_bf16_plain, write_kv_f16_plain, write_kv_f32_plain};

const OP: &str = "write_kv";

// The layout is stated in `kv_cache.rs` and compiled into the kernels.
const _: () = assert!(gpu_kernels::PAGE_SIZE as usize == PAGE_SIZE);

/// Writes the rows of K and V, `[num_tokens, num_key_value_heads * head_dim]`, to their slots in `layer`.
pub(super) fn write_kv(
    device: &Device,
    batch: &CudaBatch,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    cache: &mut KvCache,
) -> Result<()> {
    let n = batch.shape.num_tokens;
    let layout = cache.layout;
    let cols = layout.num_key_value_heads * layout.head_dim;
    k.expect(OP, "k", n, cols)?;
    v.expect(OP, "v", n, cols)?;
    expect_bound(OP, "slot", batch.shape.slot_bound, layout.num_pages * PAGE_SIZE)?;
    let (k_pages, v_pages) = cache.layer_mut(OP, layer)?;
    let (rows, cols) = (dimension(OP, n)?, dimension(OP, cols)?);
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let config = elements_of_rows(rows, cols, BLOCK_SIZE);
    let (heads, head_dim) = (dimension(OP, layout.num_key_value_heads)?, dimension(OP, layout.head_dim)?);
    let slots = batch.slots();
    // SAFETY: one row of blocks for each of the `n` rows; every slot is one of the layer's, checked above. Two rows
    // with the same slot would race for its value, which is wrong but stays inside the page.
    unsafe {
        by_dtype!(
            layout.dtype,
            write_kv_f32_plain,
            write_kv_f16_plain,
            write_kv_bf16_plain,
            (device, &config, heads, head_dim, slots, k.ptr(), v.ptr(), k_pages.cast(), v_pages.cast())
        )
    }
}
