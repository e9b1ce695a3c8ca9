//! Matrices in blocks, for the operations that decode them and multiply with them.

use crate::cuda::{CudaOps, Weight};
use crate::error::Result;
use crate::lab::values::*;
use crate::testing::blocks;
use qernel_core::formats::MatrixFormat;

/// The formats that are no floats.
pub(super) fn formats() -> impl Iterator<Item = MatrixFormat> {
    MatrixFormat::ALL.iter().copied().filter(|format| format.float().is_none())
}

/// A scale of a whole matrix, where the format has one.
pub(super) fn scale_of(format: MatrixFormat) -> f32 {
    if format == MatrixFormat::NVFP4 { 0.37 } else { 1.0 }
}

/// A matrix `[rows, cols]` on the device as a file would have it, its values multiplied with `scale`, and these.
pub(super) fn matrix(
    ops: &mut CudaOps,
    format: MatrixFormat,
    name: &str,
    seed: u64,
    [rows, cols]: [usize; 2],
    scale: f32,
) -> Result<(Weight, Vec<f32>)> {
    let data = blocks(format, seed, name, &random(seed, name, rows * cols));
    let mut values = vec![0.0; rows * cols];
    format.decode(&data, &mut values);
    values.iter_mut().for_each(|value| *value *= scale);
    Ok((block_weight(ops, format, rows, cols, scale, data)?, values))
}
