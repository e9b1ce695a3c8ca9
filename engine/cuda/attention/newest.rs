//! Rows that attention stores in pages of eight bits itself, which saves a decode step a launch in each layer.

use super::{BLOCKS, Case, decodes_on_tensor_cores};
use crate::kv_cache::{Waiting, number};
use crate::kv_format::KvFormat;
use crate::tensor::KvCache;
use cuda_std::launch::DevicePtr;

/// Whether the kernels of `variant` store the rows that wait in the cache, which the case is then told and the cache forgets: a kernel of
/// decoding does, where it computes all `n` rows of a batch, each the only one of its sequence.
pub(super) fn takes_newest(case: &mut Case, variant: &str, cache: &KvCache, layer: usize, n: usize) -> bool {
    let Some(Waiting { layer: of, rows, from, .. }) = cache.waiting.get() else { return false };
    let is_decoded = ["auto", "decode_mma"].contains(&variant) && decodes_on_tensor_cores(case).is_ok();
    let all = case.split.decode_rows == (0..n)
        && case.arguments.num_tokens as usize == n
        && !case.split.has_multiple;
    if !is_decoded || case.formats != BLOCKS || !all || (of, rows) != (layer, n) {
        return false;
    }
    case.arguments.new_format = number(KvFormat::Float(from.dtype));
    case.arguments.k_new = DevicePtr::from_raw(from.k.as_raw());
    case.arguments.v_new = DevicePtr::from_raw(from.v.as_raw());
    cache.waiting.set(None);
    true
}
