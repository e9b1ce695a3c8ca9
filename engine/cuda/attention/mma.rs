//! Launches of the tensor core kernels.

use super::{BLOCKS, Case, OP, float_pages, known_head_dim};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::launch::{dimension, launch};
use crate::tensor::KvCache;
use crate::tensor_map::{Mapped, TensorMaps};
use cuda_std::launch::{DevicePtr, Kernels, LaunchConfig};
use cuda_std::tensor_map::TensorMap;
use gpu_kernels::PAGE_SIZE;
use gpu_kernels::attention::AttentionArgs;
use gpu_kernels::attention::prefill_mma::*;
use gpu_kernels::attention::prefill_wgmma::*;
use std::rc::Rc;

/// What tensor cores multiply, 32 queries a warp: there are no registers for wider heads.
pub(super) fn multiplies_32(case: &Case) -> Result<(), &'static str> {
    known_head_dim(case)?;
    multiplies(case)
}

/// What tensor cores multiply.
pub(super) fn multiplies(case: &Case) -> Result<(), &'static str> {
    const MAX_TILES: usize = 65_535;
    if case.head_dim == 256 {
        // Tiles that are decoded leave no room for wider heads.
        float_pages(case)?;
    } else {
        known_head_dim(case)?;
    }
    if case.formats != BLOCKS {
        float_pages(case)?;
    }
    if case.formats.float() == Some(Dtype::F32) {
        return Err("tensor cores do not multiply pages of f32");
    }
    if MmaTile::Mma16.grid(case)[1] > MAX_TILES {
        return Err("more than 65,535 tiles of queries");
    }
    Ok(())
}

/// As [`multiplies_32`], of floats.
pub(super) fn multiplies_floats(case: &Case) -> Result<(), &'static str> {
    float_pages(case)?;
    multiplies_32(case)
}

/// Maps of a layer's pages of K and of V, where there is a use for them and they can be made now.
pub(super) fn maps_of_pages(
    device: &Rc<Device>,
    maps: &mut TensorMaps,
    cache: &KvCache,
    pages: [DevicePtr<u8>; 2],
) -> Result<Option<[DevicePtr<TensorMap>; 2]>> {
    let layout = &cache.layout;
    let Some(dtype) = layout.formats.float().filter(|dtype| *dtype != Dtype::F32) else { return Ok(None) };
    if !device.has_wgmma() || !matches!(layout.head_dim, 64 | 128) {
        return Ok(None);
    }
    let rows = layout.num_pages * layout.num_key_value_heads * PAGE_SIZE as usize;
    let [k, v] = pages.map(|pages| {
        let mapped =
            Mapped { address: pages.as_raw(), rows, cols: layout.head_dim, dtype, box_rows: PAGE_SIZE };
        maps.get(device, mapped)
    });
    Ok(k?.zip(v?).map(|(k, v)| [k, v]))
}

/// What warpgroups multiply.
pub(super) fn multiplies_warpgroups(case: &Case) -> Result<(), &'static str> {
    if case.maps.is_none() {
        return Err("the device has no wgmma, or its pages no maps");
    }
    multiplies_floats(case)
}

/// Key-value heads and tiles of queries of [`wgmma`].
fn grid_of_warpgroups(case: &Case) -> [usize; 2] {
    let queries = case.arguments.num_tokens as usize * case.arguments.heads_per_group as usize;
    [case.arguments.num_key_value_heads as usize, queries.div_ceil(wgmma_queries(case.head_dim) as usize)]
}

/// Whether there are tiles enough for [`wgmma`], whose blocks have a multiprocessor each: with fewer the smaller ones of the other kernels are faster.
/// The bits are the same.
pub(super) fn suits_warpgroups(case: &Case, multiprocessors: u32) -> bool {
    let [heads, tiles] = grid_of_warpgroups(case);
    multiplies_warpgroups(case).is_ok() && heads * tiles >= multiprocessors as usize
}

/// Tiles of queries by warpgroups, for sequences of at least `min_rows` rows.
///
/// # Safety
/// As [`super::launch_plain`]; the case can be [`multiplied`](multiplies_warpgroups).
pub(super) unsafe fn launch_wgmma(device: &Device, case: &Case, min_rows: u32) -> Result<()> {
    let [heads, tiles] = grid_of_warpgroups(case);
    let config = LaunchConfig {
        grid: [dimension(OP, heads)?, dimension(OP, tiles)?, 1],
        block: [wgmma_threads(case.head_dim), 1, 1],
        shared_bytes: wgmma_shared_bytes(case.head_dim),
    };
    let Some([k_map, v_map]) = case.maps else {
        return Err(Error::Request(format!("{OP}: the pages have no maps")));
    };
    let arguments = AttentionArgs { min_rows, k_map, v_map, ..case.arguments };
    // SAFETY: the tiles cover all queries; the caller vouches for the case.
    unsafe { launch(device, wgmma(), &case.values(), &config, arguments) }
}

