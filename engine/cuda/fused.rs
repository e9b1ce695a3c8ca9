//! A decoder layer in few kernels, for batches of few rows (`gpu-kernels/src/fused`).

use super::add_bias::expect_vector;
use super::batch::{CudaBatch, expect_bound};
use super::device::{Dependent, Device};
use super::launch::dimension;
use super::memory::DeviceBuffer;
use super::rope::RopeTable;
use super::tensor::{Activation, KvCache, Tensor, Weight};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_cache::PAGE_SIZE;
use crate::ops::Qkv;
use cuda_std::launch::{DevicePtr, LaunchConfig};
use gpu_kernels::fused::matmul_add::*;
use gpu_kernels::fused::norm_gate_up::{self, *};
use gpu_kernels::fused::norm_matmul::{self, *};
use gpu_kernels::fused::norm_qkv_rope::{self, *};
use gpu_kernels::fused::{WORD, stage_bytes};

/// The most rows that the fused kernels take.
pub const MAX_ROWS: usize = gpu_kernels::fused::MAX_ROWS as usize;

/// How a layer is computed: `fused`, or `separate` operations.
pub(super) const OP: &str = "layer";
pub(super) const FUSED: &str = "fused";
pub(super) const VARIANTS: [&str; 2] = [FUSED, "separate"];

/// Of [`matmul_add`].
pub(super) const MATMUL_ADD_KERNELS: [&str; 4] =
    ["matmul_add_*_short_one", "matmul_add_*_long_one", "matmul_add_*_short_few", "matmul_add_*_long_few"];

/// The most shared memory that staged rows may take: two blocks of such size fit on a multiprocessor.
pub(super) const MAX_STAGE_BYTES: u32 = 100 << 10;

/// Whether the kernels take `n` rows of a model with these widths.
pub(super) fn is_eligible(n: usize, dtype: Dtype, widths: &[usize]) -> bool {
    let fits = |&width: &usize| {
        width.is_multiple_of(WORD as usize) && n * width * 4 <= MAX_STAGE_BYTES as usize && width > 0
    };
    (1..=MAX_ROWS).contains(&n) && dtype != Dtype::F32 && widths.iter().all(fits)
}

/// Calls the kernel of the dtype for one row or for few.
macro_rules! by_rows {
    ($n:expr, $dtype:expr, $f16_one:path, $bf16_one:path, $f16_few:path, $bf16_few:path, ($($argument:expr),* $(,)?)) => {
        match ($n, $dtype) {
            (1, Dtype::F16) => $f16_one($($argument),*),
            (1, _) => $bf16_one($($argument),*),
            (_, Dtype::F16) => $f16_few($($argument),*),
            _ => $bf16_few($($argument),*),
        }
    };
}

/// Refuses what the kernels do not take.
fn expect_eligible(op: &str, n: usize, dtype: Dtype, width: usize) -> Result<()> {
    if is_eligible(n, dtype, &[width]) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{op}: the fused kernels take 1 to {MAX_ROWS} rows of f16 or bf16 weights with multiples of {WORD} columns, not {n} \
         rows of {dtype} with {width}"
    )))
}

/// A grid of as many blocks as there is work for, but no more than the device runs at a time.
fn persistent(
    device: &Device,
    work: u32,
    blocks_per_multiprocessor: u32,
    block: u32,
    shared_bytes: u32,
) -> LaunchConfig {
    let resident = device.info().multiprocessors * blocks_per_multiprocessor;
    LaunchConfig { grid: [work.clamp(1, resident), 1, 1], block: [block, 1, 1], shared_bytes }
}

/// [`crate::ops::Ops::norm_qkv_rope`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn norm_qkv_rope(
    device: &Device,
    batch: &CudaBatch,
    table: &RopeTable,
    layer: usize,
    x: &Tensor,
    weights: &Qkv<Weight, DeviceBuffer<f32>>,
    q: &mut Tensor,
    cache: &mut KvCache,
) -> Result<()> {
    const OP: &str = "norm_qkv_rope";
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
    let (rows, hidden) = (dimension(OP, n)?, dimension(OP, hidden_size)?);
    let (heads, kv_heads) = (dimension(OP, q.cols / head_dim)?, dimension(OP, layout.num_key_value_heads)?);
    let head_dim = dimension(OP, head_dim)?;
    let pairs = (heads + 2 * kv_heads) * head_dim / 2;
    let config = persistent(
        device,
        pairs.div_ceil(PAIRS_PER_BLOCK),
        2,
        norm_qkv_rope::BLOCK_SIZE,
        stage_bytes(rows, hidden),
    );
    let bias = |bias: Option<&DeviceBuffer<f32>>| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr);
    // SAFETY: the shapes, positions and slots were checked; q and the pages are borrowed alone.
    unsafe {
        by_rows!(
            n,
            dtype,
            norm_qkv_rope_f16_one,
            norm_qkv_rope_bf16_one,
            norm_qkv_rope_f16_few,
            norm_qkv_rope_bf16_few,
            (
                &Dependent(device),
                &config,
                rows,
                hidden,
                heads,
                kv_heads,
                head_dim,
                x.ptr(),
                weights.norm.ptr(),
                weights.eps,
                weights.q.0.ptr().cast(),
                weights.k.0.ptr().cast(),
                weights.v.0.ptr().cast(),
                bias(weights.q_bias),
                bias(weights.k_bias),
                bias(weights.v_bias),
                batch.positions(),
                batch.slots(),
                table.cos.ptr(),
                table.sin.ptr(),
                q.ptr_mut(),
                k_pages.cast(),
                v_pages.cast(),
            )
        )
    }
}

