//! The head.

use super::super::add_bias::expect_vector;
use super::super::device::{Dependent, Device};
use super::super::launch::dimension;
use super::super::memory::DeviceBuffer;
use super::super::tensor::{Activation, Tensor, Weight};
use super::{by_rows, expect_eligible, persistent};
use crate::error::Result;
use gpu_kernels::fused::norm_matmul::*;
use gpu_kernels::fused::stage_bytes;

/// `out = rms_norm(x) · weightᵀ`: `[n, in_features] -> [n, out_features]`.
pub(in super::super) fn norm_matmul(
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
    let blocks = rows.div_ceil(COLUMNS_PER_BLOCK);
    let config = persistent(device, blocks, 2, BLOCK_SIZE, stage_bytes(rows_x, cols));
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
