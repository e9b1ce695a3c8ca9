//! Causal grouped-query attention over pages.
//!
//! Rows of sequences that decode, which have few, are split over the keys, to give every multiprocessor something to do; the others go
//! tile by tile, on tensor cores unless pages are f32. All kernels that do not use tensor cores give a row the same bits,
//! and so do those that do (see `gpu-kernels/src/attention/mod.rs`); the two differ by the roundings of queries and weights.

use super::batch::{BatchRows, CudaBatch, RowSplit, expect_bound};
use super::device::{Dependent, Device};
use super::kv_cache::number;
use super::launch::{Launch, dimension, launch};
use super::quantise_kv;
use super::tensor::{Activation, KvCache, Tensor};
use super::tensor_map::TensorMaps;
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_format::{KvFormat, KvFormats};
use cuda_std::launch::{DevicePtr, Kernels, LaunchConfig, Value};
use cuda_std::tensor_map::TensorMap;
use gpu_kernels::attention::any::any as any_pages;
use gpu_kernels::attention::decode::{MAX_WARPS, merge, split, split_warps};
use gpu_kernels::attention::decode_merged::merged;
use gpu_kernels::attention::decode_mma;
use gpu_kernels::attention::decode_staged;
use gpu_kernels::attention::prefill_mma::{blocks16, blocks32, mma16, mma32, mma32p};
use gpu_kernels::attention::prefill_tiled::*;
use gpu_kernels::attention::prefill_wgmma::wgmma;
use gpu_kernels::attention::{AttentionArgs, formats, max_splits, prefill};
use std::ops::Range;
use std::rc::Rc;

mod any;
mod merging;
mod mma;
mod newest;
mod workspace;

use any::{launch_any, launch_any_rows, launch_any_whole};
use merging::{Merging, decodes_on_tensor_cores, launch_merging, stages};
use mma::{
    MmaTile, launch_mma, launch_wgmma, maps_of_pages, multiplies, multiplies_32, multiplies_floats,
    multiplies_warpgroups, suits_warpgroups,
};
use newest::takes_newest;
pub(super) use workspace::Workspace;

pub(super) const OP: &str = "attention";

/// The variant whose warpgroups multiply.
const WGMMA: &str = "wgmma";

/// Rows up to which no kernel of tiles is thought of, unless it is asked for.
const FEW_ROWS: usize = 8;

/// What the kernels take, with pages of `formats` and out of `dtype`, and which rows are whose.
pub(super) struct Case {
    formats: KvFormats,
    dtype: Dtype,
    head_dim: u32,
    split: RowSplit,
    max_kv: u32,
    /// Which rows and splits is yet to be chosen.
    arguments: AttentionArgs,
    /// Room in the workspace, in partials of `[head_dim]`; at least one row of the longest sequence fits.
    places: usize,
    /// Bytes of shared memory that a block can have.
    shared_memory: usize,
    /// Of the pages of K and of V, where the device has the instructions of a warpgroup, for more than a few rows.
    maps: Option<[DevicePtr<TensorMap>; 2]>,
}

/// Values of the heads that there are kernels for.
pub(super) const HEAD_DIMS: [usize; 4] = [32, 64, 128, 256];

/// Most variants exist for these alone; [`splits`] and [`multiplies`] for more.
fn known_head_dim(case: &Case) -> Result<(), &'static str> {
    if matches!(case.head_dim, 64 | 128) { Ok(()) } else { Err("head_dim is neither 64 nor 128") }
}

/// K and V in eight bits.
const BLOCKS: KvFormats = KvFormats::both(KvFormat::Q8_0);

/// Those kernels that are made for one format of floats.
fn float_pages(case: &Case) -> Result<(), &'static str> {
    match case.formats.float() {
        Some(_) => Ok(()),
        None => Err("the pages are not floats of one format"),
    }
}

/// As [`any_head_dim`], of floats.
fn floats(case: &Case) -> Result<(), &'static str> {
    float_pages(case)?;
    any_head_dim(case)
}

/// The plain kernel exists for these.
fn any_head_dim(case: &Case) -> Result<(), &'static str> {
    match HEAD_DIMS.contains(&(case.head_dim as usize)) {
        true => Ok(()),
        false => Err("head_dim is not 32, 64, 128 or 256"),
    }
}