/// `out += x · weightᵀ`: `[n, in_features] -> [n, out_features]`.
pub(super) fn matmul_add(
    device: &Device,
    n: usize,
    x: &Activation,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    const OP: &str = "matmul_add";
    let &Activation { dtype, rows, cols, .. } = &weight.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", x.dtype, n, cols)?;
    out.expect(OP, "out", n, rows)?;
    if x.dtype != dtype && (x.dtype, dtype) != (Dtype::F32, Dtype::Bf16) {
        return Err(Error::Request(format!("{OP}: x is {} and the weights are {dtype}", x.dtype)));
    }
    let long = cols >= LONG_COLS as usize;
    let (block, lanes) = if long { (LONG_BLOCK_SIZE, LONG_LANES) } else { (SHORT_BLOCK_SIZE, SHORT_LANES) };
    let (n, rows, cols) = (dimension(OP, n)?, dimension(OP, rows)?, dimension(OP, cols)?);
    let blocks = rows.div_ceil(block / lanes);
    let resident = if long { 2 } else { 4 };
    let config = persistent(device, blocks, resident, block, stage_bytes(n, cols));
    let device = &Dependent(device);
    let (weight, out) = (weight.0.ptr(), out.ptr_mut());
    macro_rules! call {
        ($kernel:path) => {
            // SAFETY: a group of lanes for each row; the shapes were checked, out is borrowed alone.
            unsafe { $kernel(device, &config, n, rows, cols, x.ptr().cast(), weight.cast(), out) }
        };
    }
    match (dtype, x.dtype, long, n) {
        (Dtype::F16, _, false, 1) => call!(matmul_add_f16_f16_short_one),
        (Dtype::F16, _, true, 1) => call!(matmul_add_f16_f16_long_one),
        (Dtype::F16, _, false, _) => call!(matmul_add_f16_f16_short_few),
        (Dtype::F16, _, true, _) => call!(matmul_add_f16_f16_long_few),
        (_, Dtype::F32, false, 1) => call!(matmul_add_bf16_f32_short_one),
        (_, Dtype::F32, true, 1) => call!(matmul_add_bf16_f32_long_one),
        (_, Dtype::F32, false, _) => call!(matmul_add_bf16_f32_short_few),
        (_, Dtype::F32, true, _) => call!(matmul_add_bf16_f32_long_few),
        (_, _, false, 1) => call!(matmul_add_bf16_bf16_short_one),
        (_, _, true, 1) => call!(matmul_add_bf16_bf16_long_one),
        (_, _, false, _) => call!(matmul_add_bf16_bf16_short_few),
        (_, _, true, _) => call!(matmul_add_bf16_bf16_long_few),
    }
}

/// `y = rms_norm(x); out = silu(y · gateᵀ) * (y · upᵀ)`: `[n, intermediate_size]`.
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn norm_gate_up(
    device: &Device,
    n: usize,
    x: &Tensor,
    norm: &DeviceBuffer<f32>,
    eps: f32,
    gate: &Weight,
    up: &Weight,
    out: &mut Activation,
) -> Result<()> {
    const OP: &str = "norm_gate_up";
    let &Activation { dtype, rows, cols, .. } = &gate.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", norm, cols)?;
    up.0.expect(OP, "up", dtype, rows, cols)?;
    out.expect(OP, "out", super::precise_dtype(dtype), n, rows)?;
    let (rows_x, hidden, intermediate) = (dimension(OP, n)?, dimension(OP, cols)?, dimension(OP, rows)?);
    let blocks = intermediate.div_ceil(norm_gate_up::COLUMNS_PER_BLOCK);
    let config = persistent(device, blocks, 2, norm_gate_up::BLOCK_SIZE, stage_bytes(rows_x, hidden));
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe {
        by_rows!(
            n,
            dtype,
            norm_gate_up_f16_one,
            norm_gate_up_bf16_one,
            norm_gate_up_f16_few,
            norm_gate_up_bf16_few,
            (
                &Dependent(device),
                &config,
                rows_x,
                hidden,
                intermediate,
                x.ptr(),
                norm.ptr(),
                eps,
                gate.0.ptr().cast(),
                up.0.ptr().cast(),
                out.ptr_mut().cast(),
            )
        )
    }
}

/// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`.
pub(super) fn norm_matmul(
    device: &Device,
    n: usize,
    x: &Tensor,
    norm: &DeviceBuffer<f32>,
    eps: f32,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    const OP: &str = "norm_matmul";
    let &Activation { dtype, rows, cols, .. } = &weight.0;
    expect_eligible(OP, n, dtype, cols)?;
    x.expect(OP, "x", n, cols)?;
    expect_vector(OP, "norm", norm, cols)?;
    out.expect(OP, "out", n, rows)?;
    let (rows_x, rows, cols) = (dimension(OP, n)?, dimension(OP, rows)?, dimension(OP, cols)?);
    let blocks = rows.div_ceil(norm_matmul::COLUMNS_PER_BLOCK);
    let config = persistent(device, blocks, 2, norm_matmul::BLOCK_SIZE, stage_bytes(rows_x, cols));
    // SAFETY: the shapes were checked; out is borrowed alone.
    unsafe {
        by_rows!(
            n,
            dtype,
            norm_matmul_f16_one,
            norm_matmul_bf16_one,
            norm_matmul_f16_few,
            norm_matmul_bf16_few,
            (
                &Dependent(device),
                &config,
                rows_x,
                rows,
                cols,
                x.ptr(),
                norm.ptr(),
                eps,
                weight.0.ptr().cast(),
                out.ptr_mut(),
            )
        )
    }
}
