//! What comes before attention.

use super::super::batch::{CudaBatch, expect_bound};
use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector};
use super::super::memory::DeviceBuffer;
use super::super::rope::RopeTable;
use super::super::tensor::{KvCache, Tensor, Weight};
use super::super::variant::{KernelChoice, Variant, select};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, norm_fits, persistent};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_cache::PAGE_SIZE;
use crate::ops::Qkv;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::fused::mma::MAX_NORM_WARPS;
use gpu_kernels::fused::mma::norm_qkv_rope::{self as mma, *};
use gpu_kernels::fused::norm_qkv_rope::{self as lanes, *};
use gpu_kernels::fused::{MAX_ROWS as FEW, stage_bytes};

pub(super) const OP: &str = "norm_qkv_rope";

/// Arrays as the kernels describe them, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights and pages of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    n: u32,
    hidden_size: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    x: DevicePtr<f32>,
    norm: DevicePtr<f32>,
    eps: f32,
    /// Of Q, K and V.
    weights: [DevicePtr<u8>; 3],
    biases: [DevicePtr<f32>; 3],
    positions: DevicePtr<u32>,
    slots: DevicePtr<u32>,
    cos: DevicePtr<f32>,
    sin: DevicePtr<f32>,
    q: DevicePtrMut<f32>,
    k_pages: DevicePtrMut<u8>,
    v_pages: DevicePtrMut<u8>,
}

/// Calls `$kernel` with the case's arguments and, before the arrays, the `$depth` of those that stream.
macro_rules! call {
    ($kernel:path, $device:expr, $config:expr, $case:expr $(, $depth:expr)?) => {
        $kernel(
            &Dependent($device),
            $config,
            $case.n,
            $case.hidden_size,
            $case.heads,
            $case.kv_heads,
            $case.head_dim,
            $($depth,)?
            $case.x,
            $case.norm,
            $case.eps,
            $case.weights[0].cast(),
            $case.weights[1].cast(),
            $case.weights[2].cast(),
            $case.biases[0],
            $case.biases[1],
            $case.biases[2],
            $case.positions,
            $case.slots,
            $case.cos,
            $case.sin,
            $case.q,
            $case.k_pages.cast(),
            $case.v_pages.cast(),
        )
    };
}

/// Pairs of values that are rotated together.
fn pairs(case: &Case) -> u32 {
    (case.heads + 2 * case.kv_heads) * case.head_dim / 2
}

pub(super) const VARIANTS: [Variant<Case, Launch<Case>>; 2] = [
    Variant {
        name: MMA,
        kernels: &["norm_qkv_rope_*_mma_one", "norm_qkv_rope_*_mma_few", "norm_qkv_rope_*_mma_eight"],
        eligible: |case| {
            f16_only(case.dtype)?;
            norm_fits(case.n, case.hidden_size)?;
            if (case.head_dim / 2).is_multiple_of(mma::PAIRS_PER_BLOCK) {
                Ok(())
            } else {
                Err("head_dim is not a multiple of 16")
            }
        },
        // SAFETY: a block for each tile; the case is whole.
        launch: |device, case| unsafe {
            let tiles = pairs(case) / mma::PAIRS_PER_BLOCK;
            let mut shape = StreamShape::new(device, tiles, case.hidden_size, MAX_NORM_WARPS);
            shape.blocks = tiles.max(1);
            let (config, depth) = shape.normed(case.n);
            match case.n {
                1 => call!(norm_qkv_rope_f16_mma_one, device, &config, case, depth),
                2..=FEW => call!(norm_qkv_rope_f16_mma_few, device, &config, case, depth),
                _ => call!(norm_qkv_rope_f16_mma_eight, device, &config, case, depth),
            }
        },
    },
    Variant {
        name: "lanes",
        kernels: &["norm_qkv_rope_*_one", "norm_qkv_rope_*_few"],
        eligible: |case| lanes_fit(case.n, case.hidden_size),
        // SAFETY: any grid does; the case is whole.
        launch: |device, case| unsafe {
            let blocks = pairs(case).div_ceil(lanes::PAIRS_PER_BLOCK);
            let shared_bytes = stage_bytes(case.n, case.hidden_size);
            let config = persistent(device, blocks, 2, lanes::BLOCK_SIZE, shared_bytes);
            match (case.n, case.dtype) {
                (1, Dtype::F16) => call!(norm_qkv_rope_f16_one, device, &config, case),
                (1, _) => call!(norm_qkv_rope_bf16_one, device, &config, case),
                (_, Dtype::F16) => call!(norm_qkv_rope_f16_few, device, &config, case),
                _ => call!(norm_qkv_rope_bf16_few, device, &config, case),
            }
        },
    },
];

/// [`crate::ops::Ops::norm_qkv_rope`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_qkv_rope(
    device: &Device,
    choice: &KernelChoice,
    batch: &CudaBatch,
    table: &RopeTable,
    layer: usize,
    x: &Tensor,
    weights: &Qkv<Weight, DeviceBuffer<f32>>,
    q: &mut Tensor,
    cache: &mut KvCache,
) -> Result<()> {
    let (n, layout) = (batch.shape.num_tokens, cache.layout);
    let (dtype, hidden_size, head_dim) = (layout.dtype, x.cols, layout.head_dim);
    expect_eligible(OP, n, dtype, hidden_size)?;
    x.expect(OP, "x", n, hidden_size)?;
    expect_vector(OP, "norm", weights.norm, hidden_size)?;
    let kv_size = layout.num_key_value_heads * head_dim;
    for (name, weight, bias, rows) in [
        ("q", weights.q, weights.q_bias, q.cols),
        ("k", weights.k, weights.k_bias, kv_size),
        ("v", weights.v, weights.v_bias, kv_size),
    ] {
        weight.0.expect(OP, name, dtype, rows, hidden_size)?;
        if let Some(bias) = bias {
            expect_vector(OP, name, bias, rows)?;
        }
    }
    q.expect(OP, "q", n, q.cols)?;
    expect_bound(OP, "position", batch.shape.position_bound, table.max_positions)?;
    expect_bound(OP, "slot", batch.shape.slot_bound, layout.num_pages * PAGE_SIZE)?;
    if head_dim != table.head_dim || !q.cols.is_multiple_of(head_dim) {
        return Err(Error::Request(format!(
            "{OP}: q has {} columns, which are no heads of {head_dim}",
            q.cols
        )));
    }
    let (k_pages, v_pages) = cache.layer_mut(OP, layer)?;
    let bias = |bias: Option<&DeviceBuffer<f32>>| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr);
    let case = Case {
        dtype,
        n: dimension(OP, n)?,
        hidden_size: dimension(OP, hidden_size)?,
        heads: dimension(OP, q.cols / head_dim)?,
        kv_heads: dimension(OP, layout.num_key_value_heads)?,
        head_dim: dimension(OP, head_dim)?,
        x: x.ptr(),
        norm: weights.norm.ptr(),
        eps: weights.eps,
        weights: [weights.q, weights.k, weights.v].map(|weight| weight.0.ptr()),
        biases: [weights.q_bias, weights.k_bias, weights.v_bias].map(bias),
        positions: batch.positions(),
        slots: batch.slots(),
        cos: table.cos.ptr(),
        sin: table.sin.ptr(),
        q: q.ptr_mut(),
        k_pages,
        v_pages,
    };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes, positions and slots were checked; q and the pages are borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
