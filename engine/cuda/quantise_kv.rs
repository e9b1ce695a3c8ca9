//! Rows of K and V from where kernels leave them to the pages, in their formats.

use super::batch::{CudaBatch, expect_bound};
use super::device::{Dependent, Device};
use super::kv_cache::{Target, Waiting, number};
use super::launch::{Launch, always, dimension, launch};
use super::tensor::KvCache;
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig};
use gpu_kernels::quantise_kv::{BLOCK_SIZE, QuantiseKvArgs, WARPS, plain};

pub(super) const OP: &str = "quantise_kv";

/// What the kernels take for `rows` rows of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    arguments: QuantiseKvArgs,
}

variants! { Case, Launch<Case>;
    "plain" [plain]: always => |device, case| unsafe { launch_blocks(device, case, plain()) };
}

/// # Safety
/// The case is whole.
unsafe fn launch_blocks(device: &Device, case: &Case, kernels: &Kernels<QuantiseKvArgs>) -> Result<()> {
    let QuantiseKvArgs { num_key_value_heads, head_dim, .. } = case.arguments;
    let blocks = 2 * num_key_value_heads * (head_dim / 32);
    let grid = [case.rows, blocks.div_ceil(WARPS), 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a warp for each 32 values of each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

/// Notes that the rows of a batch that a kernel has left in `from`, which is of this cache, for `layer` wait to be stored: by the layer's attention, of a
/// step in which all rows are decoded, or else by [`store`]. Nothing where the kernel has written to the pages.
pub(super) fn leave(batch: &CudaBatch, layer: usize, from: &Target, cache: &mut KvCache) -> Result<()> {
    let KvLayout { formats, num_pages, .. } = cache.layout;
    let rows = batch.shape.num_tokens;
    if formats.float().is_some() || rows == 0 {
        return Ok(());
    }
    expect_bound(OP, "slot", batch.shape.slot_bound, num_pages * PAGE_SIZE)?;
    cache.waiting.set(Some(Waiting { layer, rows, slots: batch.slots(), from: *from }));
    Ok(())
}

/// Stores the rows that wait, if there are some.
pub(super) fn store(device: &Device, choice: &KernelChoice, cache: &KvCache) -> Result<()> {
    let Some(Waiting { layer, rows, slots, from }) = cache.waiting.take() else { return Ok(()) };
    let KvLayout { formats, num_key_value_heads, head_dim, .. } = cache.layout;
    let (k_pages, v_pages) = cache.layer(OP, layer)?;
    let arguments = QuantiseKvArgs {
        num_key_value_heads: dimension(OP, num_key_value_heads)?,
        head_dim: dimension(OP, head_dim)?,
        k_format: number(formats.k),
        v_format: number(formats.v),
        slots,
        k: DevicePtr::from_raw(from.k.as_raw()),
        v: DevicePtr::from_raw(from.v.as_raw()),
        k_pages: DevicePtrMut::from_raw(k_pages.as_raw()),
        v_pages: DevicePtrMut::from_raw(v_pages.as_raw()),
    };
    let case = Case { dtype: from.dtype, rows: dimension(OP, rows)?, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: slots were checked when the rows were left, heads are whole blocks; nothing else that is queued uses the pages at the same
    // time, and where the rows are is no part of them. Two rows with the same slot would race for its values, which is wrong but stays
    // inside the page.
    unsafe { (variant.launch)(device, &case) }
}
