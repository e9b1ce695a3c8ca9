//! What the cases of the fused operations of a decode step have in common.

use crate::cuda::{CudaOps, fused_max_rows, ineligible, unit_cols};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::Workload;
use crate::lab::values::unit;
use crate::testing::blocks;
use crate::weights::Matrix;
use qernel_core::formats::MatrixFormat;
use rayon::prelude::*;

/// Of weights: there are no kernels of f32.
pub(super) const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::Bf16];
pub(super) const EPS: f32 = 1e-6;

/// What a product of `cols` terms may be off, of the sum of its terms' magnitudes: as for `matmul`, and sixteen roundings
/// of a norm before it.
pub(super) fn relative(cols: usize) -> f64 {
    ((cols as f64).sqrt() + 24.0) * 2.0 * unit(Dtype::F32)
}

/// A row times the rows of a matrix, in f64: sums, and what they may be off where weights have this format.
pub(super) fn products(x: &[f64], weight: &[f32], format: MatrixFormat) -> Vec<(f64, f64)> {
    // What is multiplied with blocks has 16 bits of the largest value near it.
    let step = match format.float() {
        Some(_) => 0.0,
        None => x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs())) / 65024.0,
    };
    let row = |w: &[f32]| {
        let (mut sum, mut magnitude, mut weights) = (0.0, 0.0, 0.0);
        for (&x, &w) in x.iter().zip(w) {
            let term = x * f64::from(w);
            (sum, magnitude, weights) = (sum + term, magnitude + term.abs(), weights + f64::from(w).abs());
        }
        (sum, magnitude * relative(x.len()) + weights * step)
    };
    weight.par_chunks(x.len()).map(row).collect()
}

/// A matrix of a format as a file would have it, and its values.
pub(super) fn matrix_of(
    format: MatrixFormat,
    seed: u64,
    name: &str,
    [rows, cols]: [usize; 2],
    values: &[f32],
) -> (Matrix, Vec<f32>) {
    let data = blocks(format, seed, name, values);
    let mut exact = vec![0.0; values.len()];
    format.decode(&data, &mut exact);
    (Matrix { name: "weight".into(), format, rows, cols, scale: 1.0, data: data.into() }, exact)
}

/// A case of matrices in `format` is none for a device that does not repack them.
pub(super) fn require_units(ops: &CudaOps, op: &str, format: MatrixFormat) -> Result<()> {
    if format.float().is_some() || ops.device().has_bulk_copies() {
        return Ok(());
    }
    Err(ineligible(op, "the device has no bulk copies, for which matrices are repacked"))
}

/// The formats that are repacked, with the columns of a unit.
pub(super) fn unit_formats() -> impl Iterator<Item = (MatrixFormat, usize)> {
    MatrixFormat::ALL.iter().filter_map(|&format| Some((format, unit_cols(format)?)))
}

/// The norm of a row in f64.
pub(super) fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

/// The workload's float format, and those that are repacked where rows have so many columns.
pub(super) fn timed_formats(workload: &Workload, cols: usize) -> impl Iterator<Item = MatrixFormat> {
    let units = unit_formats().filter(move |&(_, unit)| cols.is_multiple_of(unit)).map(|(format, _)| format);
    [MatrixFormat::from(workload.dtype)].into_iter().chain(units)
}

/// Those shapes, beginning with the number of rows, that there are kernels for.
pub(super) fn shapes<const N: usize>(all: &[[usize; N]], dtype: Dtype) -> impl Iterator<Item = [usize; N]> {
    all.iter().copied().filter(move |shape| shape[0] <= fused_max_rows(dtype))
}

/// Those numbers of rows of the workload that the kernels take.
pub(super) fn few_rows(workload: &Workload) -> impl Iterator<Item = usize> {
    let most = fused_max_rows(workload.dtype);
    workload.rows.iter().copied().filter(move |&n| n <= most)
}
