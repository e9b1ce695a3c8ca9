//! What comes before attention.

use super::super::batch::{CudaBatch, expect_bound};
use super::super::device::{Dependent, Device};
use super::super::launch::{Launch, dimension, expect_vector, launch};
use super::super::memory::DeviceBuffer;
use super::super::quantise_kv;
use super::super::rope::RopeTable;
use super::super::tensor::{Activation, KvCache, Tensor};
use super::super::units::Units;
use super::super::variant::{KernelChoice, select, variants};
use super::{
    MMA, StreamShape, UNITS, expect_eligible, f16_only, floats_only, lanes_fit, norm_fits, of_formats,
    persistent, rows_of_kernel, units_only, values,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::kv_layout::PAGE_SIZE;
use crate::ops::parts::RmsNorm;
use cuda_std::launch::{DevicePtr, Kernels, Value};
use gpu_kernels::fused::mma::{MAX_NORM_WARPS, norm_qkv_rope as mma};
use gpu_kernels::fused::norm_qkv_rope::*;
use gpu_kernels::fused::stage_bytes;
use gpu_kernels::fused::units::norm_qkv_rope as in_units;

pub(crate) const OP: &str = "norm_qkv_rope";

/// What the kernels take, of 1 to [`MAX_ROWS`](super::MAX_ROWS) rows; weights and pages of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    /// Q and V, where they are in units.
    units: Option<[Units; 2]>,
    /// `depth` is yet to be chosen.
    arguments: NormQkvRopeArgs,
}

/// Pairs of values that are rotated together.
fn pairs(case: &Case) -> u32 {
    let NormQkvRopeArgs { num_attention_heads, num_key_value_heads, head_dim, .. } = case.arguments;
    (num_attention_heads + 2 * num_key_value_heads) * head_dim / 2
}

variants! { Case, Launch<Case>;
    UNITS [in_units::units, in_units::mixed]: in_units_of_pairs => launch_units;
    MMA [mma::mma]: f16_heads => |device, case| unsafe { launch_mma(device, case, mma::mma()) };
    "lanes" [lanes]: few_rows => |device, case| unsafe { launch_lanes(device, case, lanes()) };
}

fn in_units_of_pairs(case: &Case) -> Result<(), &'static str> {
    units_only(case.units.map(|[q, _]| q))
}

fn f16_heads(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units.map(|[q, _]| q))?;
    f16_only(case.dtype)?;
    norm_fits(case.arguments.n, case.arguments.hidden_size)?;
    let is_multiple = (case.arguments.head_dim / 2).is_multiple_of(mma::PAIRS_PER_BLOCK);
    if is_multiple { Ok(()) } else { Err("head_dim is not a multiple of 16") }
}

fn few_rows(case: &Case) -> Result<(), &'static str> {
    floats_only(case.units.map(|[q, _]| q))?;
    lanes_fit(case.arguments.n, case.arguments.hidden_size)
}

/// # Safety
/// The case is whole, and in units.
unsafe fn launch_units(device: &Device, case: &Case) -> Result<()> {
    let Some([q, v]) = case.units else { return Err(Error::Request(format!("{OP}: not in units"))) };
    let NormQkvRopeArgs { n, num_attention_heads, num_key_value_heads, .. } = case.arguments;
    let tiles = pairs(case) / in_units::PAIRS_PER_TILE;
    let heads = num_attention_heads + 2 * num_key_value_heads;
    let (stream, v_blocks) = q.stream_of_parts(device, tiles, [heads, num_key_value_heads], &v, n);
    let arguments = NormQkvRopeArgs { depth: stream.depth, v_blocks, ..case.arguments };
    let (kernels, values) = kernels_of(q.format, v.format, n);
    // SAFETY: any grid does; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values, &stream.config, arguments) }
}

