//! What comes before attention.

use super::super::batch::{CudaBatch, expect_bound};
use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector, launch};
use super::super::memory::DeviceBuffer;
use super::super::rope::RopeTable;
use super::super::tensor::{Activation, KvCache, Tensor};
use super::super::variant::{KernelChoice, select, variants};
use super::{MMA, StreamShape, expect_eligible, f16_only, lanes_fit, norm_fits, persistent, values};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use crate::ops::parts::RmsNorm;
use cuda_std::launch::{DevicePtr, Kernels};
use gpu_kernels::fused::mma::{MAX_NORM_WARPS, norm_qkv_rope as mma};
use gpu_kernels::fused::norm_qkv_rope::*;
use gpu_kernels::fused::stage_bytes;

pub(super) const OP: &str = "norm_qkv_rope";

/// What the kernels take, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights and pages of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    /// `depth` is yet to be chosen.
    arguments: NormQkvRopeArgs,
}

/// Pairs of values that are rotated together.
fn pairs(case: &Case) -> u32 {
    let NormQkvRopeArgs { num_attention_heads, num_key_value_heads, head_dim, .. } = case.arguments;
    (num_attention_heads + 2 * num_key_value_heads) * head_dim / 2
}

variants! { Case, Launch<Case>;
    MMA [mma::mma]: f16_heads => |device, case| unsafe { launch_mma(device, case, mma::mma()) };
    "lanes" [lanes]: few_rows => |device, case| unsafe { launch_lanes(device, case, lanes()) };
}

fn f16_heads(case: &Case) -> Result<(), &'static str> {
    f16_only(case.dtype)?;
    norm_fits(case.arguments.n, case.arguments.hidden_size)?;
    let is_multiple = (case.arguments.head_dim / 2).is_multiple_of(mma::PAIRS_PER_BLOCK);
    if is_multiple { Ok(()) } else { Err("head_dim is not a multiple of 16") }
}

fn few_rows(case: &Case) -> Result<(), &'static str> {
    lanes_fit(case.arguments.n, case.arguments.hidden_size)
}

/// # Safety
/// The case is whole, its weights f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<NormQkvRopeArgs>) -> Result<()> {
    let NormQkvRopeArgs { n, hidden_size, .. } = case.arguments;
    let tiles = pairs(case) / mma::PAIRS_PER_BLOCK;
    let mut shape = StreamShape::new(device, tiles, hidden_size, MAX_NORM_WARPS);
    shape.blocks = tiles.max(1);
    let (config, depth) = shape.normed(n);
    let arguments = NormQkvRopeArgs { depth, ..case.arguments };
    // SAFETY: a block for each tile; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&[case.dtype], n), &config, arguments) }
}

/// # Safety
/// The case is whole, of few rows.
unsafe fn launch_lanes(device: &Device, case: &Case, kernels: &Kernels<NormQkvRopeArgs>) -> Result<()> {
    let NormQkvRopeArgs { n, hidden_size, .. } = case.arguments;
    let blocks = pairs(case).div_ceil(PAIRS_PER_BLOCK);
    let config = persistent(device, blocks, 2, BLOCK_SIZE, stage_bytes(n, hidden_size));
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values(&[case.dtype], n), &config, case.arguments) }
}

/// What the kernels read of a layer: the parts of [`crate::ops::parts::AttentionIn`] that they take.
pub(in super::super) struct Qkv<'a> {
    pub norm: &'a RmsNorm<DeviceBuffer<f32>>,
    /// Of Q, K and V.
    pub weights: [&'a Activation; 3],
    /// Likewise.
    pub biases: [Option<&'a DeviceBuffer<f32>>; 3],
}

/// [`crate::ops::Ops::norm_qkv_rope`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(in super::super) fn norm_qkv_rope(
    device: &Device,
    choice: &KernelChoice,
    batch: &CudaBatch,
    table: &RopeTable,
    layer: usize,
    x: &Tensor,
    weights: &Qkv,
    q: &mut Tensor,
    cache: &mut KvCache,
) -> Result<()> {
    let (n, layout) = (batch.shape.num_tokens, cache.layout);
    let (dtype, hidden_size, head_dim) = (weights.weights[0].dtype, x.cols, layout.head_dim);
    expect_eligible(OP, n, dtype, hidden_size)?;
    x.expect(OP, "x", n, hidden_size)?;
    expect_vector(OP, "norm", &weights.norm.weight, hidden_size)?;
    let ([q_proj, k_proj, v_proj], [q_bias, k_bias, v_bias]) = (weights.weights, weights.biases);
    let kv_size = layout.num_key_value_heads * head_dim;
    for (name, weight, bias, rows) in
        [("q", q_proj, q_bias, q.cols), ("k", k_proj, k_bias, kv_size), ("v", v_proj, v_bias, kv_size)]
    {
        weight.expect(OP, name, dtype, rows, hidden_size)?;
        if let Some(bias) = bias {
            expect_vector(OP, name, bias, rows)?;
        }
    }
    q.expect(OP, "q", n, q.cols)?;
    expect_bound(OP, "position", batch.shape.position_bound, table.num_positions)?;
    expect_bound(OP, "slot", batch.shape.slot_bound, layout.num_pages * PAGE_SIZE)?;
    if layout.dtype != dtype {
        return Err(Error::Request(format!("{OP}: the pages are {} and the weights {dtype}", layout.dtype)));
    }
    if head_dim != table.head_dim || !q.cols.is_multiple_of(head_dim) {
        return Err(Error::Request(format!(
            "{OP}: q has {} columns, which are no heads of {head_dim}",
            q.cols
        )));
    }
    let (k_pages, v_pages) = cache.layer_mut(OP, layer)?;
    let bias = |bias: Option<&DeviceBuffer<f32>>| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr);
    let arguments = NormQkvRopeArgs {
        n: dimension(OP, n)?,
        hidden_size: dimension(OP, hidden_size)?,
        num_attention_heads: dimension(OP, q.cols / head_dim)?,
        num_key_value_heads: dimension(OP, layout.num_key_value_heads)?,
        head_dim: dimension(OP, head_dim)?,
        depth: 0,
        x: x.ptr(),
        norm: weights.norm.weight.ptr(),
        eps: weights.norm.eps,
        q_weight: q_proj.ptr(),
        k_weight: k_proj.ptr(),
        v_weight: v_proj.ptr(),
        q_bias: bias(q_bias),
        k_bias: bias(k_bias),
        v_bias: bias(v_bias),
        positions: batch.positions(),
        slots: batch.slots(),
        cos: table.cos.ptr(),
        sin: table.sin.ptr(),
        q: q.ptr_mut(),
        k_pages,
        v_pages,
    };
    let case = Case { dtype, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes, positions and slots were checked; q and the pages are borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
