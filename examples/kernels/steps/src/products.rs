//! Steps that multiply matrices.

use crate::machine::Machine;
use crate::{Outcome, compare, grid, whole};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use example_kernels::steps as kernels;
use half::f16;

/// The launcher of a kernel that multiplies f32 matrices of sizes m, n, k.
type Product<M, E> = unsafe fn(
    &M,
    &LaunchConfig,
    u32,
    u32,
    u32,
    DevicePtr<f32>,
    DevicePtr<f32>,
    DevicePtrMut<f32>,
) -> Result<(), E>;

/// 40 × 50 times 50 × 24, no multiple of a tile.
pub fn product_of<M: Machine>(machine: &M, launch: Product<M, M::Error>) -> Result<Outcome, M::Error> {
    let [m, n, k] = [40, 24, 50];
    let (a, b) = (whole(m * k), whole(k * n));
    let (a_ptr, b_ptr) = (machine.upload(&a)?, machine.upload(&b)?);
    let c = machine.upload(&vec![0.0f32; m * n])?;
    let tiles = |length: usize| (length as u32).div_ceil(kernels::PRODUCT_TILE);
    let config = LaunchConfig {
        grid: [tiles(n), tiles(m), 1],
        block: [kernels::PRODUCT_TILE, kernels::PRODUCT_TILE, 1],
        shared_bytes: 0,
    };
    // SAFETY: the matrices have these sizes, the grid has a thread for each value.
    unsafe { launch(machine, &config, m as u32, n as u32, k as u32, a_ptr.into(), b_ptr.into(), c)? };
    let value = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum();
    let expected: Vec<f32> = (0..m * n).map(value).collect();
    Ok(compare(&machine.download(c.into(), m * n)?, &expected))
}

/// The launcher of a kernel that multiplies what one instruction of a tensor core takes.
type OfWarp<M, E> =
    unsafe fn(&M, &LaunchConfig, DevicePtr<f16>, DevicePtr<f16>, DevicePtrMut<f32>) -> Result<(), E>;

/// 16 × 16 times the transpose of 8 × 16.
pub fn product_of_warp<M: Machine>(machine: &M, launch: OfWarp<M, M::Error>) -> Result<Outcome, M::Error> {
    let (a, b) = (whole(16 * 16), whole(8 * 16));
    let halves = |values: &[f32]| values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>();
    let (a_ptr, b_ptr) = (machine.upload(&halves(&a))?, machine.upload(&halves(&b))?);
    let c = machine.upload(&[0.0f32; 16 * 8])?;
    // SAFETY: one warp, matrices of these sizes.
    unsafe { launch(machine, &grid(1, 32), a_ptr.into(), b_ptr.into(), c)? };
    let value = |i: usize| (0..16).map(|j| a[i / 8 * 16 + j] * b[i % 8 * 16 + j]).sum();
    let expected: Vec<f32> = (0..16 * 8).map(value).collect();
    Ok(compare(&machine.download(c.into(), 16 * 8)?, &expected))
}