/// # Safety
/// The case is whole, its weights f16.
unsafe fn launch_mma(device: &Device, case: &Case, kernels: &Kernels<NormQkvRopeArgs>) -> Result<()> {
    let NormQkvRopeArgs { n, hidden_size, .. } = case.arguments;
    let tiles = pairs(case) / mma::PAIRS_PER_BLOCK;
    let shape = StreamShape::new(device, tiles, hidden_size, MAX_NORM_WARPS);
    let (config, depth) = shape.normed(n);
    let arguments = NormQkvRopeArgs { depth, ..case.arguments };
    let values = [case.dtype.name().into(), u32::from(tiles > shape.blocks).into(), rows_of_kernel(n).into()];
    // SAFETY: a block for each tile, or blocks of the kernel for many; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values, &config, arguments) }
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
    pub weights: QkvWeights<'a>,
    /// Likewise.
    pub biases: [Option<&'a DeviceBuffer<f32>>; 3],
}

/// Those of Q, K and V.
#[derive(Clone, Copy)]
pub(in super::super) enum QkvWeights<'a> {
    Floats([&'a Activation; 3]),
    /// Values that are rotated together side by side; K in the format of Q.
    Units([Units; 3]),
}

impl QkvWeights<'_> {
    /// Whether there is a kernel for units of these formats.
    pub fn are_known(q: Units, k: Units, v: Units) -> bool {
        q.format == k.format && takes_units(q.format, v.format)
    }
}

/// Whether there is a kernel for units of Q and K in one format and V in another.
pub fn takes_units(q: MatrixFormat, v: MatrixFormat) -> bool {
    let (kernels, values) = kernels_of(q, v, 1);
    kernels.get(&values).is_some()
}

/// The kernels of `n` rows for units of Q and K in one format and V in another, and which of them.
fn kernels_of(q: MatrixFormat, v: MatrixFormat, n: u32) -> (&'static Kernels<NormQkvRopeArgs>, Vec<Value>) {
    of_formats([in_units::units(), in_units::mixed()], [q, v], n)
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
    let dtype = match weights.weights {
        QkvWeights::Floats([q, ..]) => q.dtype,
        QkvWeights::Units(_) => Dtype::F16,
    };
    let (hidden_size, head_dim) = (x.cols, layout.head_dim);
    expect_eligible(OP, n, dtype, hidden_size)?;
    x.expect(OP, "x", n, hidden_size)?;
    expect_vector(OP, "norm", &weights.norm.weight, hidden_size)?;
    let [q_bias, k_bias, v_bias] = weights.biases;
    let kv_size = layout.num_key_value_heads * head_dim;
    let mut pointers = [DevicePtr::from_raw(0); 3];
    for (i, (name, bias, rows)) in
        [("q", q_bias, q.cols), ("k", k_bias, kv_size), ("v", v_bias, kv_size)].into_iter().enumerate()
    {
        pointers[i] = match weights.weights {
            QkvWeights::Floats(weights) => {
                weights[i].expect(OP, name, dtype, rows, hidden_size)?;
                weights[i].ptr()
            }
            QkvWeights::Units(units) => {
                let Units { rows: found, cols, span, .. } = units[i];
                if (found, cols, span) != (rows, hidden_size, head_dim / 2) {
                    return Err(Error::Request(format!(
                        "{OP}: {name} must be [{rows}, {hidden_size}] with halves of heads side by side"
                    )));
                }
                units[i]
                    .start()
                    .ok_or_else(|| Error::Request(format!("{OP}: {name} shares tiles with others")))?
            }
        };
        if let Some(bias) = bias {
            expect_vector(OP, name, bias, rows)?;
        }
    }
    let [q_weight, k_weight, v_weight] = pointers;
    let units = match weights.weights {
        QkvWeights::Floats(_) => None,
        QkvWeights::Units([q, k, v])
            if q.is_followed_by(q.rows, k) && (q.format != v.format || k.is_followed_by(k.rows, v)) =>
        {
            Some([q, v])
        }
        QkvWeights::Units(_) => {
            return Err(Error::Request(format!("{OP}: Q, K and V must be one behind the other")));
        }
    };
    q.expect(OP, "q", n, q.cols)?;
    expect_bound(OP, "position", batch.shape.position_bound, table.num_positions)?;
    expect_bound(OP, "slot", batch.shape.slot_bound, layout.num_pages * PAGE_SIZE)?;
    let to = cache.target(OP, layer, n, batch.slots(), dtype)?;
    if to.dtype != dtype {
        return Err(Error::Request(format!("{OP}: the pages are {} and the weights {dtype}", to.dtype)));
    }
    if head_dim != table.head_dim || !q.cols.is_multiple_of(head_dim) {
        return Err(Error::Request(format!(
            "{OP}: q has {} columns, which are no heads of {head_dim}",
            q.cols
        )));
    }
    let bias = |bias: Option<&DeviceBuffer<f32>>| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr);
    let arguments = NormQkvRopeArgs {
        n: dimension(OP, n)?,
        hidden_size: dimension(OP, hidden_size)?,
        num_attention_heads: dimension(OP, q.cols / head_dim)?,
        num_key_value_heads: dimension(OP, layout.num_key_value_heads)?,
        head_dim: dimension(OP, head_dim)?,
        depth: 0,
        v_blocks: 0,
        x: x.ptr(),
        norm: weights.norm.weight.ptr(),
        eps: weights.norm.eps,
        q_weight,
        k_weight,
        v_weight,
        q_bias: bias(q_bias),
        k_bias: bias(k_bias),
        v_bias: bias(v_bias),
        positions: batch.positions(),
        slots: to.slots,
        cos: table.cos.ptr(),
        sin: table.sin.ptr(),
        q: q.ptr_mut(),
        k_pages: to.k,
        v_pages: to.v,
    };
    let case = Case { dtype, units, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes, positions and slots were checked; q and the pages are borrowed alone.
    unsafe { (variant.launch)(device, &case)? };
    quantise_kv::leave(batch, layer, &to, cache)
}
