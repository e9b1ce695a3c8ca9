//! Where the splits of rows wait for being merged.

use crate::device::Device;
use crate::error::Result;
use crate::memory::DeviceBuffer;
use gpu_kernels::attention::max_splits;
use qernel_core::batch::BatchLimits;
use std::rc::Rc;

/// The most bytes that the splits of one launch may take; rows beyond are computed by another launch.
const MAX_WORKSPACE_BYTES: usize = 64 << 20;

/// Where the split kernel leaves what the merge kernel puts together.
pub(crate) struct Workspace {
    /// f32 `[rows, num_attention_heads, num_splits, head_dim]`, for as many rows as there is room for.
    pub(super) partials: DeviceBuffer<f32>,
    /// f32 `[rows, num_attention_heads, num_splits, 2]`
    pub(super) statistics: DeviceBuffer<f32>,
    /// For the merged kernel, which leaves zeros: u32 `[rows, num_key_value_heads]`, at most one for each place.
    pub(super) counters: DeviceBuffer<u32>,
    /// Room, counted in `[head_dim]` partials.
    pub(super) places: usize,
    /// Whether products with units come behind attention, whose blocks take a multiprocessor for themselves.
    pub(crate) starts_next_late: bool,
}

/// Room for the splits of one launch, in partials of `[head_dim]`.
fn places(limits: &BatchLimits, max_model_len: usize, num_heads: usize, head_dim: usize) -> usize {
    let splits = max_splits(u32::try_from(max_model_len).unwrap_or(u32::MAX)) as usize;
    let row = splits.max(1) * num_heads;
    // Sequences that verify drafts have a row of logits for each.
    let most = limits.max_num_sequences.max(limits.max_num_logits).max(1);
    let rows = (MAX_WORKSPACE_BYTES / 4 / (row * head_dim).max(1)).clamp(1, most);
    rows * row
}

impl Workspace {
    pub(crate) fn new(
        device: &Rc<Device>,
        limits: &BatchLimits,
        max_model_len: usize,
        num_heads: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let places = places(limits, max_model_len, num_heads, head_dim);
        Ok(Self {
            partials: DeviceBuffer::zeroed(device, places * head_dim)?,
            statistics: DeviceBuffer::zeroed(device, places * 2)?,
            counters: DeviceBuffer::zeroed(device, places)?,
            places,
            starts_next_late: false,
        })
    }

    /// Bytes that [`Workspace::new`] takes.
    pub(crate) fn bytes(
        limits: &BatchLimits,
        max_model_len: usize,
        num_heads: usize,
        head_dim: usize,
    ) -> usize {
        4 * (head_dim + 3) * places(limits, max_model_len, num_heads, head_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_holds_a_row_of_the_longest_sequence_and_stays_small() {
        let limits = BatchLimits {
            max_num_tokens: 8192,
            max_num_sequences: 256,
            max_num_logits: 256,
            max_blocks: 1024,
        };
        for (heads, head_dim, max_model_len) in [(14, 64, 32_768), (28, 128, 131_072), (2, 64, 33)] {
            let row = max_splits(max_model_len as u32) as usize * heads;
            assert!(places(&limits, max_model_len, heads, head_dim) >= row);
            let bytes = Workspace::bytes(&limits, max_model_len, heads, head_dim);
            assert!(bytes <= MAX_WORKSPACE_BYTES * 11 / 10, "{bytes}");
        }
    }
}
