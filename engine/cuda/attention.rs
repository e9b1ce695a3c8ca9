//! Causal grouped-query attention over pages.
//!
//! Rows that are their sequence's only one are split over the keys, to give every multiprocessor something to do; the others go
//! tile by tile, on tensor cores unless pages are f32. All kernels that do not use tensor cores give a row the same bits,
//! and so do those that do (see `gpu-kernels/src/attention/mod.rs`); the two differ by the roundings of queries and weights.

use super::batch::{BatchRows, CudaBatch, expect_bound};
use super::device::{Dependent, Device};
use super::launch::{Launch, by_dtype, dimension};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, KvCache, Tensor};
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::attention::decode::*;
use gpu_kernels::attention::decode_merged::*;
use gpu_kernels::attention::decode_mma::{
    self, MAX_GROUP, attention_decode_f16_mma_h64, attention_decode_f16_mma_h128,
};
use gpu_kernels::attention::prefill::{self, *};
use gpu_kernels::attention::*;
use qernel_core::batch::BatchLimits;
use std::ops::Range;
use std::rc::Rc;

mod mma;

use mma::{MmaTile, launch_mma, multiplies};

pub(super) const OP: &str = "attention";

/// The most bytes that the splits of one launch may take; rows beyond are computed by another launch.
const MAX_WORKSPACE_BYTES: usize = 64 << 20;

/// Where the split kernel leaves what the merge kernel puts together.
pub(super) struct Workspace {
    /// f32 `[rows, num_attention_heads, num_splits, head_dim]`, for as many rows as there is room for.
    partials: DeviceBuffer<f32>,
    /// f32 `[rows, num_attention_heads, num_splits, 2]`
    statistics: DeviceBuffer<f32>,
    /// For the merged kernel, which leaves zeros: u32 `[rows, num_key_value_heads]`, at most one for each place.
    counters: DeviceBuffer<u32>,
    /// Room, counted in `[head_dim]` partials.
    places: usize,
}

/// Room for the splits of one launch, in partials of `[head_dim]`.
fn places(limits: &BatchLimits, max_model_len: usize, num_heads: usize, head_dim: usize) -> usize {
    let splits = max_splits(u32::try_from(max_model_len).unwrap_or(u32::MAX)) as usize;
    let row = splits.max(1) * num_heads;
    let rows = (MAX_WORKSPACE_BYTES / 4 / (row * head_dim).max(1)).clamp(1, limits.max_num_sequences.max(1));
    rows * row
}

impl Workspace {
    pub(super) fn new(
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
        })
    }

    /// Bytes that [`Workspace::new`] takes.
    pub(super) fn bytes(
        limits: &BatchLimits,
        max_model_len: usize,
        num_heads: usize,
        head_dim: usize,
    ) -> usize {
        4 * (head_dim + 3) * places(limits, max_model_len, num_heads, head_dim)
    }
}

/// Arrays as the kernels' module describes them, all of one batch; K and V pages and out of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    head_dim: usize,
    num_tokens: u32,
    num_attention_heads: u32,
    /// Divides `num_attention_heads`.
    num_key_value_heads: u32,
    /// Rows that are their sequence's only one lie in here.
    single_rows: Range<usize>,
    max_kv_single: u32,
    max_kv: u32,
    has_multiple: bool,
    sequence_of_token: DevicePtr<u32>,
    query_start: DevicePtr<u32>,
    kv_len: DevicePtr<u32>,
    block_table: DevicePtr<u32>,
    max_blocks: u32,
    q: DevicePtr<f32>,
    k_pages: DevicePtr<u8>,
    v_pages: DevicePtr<u8>,
    out: DevicePtrMut<u8>,
    partials: DevicePtrMut<f32>,
    statistics: DevicePtrMut<f32>,
    counters: DevicePtrMut<u32>,
    /// Room in the workspace, in partials of `[head_dim]`; at least one row of the longest sequence fits.
    places: usize,
}

/// The kernels exist for these.
fn known_head_dim(case: &Case) -> Result<(), &'static str> {
    if matches!(case.head_dim, 64 | 128) { Ok(()) } else { Err("head_dim is neither 64 nor 128") }
}

/// Tiles of f32 do not fit in shared memory.
fn tiles(case: &Case) -> Result<(), &'static str> {
    known_head_dim(case)?;
    if case.dtype == Dtype::F32 { Err("there are no tiles of f32") } else { Ok(()) }
}