/// What a warp of the tensor core kernels takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MmaTile {
    /// 32 queries, 64 keys.
    Mma32,
    /// 32 queries, a page of keys.
    Mma32p,
    /// 16 queries, 64 keys.
    Mma16,
}

impl MmaTile {
    /// The kernels for pages in eight bits, or of floats.
    fn kernels(self, in_blocks: bool) -> &'static Kernels<AttentionArgs> {
        match self {
            Self::Mma32 if in_blocks => blocks32(),
            Self::Mma16 if in_blocks => blocks16(),
            Self::Mma32 => mma32(),
            Self::Mma32p => mma32p(),
            Self::Mma16 => mma16(),
        }
    }

    /// 16 queries of a warp, and 8 keys: how many times.
    fn size(self) -> (u32, u32) {
        match self {
            Self::Mma32 => (2, 8),
            Self::Mma32p => (2, 4),
            Self::Mma16 => (1, 8),
        }
    }

    /// Key-value heads and tiles of queries.
    fn grid(self, case: &Case) -> [usize; 2] {
        let group = case.arguments.heads_per_group as usize;
        let tiles =
            (case.arguments.num_tokens as usize * group).div_ceil(mma_queries(self.size().0) as usize);
        [case.arguments.num_key_value_heads as usize, tiles]
    }

    /// The one to take: 32 queries read keys and values half as often as 16, but not where that would leave multiprocessors
    /// with less than the two blocks that they have room for. The bits are the same.
    pub(super) fn best(case: &Case, multiprocessors: u32) -> Self {
        let [heads, tiles] = Self::Mma32.grid(case);
        if multiplies_32(case).is_err() || heads * tiles < 2 * multiprocessors as usize {
            Self::Mma16
        } else {
            Self::Mma32
        }
    }
}

/// Tiles of queries on tensor cores, for sequences of at least `min_rows` rows.
///
/// # Safety
/// As [`super::launch_plain`]; the case can be [`multiplied`](multiplies).
pub(super) unsafe fn launch_mma(device: &Device, case: &Case, min_rows: u32, tile: MmaTile) -> Result<()> {
    let [heads, tiles] = tile.grid(case);
    let (blocks, columns) = tile.size();
    let in_blocks = case.formats == BLOCKS;
    let shared_bytes = if in_blocks { mma_shared_bytes_of_blocks } else { mma_shared_bytes };
    let config = LaunchConfig {
        grid: [dimension(OP, heads)?, dimension(OP, tiles)?, 1],
        block: [MMA_BLOCK_SIZE, 1, 1],
        shared_bytes: shared_bytes(blocks, columns, case.head_dim),
    };
    let arguments = AttentionArgs { min_rows, ..case.arguments };
    // SAFETY: the tiles cover all queries; the caller vouches for the case.
    unsafe { launch(device, tile.kernels(in_blocks), &case.values(), &config, arguments) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::case;
    use super::*;

    #[test]
    fn warpgroups_multiply_two_byte_pages_that_have_maps() {
        let takes = |dtype, head_dim| multiplies_warpgroups(&case(dtype, head_dim)).is_ok();
        assert!(takes(Dtype::F16, 64) && takes(Dtype::Bf16, 128));
        assert!(!takes(Dtype::F16, 256) && !takes(Dtype::F32, 64));
        assert!(multiplies_warpgroups(&Case { maps: None, ..case(Dtype::F16, 64) }).is_err());
    }

    #[test]
    fn small_batches_get_the_kernel_with_more_blocks() {
        let prompt = |num_tokens| {
            let case = case(Dtype::Bf16, 64);
            Case { arguments: AttentionArgs { num_tokens, ..case.arguments }, ..case }
        };
        // 7 heads a group: 128 queries a tile are 18 tokens.
        assert_eq!([MmaTile::Mma32, MmaTile::Mma16].map(|tile| tile.grid(&prompt(512))), [[2, 28], [2, 56]]);
        let best = |tokens| MmaTile::best(&prompt(tokens), 132);
        assert_eq!([512, 2048, 8192].map(best), [MmaTile::Mma16, MmaTile::Mma16, MmaTile::Mma32]);
        assert!(multiplies(&prompt(1 << 20)).is_err(), "more tiles than a grid has");
    }
}
