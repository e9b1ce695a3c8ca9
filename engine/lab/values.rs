//! Seeded inputs, number formats, and buffers whose surroundings are poisoned.

use crate::cuda::{Activation, CudaOps, Tensor, Weight, encode};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::Ops;
use crate::testing::Random;
use crate::weights::Matrix;
use bytes::Bytes;
use qernel_core::formats::MatrixFormat;
use rayon::prelude::*;

/// Rows behind those that an operation works on; they must stay as they were.
pub const GUARD_ROWS: usize = 3;

/// Ragged numbers of columns, and some that variants with vector loads take.
pub const COLUMNS: [usize; 7] = [1, 19, 111, 989, 64, 896, 4864];

/// Ragged numbers of rows.
pub const ROWS: [usize; 4] = [1, 19, 111, 989];

/// `count` values of a normal-like distribution with variance 1, which depend on seed and name alone.
pub fn random(seed: u64, name: &str, count: usize) -> Vec<f32> {
    // In parts, each a stream of its own: several threads fill the weights of a large model.
    const PART: usize = 1 << 16;
    if count <= PART {
        return Random::new(seed, name).take(count).collect();
    }
    let mut values = vec![0.0; count];
    values.par_chunks_mut(PART).enumerate().for_each(|(i, part)| {
        let mut random = Random::new(seed, &format!("{name}, part {i}"));
        part.fill_with(|| random.next().expect("the stream does not end"));
    });
    values
}

/// The numbers below `count` in a random order.
pub fn shuffled(seed: u64, name: &str, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed, name);
    let mut numbers: Vec<u32> = (0..count as u32).collect();
    for i in (1..numbers.len()).rev() {
        numbers.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
    numbers
}

/// `values` rounded to the nearest of `dtype`.
pub fn rounded(dtype: Dtype, mut values: Vec<f32>) -> Vec<f32> {
    if dtype != Dtype::F32 {
        values.par_iter_mut().with_min_len(1 << 12).for_each(|value| *value = round(dtype, *value));
    }
    values
}

/// `value` rounded to the nearest of `dtype`.
pub fn round(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

/// Unit roundoff of `dtype`: half the distance from 1 to the next value.
pub fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
    }
}

/// Half the distance between the smallest values of `dtype`, where rounding is absolute.
pub fn smallest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2f64.powi(-25),
        Dtype::F32 | Dtype::Bf16 => 2f64.powi(-134),
    }
}

/// A tensor of `n` rows with `values` and [`GUARD_ROWS`] of NaN.
///
/// # Errors
/// As [`Ops::new_tensor`].
pub fn tensor(ops: &mut CudaOps, n: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
    let mut tensor = ops.new_tensor(n + GUARD_ROWS, cols)?;
    fill_tensor(&mut tensor, values)?;
    Ok(tensor)
}

/// Puts `values` in the front of a tensor and NaN in all the rest.
///
/// # Errors
/// [`crate::Error::Device`] if there are more than it holds.
pub fn fill_tensor(tensor: &mut Tensor, values: &[f32]) -> Result<()> {
    tensor.write(&with_guard(values, tensor.rows() * tensor.cols()))
}

/// A tensor of `n` rows and [`GUARD_ROWS`], all NaN.
///
/// # Errors
/// As [`Ops::new_tensor`].
pub fn poisoned(ops: &mut CudaOps, n: usize, cols: usize) -> Result<Tensor> {
    tensor(ops, n, cols, &[])
}

/// An activation of `n` rows with `values` and [`GUARD_ROWS`] of NaN.
///
/// # Errors
/// As [`Ops::new_activation`].
pub fn activation(ops: &mut CudaOps, n: usize, cols: usize, values: &[f32]) -> Result<Activation> {
    let mut activation = ops.new_activation(n + GUARD_ROWS, cols)?;
    fill_activation(&mut activation, values)?;
    Ok(activation)
}

/// Puts `values` in the front of an activation and NaN in all the rest.
///
/// # Errors
/// [`crate::Error::Device`] if there are more than it holds.
pub fn fill_activation(activation: &mut Activation, values: &[f32]) -> Result<()> {
    activation.write(&with_guard(values, activation.rows() * activation.cols()))
}

/// An activation of `n` rows and [`GUARD_ROWS`], all NaN.
///
/// # Errors
/// As [`Ops::new_activation`].
pub fn poisoned_activation(ops: &mut CudaOps, n: usize, cols: usize) -> Result<Activation> {
    activation(ops, n, cols, &[])
}

fn with_guard(values: &[f32], room: usize) -> Vec<f32> {
    let mut all = values.to_vec();
    all.resize(room.max(values.len()), f32::NAN);
    all
}

/// A matrix of `dtype` as a file would have it, brought to the device.
///
/// # Errors
/// As [`Ops::load_matrix`].
pub fn weight(ops: &mut CudaOps, dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Result<Weight> {
    let data = Bytes::from(encode(dtype, values));
    ops.load_matrix(&Matrix { name: "weight".into(), format: dtype.into(), rows, cols, scale: 1.0, data })
}

/// A matrix in blocks as a file would have it, brought to the device.
///
/// # Errors
/// As [`Ops::load_matrix`].
pub fn block_weight(
    ops: &mut CudaOps,
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    scale: f32,
    data: Vec<u8>,
) -> Result<Weight> {
    ops.load_matrix(&Matrix { name: "weight".into(), format, rows, cols, scale, data: data.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_inputs_depend_on_seed_and_name_alone() {
        let (a, b) = (random(3, "x", 200_000), random(3, "x", 200_000));
        assert_eq!(a, b);
        assert_ne!(a, random(4, "x", 200_000));
        assert_ne!(a[..65_536], a[65_536..131_072]);
    }

    #[test]
    fn shuffling_keeps_every_number() {
        let mut numbers = shuffled(1, "pages", 100);
        assert_ne!(numbers, (0..100).collect::<Vec<_>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }
}