/// One warp a head of a group, in one block.
fn merges(case: &Case) -> Result<(), &'static str> {
    known_head_dim(case)?;
    if case.dtype == Dtype::F32 {
        return Err("pages of f32 are too large for it");
    }
    if case.num_attention_heads / case.num_key_value_heads > MAX_WARPS {
        return Err("more than 8 heads share K and V");
    }
    Ok(())
}

/// Rows on tensor cores: queries of a group as rows of one instruction.
fn decodes_on_tensor_cores(case: &Case) -> Result<(), &'static str> {
    known_head_dim(case)?;
    if case.dtype != Dtype::F16 {
        return Err("the pages are not f16");
    }
    if case.num_attention_heads / case.num_key_value_heads > MAX_GROUP {
        return Err("more than 8 heads share K and V");
    }
    Ok(())
}

const DECODE_MMA_KERNELS: [&str; 2] = ["attention_decode_*_mma_h64", "attention_decode_*_mma_h128"];
const SPLIT_KERNELS: [&str; 3] = [
    "attention_decode_split_*_plain_h64",
    "attention_decode_split_*_plain_h128",
    "attention_decode_merge_*_plain",
];
const MERGED_KERNELS: [&str; 2] = ["attention_decode_*_merged_h64", "attention_decode_*_merged_h128"];
const TILED_KERNELS: [&str; 2] = ["attention_prefill_*_tiled_h64", "attention_prefill_*_tiled_h128"];
const MMA32_KERNELS: [&str; 2] = ["attention_prefill_*_mma32_h64", "attention_prefill_*_mma32_h128"];
const MMA32P_KERNELS: [&str; 2] = ["attention_prefill_*_mma32p_h64", "attention_prefill_*_mma32p_h128"];
const MMA16_KERNELS: [&str; 2] = ["attention_prefill_*_mma16_h64", "attention_prefill_*_mma16_h128"];
const PLAIN_KERNELS: [&str; 2] = ["attention_prefill_*_plain_h64", "attention_prefill_*_plain_h128"];

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 9] = [
    Variant {
        name: "auto",
        kernels: &[
            DECODE_MMA_KERNELS[0],
            DECODE_MMA_KERNELS[1],
            MERGED_KERNELS[0],
            MERGED_KERNELS[1],
            SPLIT_KERNELS[0],
            SPLIT_KERNELS[1],
            SPLIT_KERNELS[2],
            MMA32_KERNELS[0],
            MMA32_KERNELS[1],
            MMA16_KERNELS[0],
            MMA16_KERNELS[1],
            PLAIN_KERNELS[0],
            PLAIN_KERNELS[1],
        ],
        eligible: known_head_dim,
        // SAFETY: every row is in one of the two sets: one row, or more, in its sequence.
        launch: |device, case| unsafe {
            let (rows, max_keys) = (case.single_rows.clone(), case.max_kv_single);
            if decodes_on_tensor_cores(case).is_ok() {
                launch_merging(device, case, Merging::TensorCores, rows, 1, max_keys)?;
            } else if merges(case).is_ok() {
                launch_merging(device, case, Merging::Lanes, rows, 1, max_keys)?;
            } else {
                launch_split(device, case, rows, 1, max_keys)?;
            }
            if !case.has_multiple {
                return Ok(());
            }
            if multiplies(case).is_ok() {
                launch_mma(device, case, 2, MmaTile::best(case, device.info().multiprocessors))
            } else {
                launch_plain(device, case, 2)
            }
        },
    },
    Variant {
        name: "mma32",
        kernels: &MMA32_KERNELS,
        eligible: multiplies,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma32) },
    },
    Variant {
        name: "mma32p",
        kernels: &MMA32P_KERNELS,
        eligible: multiplies,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma32p) },
    },
    Variant {
        name: "mma16",
        kernels: &MMA16_KERNELS,
        eligible: multiplies,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe { launch_mma(device, case, 1, MmaTile::Mma16) },
    },
    Variant {
        name: "tiled",
        kernels: &TILED_KERNELS,
        eligible: tiles,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe { launch_tiled(device, case, 1) },
    },
    Variant {
        name: "decode_mma",
        kernels: &DECODE_MMA_KERNELS,
        eligible: decodes_on_tensor_cores,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe {
            launch_merging(
                device,
                case,
                Merging::TensorCores,
                0..case.num_tokens as usize,
                u32::MAX,
                case.max_kv,
            )
        },
    },
    Variant {
        name: "merged",
        kernels: &MERGED_KERNELS,
        eligible: merges,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe {
            launch_merging(device, case, Merging::Lanes, 0..case.num_tokens as usize, u32::MAX, case.max_kv)
        },
    },
    Variant {
        name: "split",
        kernels: &SPLIT_KERNELS,
        eligible: known_head_dim,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe {
            launch_split(device, case, 0..case.num_tokens as usize, u32::MAX, case.max_kv)
        },
    },
    Variant {
        name: "plain",
        kernels: &PLAIN_KERNELS,
        eligible: known_head_dim,
        // SAFETY: the case is whole.
        launch: |device, case| unsafe { launch_plain(device, case, 1) },
    },
];