/// Pages and queries fit in shared memory.
fn splits(case: &Case) -> Result<(), &'static str> {
    float_pages(case)?;
    if case.head_dim == 256 && case.dtype != Dtype::F32 { Ok(()) } else { known_head_dim(case) }
}

/// Tiles of f32 do not fit in shared memory.
fn tiles(case: &Case) -> Result<(), &'static str> {
    float_pages(case)?;
    known_head_dim(case)?;
    if case.dtype == Dtype::F32 { Err("there are no tiles of f32") } else { Ok(()) }
}

/// One warp a head of a group, in one block.
fn merges(case: &Case) -> Result<(), &'static str> {
    float_pages(case)?;
    known_head_dim(case)?;
    if case.dtype == Dtype::F32 {
        return Err("pages of f32 are too large for it");
    }
    if case.arguments.heads_per_group > MAX_WARPS {
        return Err("more than 8 heads share K and V");
    }
    Ok(())
}

variants! { Case, Launch<Case>;
    "auto" [
        decode_mma::mma, decode_staged::staged, decode_mma::mma_blocks, merged, split, merge, wgmma, mma32, blocks32, mma16, blocks16, prefill::plain, any_pages
    ]: any_head_dim => launch_auto;
    WGMMA [wgmma]: multiplies_warpgroups => |device, case| unsafe { launch_wgmma(device, case, 1) };
    "mma32" [mma32, blocks32]: multiplies_32 => |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma32) };
    "mma32p" [mma32p]: multiplies_floats => |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma32p) };
    "mma16" [mma16, blocks16]: multiplies => |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma16) };
    "tiled" [tiled]: tiles => |device, case| unsafe { launch_tiled(device, case, tiled(), 1) };
    "decode_mma" [decode_mma::mma, decode_mma::mma_blocks]: decodes_on_tensor_cores
        => |device, case| unsafe { launch_merging(device, case, Merging::TensorCores, &case.all_rows()) };
    "decode_staged" [decode_staged::staged]: stages
        => |device, case| unsafe { launch_merging(device, case, Merging::Staged, &case.all_rows()) };
    "merged" [merged]: merges
        => |device, case| unsafe { launch_merging(device, case, Merging::Lanes, &case.all_rows()) };
    "split" [split, merge]: splits
        => |device, case| unsafe { launch_split(device, case, &case.all_rows()) };
    "plain" [prefill::plain]: floats
        => |device, case| unsafe { launch_plain(device, case, prefill::plain(), 1) };
    "any" [any_pages, merge]: any_head_dim => launch_any_rows;
}

/// Rows that kernels of decoding compute: those of `range` whose sequences have at most `max_rows` rows and `max_keys` keys.
struct Rows {
    range: Range<usize>,
    max_rows: u32,
    max_keys: u32,
}

impl Case {
    /// Rows of sequences that decode.
    fn decode_rows(&self) -> Rows {
        let RowSplit { decode_rows, max_kv_decode, .. } = &self.split;
        Rows { range: decode_rows.clone(), max_rows: self.long_rows() - 1, max_keys: *max_kv_decode as u32 }
    }

    /// Rows of the shortest sequence that does not decode.
    fn long_rows(&self) -> u32 {
        self.split.most_rows as u32 + 1
    }

    fn all_rows(&self) -> Rows {
        let range = 0..self.arguments.num_tokens as usize;
        Rows { range, max_rows: u32::MAX, max_keys: self.max_kv }
    }

    /// What its kernels were made for: the format of pages, which are of one, and heads.
    fn values(&self) -> [Value; 2] {
        [self.formats.k.name().into(), self.head_dim.into()]
    }
}

/// Each row by the kernels that suit it: of a few rows, or more, in its sequence.
///
/// # Safety
/// The case is whole, its `head_dim` one that there are kernels for.
unsafe fn launch_auto(device: &Device, case: &Case) -> Result<()> {
    // SAFETY: every row is in one of the two sets; the caller vouches for the case.
    unsafe {
        let rows = case.decode_rows();
        if stages(case).is_ok() || decodes_on_tensor_cores(case).is_ok() {
            launch_merging(device, case, Merging::best(device, case, &rows), &rows)?;
        } else if merges(case).is_ok() {
            launch_merging(device, case, Merging::Lanes, &rows)?;
        } else if splits(case).is_ok() {
            launch_split(device, case, &rows)?;
        } else if float_pages(case).is_err() {
            launch_any(device, case, &rows)?;
        } else {
            return launch_plain(device, case, prefill::plain(), 1);
        }
        if !case.split.has_long {
            return Ok(());
        }
        if suits_warpgroups(case, device.info().multiprocessors) {
            launch_wgmma(device, case, case.long_rows())
        } else if multiplies(case).is_ok() {
            launch_mma(device, case, case.long_rows(), MmaTile::best(case, device.info().multiprocessors))
        } else if float_pages(case).is_err() {
            launch_any_whole(device, case)
        } else {
            launch_plain(device, case, prefill::plain(), case.long_rows())
        }
    }
}

/// A warp a row and head, for sequences of at least `min_rows` rows.
///
/// # Safety
/// The case is whole and one for the kernel.
unsafe fn launch_plain(
    device: &Device,
    case: &Case,
    kernels: &Kernels<AttentionArgs>,
    min_rows: u32,
) -> Result<()> {
    let arguments = AttentionArgs { min_rows, ..case.arguments };
    let grid = [arguments.num_tokens, arguments.num_attention_heads.div_ceil(prefill::WARPS), 1];
    let config = LaunchConfig { grid, block: [prefill::BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a row of blocks for each token; the caller vouches for the case.
    unsafe { launch(device, kernels, &case.values(), &config, arguments) }
}

/// Tiles of queries, for sequences of at least `min_rows` rows.
///
/// # Safety
/// As [`launch_plain`].
unsafe fn launch_tiled(
    device: &Device,
    case: &Case,
    kernels: &Kernels<AttentionArgs>,
    min_rows: u32,
) -> Result<()> {
    let arguments = AttentionArgs { min_rows, ..case.arguments };
    let queries = arguments.num_tokens as usize * arguments.heads_per_group as usize;
    let tiles = dimension(OP, queries.div_ceil(TILED_QUERIES as usize))?;
    let grid = [tiles, arguments.num_key_value_heads, 1];
    let config = LaunchConfig { grid, block: [TILED_BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: the tiles cover all queries; the caller vouches for the case.
    unsafe { launch(device, kernels, &case.values(), &config, arguments) }
}

/// Splits and their merge.
///
/// # Safety
/// As [`launch_plain`].
unsafe fn launch_split(device: &Device, case: &Case, rows: &Rows) -> Result<()> {
    let num_splits = max_splits(rows.max_keys);
    let warps = split_warps(case.arguments.heads_per_group);
    in_parts(case, rows, num_splits, |count, arguments| {
        let AttentionArgs { num_attention_heads, num_key_value_heads, .. } = arguments;
        let of_splits = LaunchConfig {
            grid: [count, num_key_value_heads, num_splits],
            block: [32 * warps, 1, 1],
            shared_bytes: 0,
        };
        let of_merge = LaunchConfig {
            grid: [count, num_attention_heads, 1],
            block: [case.head_dim, 1, 1],
            shared_bytes: 0,
        };
        // SAFETY: a block for each row, key-value head and split, for which the workspace has room, then on the same stream a
        // thread for each dimension of each row and head. The caller vouches for the case.
        unsafe {
            launch(&Dependent(device), split(), &case.values(), &of_splits, arguments)?;
            launch(&Dependent(device), merge(), &[case.dtype.name().into()], &of_merge, arguments)
        }
    })
}

/// Calls `launch` with a number of rows and their arguments, for as many rows at once as the workspace has room for.
fn in_parts(
    case: &Case,
    rows: &Rows,
    num_splits: u32,
    mut launch: impl FnMut(u32, AttentionArgs) -> Result<()>,
) -> Result<()> {
    let &Rows { ref range, max_rows, max_keys } = rows;
    let of_row = num_splits.max(1) as usize * case.arguments.num_attention_heads as usize;
    let rows_at_once = case.places / of_row;
    if rows_at_once == 0 {
        return Err(Error::Request(format!(
            "{OP}: {max_keys} keys are more than the workspace was made for"
        )));
    }
    for first in range.clone().step_by(rows_at_once) {
        let count = dimension(OP, (range.end - first).min(rows_at_once))?;
        let first_row = dimension(OP, first)?;
        launch(count, AttentionArgs { first_row, max_rows, num_splits, ..case.arguments })?;
    }
    Ok(())
}

/// The operands of [`attention`].
pub(super) struct Attention<'a> {
    pub maps: &'a mut TensorMaps,
    pub batch: &'a CudaBatch,
    /// Of the batch: all, or those that need logits.
    pub rows: BatchRows<'a>,
    pub layer: usize,
    pub num_attention_heads: usize,
    pub q: &'a Tensor,
    pub cache: &'a KvCache,
    pub workspace: &'a mut Workspace,
    pub out: &'a mut Activation,
}

/// `softmax(q · kᵀ / sqrt(head_dim)) · v`: `[num_tokens, num_attention_heads * head_dim]`.
pub(super) fn attention(device: &Rc<Device>, choice: &KernelChoice, operands: Attention) -> Result<()> {
    let Attention { maps, batch, rows, layer, num_attention_heads, q, cache, workspace, out } = operands;
    let shape = &batch.shape;
    let layout = &cache.layout;
    let (num_key_value_heads, head_dim) = (layout.num_key_value_heads, layout.head_dim);
    if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(Error::Request(format!(
            "{OP}: {num_key_value_heads} key-value heads do not divide {num_attention_heads} attention heads"
        )));
    }
    let cols = num_attention_heads * head_dim;
    let n = rows.split.num_rows;
    q.expect(OP, "q", n, cols)?;
    let dtype = layout.formats.float().unwrap_or(out.dtype);
    out.expect(OP, "out", dtype, n, cols)?;
    expect_bound(OP, "page", shape.page_bound, layout.num_pages)?;
    let (k_pages, v_pages) = cache.layer(OP, layer)?;
    if n == 0 || num_attention_heads == 0 {
        return Ok(());
    }
    let arguments = AttentionArgs {
        num_tokens: dimension(OP, n)?,
        num_attention_heads: dimension(OP, num_attention_heads)?,
        num_key_value_heads: dimension(OP, num_key_value_heads)?,
        heads_per_group: dimension(OP, num_attention_heads / num_key_value_heads)?,
        min_rows: 1,
        first_row: 0,
        max_rows: u32::MAX,
        num_splits: 1,
        splits_at_once: 1,
        starts_next_late: workspace.starts_next_late.into(),
        sequence_of_token: rows.sequence_of_token,
        query_start: rows.query_start,
        kv_len: batch.kv_len(),
        block_table: batch.block_table(),
        max_blocks: dimension(OP, shape.max_blocks)?,
        q: q.ptr(),
        k_format: number(layout.formats.k),
        v_format: number(layout.formats.v),
        out_format: number(KvFormat::Float(dtype)),
        new_format: formats::NONE,
        k_new: DevicePtr::from_raw(0),
        v_new: DevicePtr::from_raw(0),
        k_pages,
        v_pages,
        k_map: DevicePtr::from_raw(0),
        v_map: DevicePtr::from_raw(0),
        partials: workspace.partials.ptr_mut(),
        statistics: workspace.statistics.ptr_mut(),
        counters: workspace.counters.ptr_mut(),
        out: out.ptr_mut(),
    };
    let wants_maps = n > FEW_ROWS || choice.get(OP) == Some(WGMMA);
    let maps = if wants_maps { maps_of_pages(device, maps, cache, [k_pages, v_pages])? } else { None };
    let mut case = Case {
        formats: layout.formats,
        dtype,
        head_dim: dimension(OP, head_dim)?,
        split: rows.split.clone(),
        max_kv: dimension(OP, shape.max_kv)?,
        arguments,
        places: workspace.places,
        shared_memory: device.info().shared_memory_per_block,
        maps,
    };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    if !takes_newest(&mut case, variant.name, cache, layer, shape.num_tokens) {
        quantise_kv::store(device, choice, cache)?;
    }
    // SAFETY: shapes and pages were checked; the batch's arrays were checked against each other when they went up;
    // out and the workspace are borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_std::launch::DevicePtrMut;

    pub(super) fn case(dtype: Dtype, head_dim: u32) -> Case {
        let (words, bytes) = (DevicePtr::from_raw(0), DevicePtr::from_raw(0));
        let arguments = AttentionArgs {
            num_tokens: 1,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            heads_per_group: 7,
            min_rows: 1,
            first_row: 0,
            max_rows: 1,
            num_splits: 1,
            splits_at_once: 1,
            starts_next_late: 0,
            sequence_of_token: words,
            query_start: words,
            kv_len: words,
            block_table: words,
            max_blocks: 1,
            q: DevicePtr::from_raw(0),
            k_format: 0,
            v_format: 0,
            out_format: 0,
            new_format: formats::NONE,
            k_new: bytes,
            v_new: bytes,
            k_pages: bytes,
            v_pages: bytes,
            k_map: DevicePtr::from_raw(0),
            v_map: DevicePtr::from_raw(0),
            partials: DevicePtrMut::from_raw(0),
            statistics: DevicePtrMut::from_raw(0),
            counters: DevicePtrMut::from_raw(0),
            out: DevicePtrMut::from_raw(0),
        };
        Case {
            formats: dtype.into(),
            dtype,
            head_dim,
            split: RowSplit { num_rows: 1, most_rows: 1, decode_rows: 0..1, ..RowSplit::default() },
            max_kv: 1,
            arguments,
            places: 14,
            shared_memory: 227 << 10,
            maps: Some([DevicePtr::from_raw(0); 2]),
        }
    }

    #[test]
    fn pages_of_eight_bits_and_of_two_formats_have_their_kernels() {
        let of = |formats, head_dim| Case { formats, ..case(Dtype::Bf16, head_dim) };
        let takes = |case: &Case, name| select(OP, VARIANTS, case, Some(name)).is_ok();
        let mixed = KvFormats { k: KvFormat::Q8_0, v: KvFormat::Float(Dtype::Bf16) };
        for (formats, head_dim, fast) in [(BLOCKS, 64, true), (BLOCKS, 256, false), (mixed, 64, false)] {
            let case = of(formats, head_dim);
            for name in ["decode_mma", "mma16", "mma32"] {
                assert_eq!(takes(&case, name), fast, "{name} {formats} {head_dim}");
            }
            for name in ["wgmma", "mma32p", "tiled", "merged", "split", "plain"] {
                assert!(!takes(&case, name), "{name} {formats} {head_dim}");
            }
            assert!(takes(&case, "any") && takes(&case, "auto"), "{formats} {head_dim}");
        }
        assert!(!takes(&of(BLOCKS, 96), "any"));
    }

    #[test]
    fn keys_wait_in_shared_memory_where_there_is_enough_of_it() {
        let of = |head_dim, shared_memory| {
            let case = Case { shared_memory, ..case(Dtype::F16, head_dim) };
            select(OP, VARIANTS, &case, Some("decode_staged")).is_ok()
        };
        // What blocks can have of sm_90, sm_80, sm_89 and sm_75.
        let taken = [227, 163, 99, 64].map(|kib| [64, 128, 256].map(|head_dim| of(head_dim, kib << 10)));
        assert_eq!(taken, [[true; 3], [true, true, false], [true, false, false], [false; 3]]);
        assert!(!of(96, 227 << 10));
        assert!(select(OP, VARIANTS, &case(Dtype::Bf16, 64), Some("decode_staged")).is_err());
    }

    #[test]
    fn heads_of_other_sizes_and_tiles_of_f32_are_refused() {
        assert_eq!(select(OP, VARIANTS, &case(Dtype::F32, 64), None).unwrap().name, "auto");
        assert!(select(OP, VARIANTS, &case(Dtype::F32, 64), Some("tiled")).is_err());
        assert!(select(OP, VARIANTS, &case(Dtype::Bf16, 128), Some("tiled")).is_ok());
        assert!(select(OP, VARIANTS, &case(Dtype::F32, 64), Some("mma32")).is_err());
        assert!(select(OP, VARIANTS, &case(Dtype::F16, 128), Some("mma32")).is_ok());
        let error = select(OP, VARIANTS, &case(Dtype::Bf16, 96), None).err().unwrap();
        assert!(error.to_string().contains("is not 32, 64, 128 or 256"), "{error}");
        assert_eq!(select(OP, VARIANTS, &case(Dtype::F16, 256), None).unwrap().name, "auto");
        for (dtype, head_dim, splits) in
            [(Dtype::F16, 256, true), (Dtype::F32, 256, false), (Dtype::F16, 32, false)]
        {
            let case = case(dtype, head_dim);
            assert_eq!(select(OP, VARIANTS, &case, Some("split")).is_ok(), splits, "{dtype} {head_dim}");
            assert!(select(OP, VARIANTS, &case, Some("merged")).is_err(), "{dtype} {head_dim}");
            assert!(select(OP, VARIANTS, &case, Some("plain")).is_ok(), "{dtype} {head_dim}");
        }
    }
}