/// The kernel of dtype and head_dim, with the same arguments.
macro_rules! by_head_dim {
    ($case:expr, $f32:path, $f16:path, $bf16:path; $f32_128:path, $f16_128:path, $bf16_128:path; $arguments:tt) => {
        if $case.head_dim == 64 {
            by_dtype!($case.dtype, $f32, $f16, $bf16, $arguments)
        } else {
            by_dtype!($case.dtype, $f32_128, $f16_128, $bf16_128, $arguments)
        }
    };
}

/// A warp a row and head, for sequences of at least `min_rows` rows.
///
/// # Safety
/// The case's arrays are as it says, and `head_dim` is 64 or 128.
unsafe fn launch_plain(device: &Device, case: &Case, min_rows: u32) -> Result<()> {
    let grid = [case.num_tokens, case.num_attention_heads.div_ceil(prefill::WARPS), 1];
    let config = LaunchConfig { grid, block: [prefill::BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a row of blocks for each token; the caller vouches for the arrays.
    unsafe {
        by_head_dim!(
            case,
            attention_prefill_f32_plain_h64,
            attention_prefill_f16_plain_h64,
            attention_prefill_bf16_plain_h64;
            attention_prefill_f32_plain_h128,
            attention_prefill_f16_plain_h128,
            attention_prefill_bf16_plain_h128;
            (
                device,
                &config,
                case.num_attention_heads,
                case.num_key_value_heads,
                min_rows,
                case.sequence_of_token,
                case.query_start,
                case.kv_len,
                case.block_table,
                case.max_blocks,
                case.q,
                case.k_pages.cast(),
                case.v_pages.cast(),
                case.out.cast(),
            )
        )
    }
}

/// Tiles of queries, for sequences of at least `min_rows` rows.
///
/// # Safety
/// As [`launch_plain`]; `dtype` is not f32.
unsafe fn launch_tiled(device: &Device, case: &Case, min_rows: u32) -> Result<()> {
    let group = (case.num_attention_heads / case.num_key_value_heads) as usize;
    let tiles = dimension(OP, (case.num_tokens as usize * group).div_ceil(TILED_QUERIES as usize))?;
    let grid = [tiles, case.num_key_value_heads, 1];
    let config = LaunchConfig { grid, block: [TILED_BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    macro_rules! call {
        ($kernel:path) => {
            // SAFETY: the tiles cover all queries; the caller vouches for the arrays.
            unsafe {
                $kernel(
                    device,
                    &config,
                    case.num_tokens,
                    case.num_attention_heads,
                    case.num_key_value_heads,
                    min_rows,
                    case.sequence_of_token,
                    case.query_start,
                    case.kv_len,
                    case.block_table,
                    case.max_blocks,
                    case.q,
                    case.k_pages.cast(),
                    case.v_pages.cast(),
                    case.out.cast(),
                )
            }
        };
    }
    match (case.dtype, case.head_dim) {
        (Dtype::F16, 64) => call!(attention_prefill_f16_tiled_h64),
        (Dtype::F16, _) => call!(attention_prefill_f16_tiled_h128),
        (Dtype::Bf16, 64) => call!(attention_prefill_bf16_tiled_h64),
        (Dtype::Bf16, _) => call!(attention_prefill_bf16_tiled_h128),
        (Dtype::F32, _) => Err(Error::Request(format!("{OP}: there are no tiles of f32"))),
    }
}

/// Splits and their merge, for `rows` whose sequences have at most `max_rows` rows and `max_keys` keys; as many rows
/// at once as the workspace has room for.
///
/// # Safety
/// As [`launch_plain`].
unsafe fn launch_split(
    device: &Device,
    case: &Case,
    rows: Range<usize>,
    max_rows: u32,
    max_keys: u32,
) -> Result<()> {
    let num_splits = max_splits(max_keys);
    let heads = case.num_attention_heads;
    let rows_at_once = rows_at_once(case, num_splits, max_keys)?;
    let warps = split_warps(heads / case.num_key_value_heads);
    let &Case { sequence_of_token, query_start, kv_len, block_table, partials, statistics, .. } = case;
    for first in rows.clone().step_by(rows_at_once) {
        let count = dimension(OP, (rows.end - first).min(rows_at_once))?;
        let first = dimension(OP, first)?;
        let grid = [count, case.num_key_value_heads, num_splits];
        let config = LaunchConfig { grid, block: [32 * warps, 1, 1], shared_bytes: 0 };
        // SAFETY: a block for each row, key-value head and split; the workspace has room for `count` rows. The caller
        // vouches for the arrays.
        unsafe {
            by_head_dim!(
                case,
                attention_decode_split_f32_plain_h64,
                attention_decode_split_f16_plain_h64,
                attention_decode_split_bf16_plain_h64;
                attention_decode_split_f32_plain_h128,
                attention_decode_split_f16_plain_h128,
                attention_decode_split_bf16_plain_h128;
                (
                    device,
                    &config,
                    heads,
                    case.num_key_value_heads,
                    first,
                    max_rows,
                    num_splits,
                    sequence_of_token,
                    query_start,
                    kv_len,
                    block_table,
                    case.max_blocks,
                    case.q,
                    case.k_pages.cast(),
                    case.v_pages.cast(),
                    partials,
                    statistics,
                )
            )?;
        }
        let config =
            LaunchConfig { grid: [count, heads, 1], block: [case.head_dim as u32, 1, 1], shared_bytes: 0 };
        // SAFETY: a thread for each dimension of each row and head, after the splits of the same rows on one stream.
        unsafe {
            by_dtype!(
                case.dtype,
                attention_decode_merge_f32_plain,
                attention_decode_merge_f16_plain,
                attention_decode_merge_bf16_plain,
                (
                    device,
                    &config,
                    heads,
                    first,
                    max_rows,
                    num_splits,
                    sequence_of_token,
                    query_start,
                    kv_len,
                    partials.into(),
                    statistics.into(),
                    case.out.cast(),
                )
            )?;
        }
    }
    Ok(())
}

/// The kernels whose last block of a row merges its splits.
#[derive(Clone, Copy, PartialEq)]
enum Merging {
    /// Where the case [`merges`].
    Lanes,
    /// Where the case [`decodes_on_tensor_cores`].
    TensorCores,
}

impl Merging {
    /// Threads of a block, and splits of rows of at most `max_keys` keys.
    fn block_and_splits(self, case: &Case, max_keys: u32) -> (u32, u32) {
        match self {
            Self::Lanes => (32 * (case.num_attention_heads / case.num_key_value_heads), max_splits(max_keys)),
            Self::TensorCores => (decode_mma::BLOCK_SIZE, decode_mma::max_splits(max_keys)),
        }
    }
}

/// Splits that the last block of each row merges; otherwise as [`launch_split`].
///
/// # Safety
/// As [`launch_plain`]; the case is one for `kernel`.
unsafe fn launch_merging(
    device: &Device,
    case: &Case,
    kernel: Merging,
    rows: Range<usize>,
    max_rows: u32,
    max_keys: u32,
) -> Result<()> {
    let (block, num_splits) = kernel.block_and_splits(case, max_keys);
    let heads = case.num_attention_heads;
    let rows_at_once = rows_at_once(case, num_splits, max_keys)?;
    for first in rows.clone().step_by(rows_at_once) {
        let count = dimension(OP, (rows.end - first).min(rows_at_once))?;
        let first = dimension(OP, first)?;
        let grid = [count, case.num_key_value_heads, num_splits];
        let config = LaunchConfig { grid, block: [block, 1, 1], shared_bytes: 0 };
        macro_rules! call {
            ($kernel:path) => {
                // SAFETY: a block for each row, key-value head and split; the workspace has room for `count` rows. The
                // caller vouches for the arrays.
                unsafe {
                    $kernel(
                        &Dependent(device),
                        &config,
                        heads,
                        case.num_key_value_heads,
                        first,
                        max_rows,
                        num_splits,
                        case.sequence_of_token,
                        case.query_start,
                        case.kv_len,
                        case.block_table,
                        case.max_blocks,
                        case.q,
                        case.k_pages.cast(),
                        case.v_pages.cast(),
                        case.partials,
                        case.statistics,
                        case.counters,
                        case.out.cast(),
                    )
                }
            };
        }
        match (case.dtype, case.head_dim) {
            (_, 64) if kernel == Merging::TensorCores => call!(attention_decode_f16_mma_h64),
            _ if kernel == Merging::TensorCores => call!(attention_decode_f16_mma_h128),
            (Dtype::F16, 64) => call!(attention_decode_f16_merged_h64),
            (Dtype::F16, _) => call!(attention_decode_f16_merged_h128),
            (_, 64) => call!(attention_decode_bf16_merged_h64),
            _ => call!(attention_decode_bf16_merged_h128),
        }?;
    }
    Ok(())
}

/// Rows whose splits have room in the workspace.
fn rows_at_once(case: &Case, num_splits: u32, max_keys: u32) -> Result<usize> {
    match case.places / (num_splits.max(1) as usize * case.num_attention_heads as usize) {
        0 => Err(Error::Request(format!("{OP}: {max_keys} keys are more than the workspace was made for"))),
        rows => Ok(rows),
    }
}

/// The operands of [`attention`].
pub(super) struct Attention<'a> {
    pub batch: &'a CudaBatch,
    /// Of the batch: all, or those whose logits are wanted.
    pub rows: BatchRows<'a>,
    pub layer: usize,
    pub num_attention_heads: usize,
    pub q: &'a Tensor,
    pub cache: &'a KvCache,
    pub workspace: &'a mut Workspace,
    pub out: &'a mut Activation,
}

/// `softmax(q · kᵀ / sqrt(head_dim)) · v`: `[num_tokens, num_attention_heads * head_dim]`.
pub(super) fn attention(device: &Device, choice: &KernelChoice, operands: Attention) -> Result<()> {
    let Attention { batch, rows, layer, num_attention_heads, q, cache, workspace, out } = operands;
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
    out.expect(OP, "out", layout.dtype, n, cols)?;
    expect_bound(OP, "page", shape.page_bound, layout.num_pages)?;
    let (k_pages, v_pages) = cache.layer(OP, layer)?;
    if n == 0 || num_attention_heads == 0 {
        return Ok(());
    }
    let case = Case {
        dtype: layout.dtype,
        head_dim,
        num_tokens: dimension(OP, n)?,
        num_attention_heads: dimension(OP, num_attention_heads)?,
        num_key_value_heads: dimension(OP, num_key_value_heads)?,
        single_rows: rows.split.single_rows.clone(),
        max_kv_single: dimension(OP, rows.split.max_kv_single)?,
        max_kv: dimension(OP, shape.max_kv)?,
        has_multiple: rows.split.has_multiple,
        sequence_of_token: rows.sequence_of_token,
        query_start: rows.query_start,
        kv_len: batch.kv_len(),
        block_table: batch.block_table(),
        max_blocks: dimension(OP, shape.max_blocks)?,
        q: q.ptr(),
        k_pages,
        v_pages,
        out: out.ptr_mut(),
        partials: workspace.partials.ptr_mut(),
        statistics: workspace.statistics.ptr_mut(),
        counters: workspace.counters.ptr_mut(),
        places: workspace.places,
    };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: shapes and pages were checked; the batch's arrays were checked against each other when they went up;
    // out and the workspace are borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn case(dtype: Dtype, head_dim: usize) -> Case {
        Case {
            dtype,
            head_dim,
            num_tokens: 1,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            single_rows: 0..1,
            max_kv_single: 1,
            max_kv: 1,
            has_multiple: false,
            sequence_of_token: DevicePtr::from_raw(0),
            query_start: DevicePtr::from_raw(0),
            kv_len: DevicePtr::from_raw(0),
            block_table: DevicePtr::from_raw(0),
            max_blocks: 1,
            q: DevicePtr::from_raw(0),
            k_pages: DevicePtr::from_raw(0),
            v_pages: DevicePtr::from_raw(0),
            out: DevicePtrMut::from_raw(0),
            partials: DevicePtrMut::from_raw(0),
            statistics: DevicePtrMut::from_raw(0),
            counters: DevicePtrMut::from_raw(0),
            places: 14,
        }
    }

    #[test]
    fn heads_of_other_sizes_and_tiles_of_f32_are_refused() {
        assert_eq!(select(OP, &VARIANTS, &case(Dtype::F32, 64), None).unwrap().name, "auto");
        assert!(select(OP, &VARIANTS, &case(Dtype::F32, 64), Some("tiled")).is_err());
        assert!(select(OP, &VARIANTS, &case(Dtype::Bf16, 128), Some("tiled")).is_ok());
        assert!(select(OP, &VARIANTS, &case(Dtype::F32, 64), Some("mma32")).is_err());
        assert!(select(OP, &VARIANTS, &case(Dtype::F16, 128), Some("mma32")).is_ok());
        let error = select(OP, &VARIANTS, &case(Dtype::Bf16, 96), None).err().unwrap();
        assert!(error.to_string().contains("neither 64 nor 128"), "{error}");
    }

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
