//! Steps that are right.

use crate::machine::Machine;
use crate::products::{product_of, product_of_warp};
use crate::{Outcome, Step, compare, grid, whole};
use cuda_std::launch::DevicePtrMut;
use example_kernels::steps as kernels;

/// In the order of the page.
pub fn steps<M: Machine>() -> Vec<Step<M>> {
    vec![
        Step { name: "numbers", run: numbers },
        Step { name: "saxpy_threads", run: |machine| saxpy_threads(machine, 4) },
        Step { name: "reverse", run: reverse },
        Step { name: "sum_tree", run: sum_tree },
        Step { name: "sum_shuffled", run: sum_shuffled },
        Step { name: "total", run: total },
        Step { name: "product", run: |machine| product_of(machine, kernels::product) },
        Step { name: "product_tiled", run: |machine| product_of(machine, kernels::product_tiled) },
        Step { name: "scale_vectors", run: |machine| scale_vectors(machine, 1002, 0) },
        Step { name: "product_of_warp", run: |machine| product_of_warp(machine, kernels::product_of_warp) },
        Step { name: "product_staged", run: |machine| product_of_warp(machine, kernels::product_staged) },
    ]
}

fn numbers<M: Machine>(machine: &M) -> Result<Outcome, M::Error> {
    let out = machine.upload(&[0u32; 12])?;
    // SAFETY: a place for each of the 12 threads.
    unsafe { kernels::numbers(machine, &grid(3, 4), out)? };
    let found = machine.download(out.into(), 12)?;
    let expected: Vec<u32> = (0..12).map(|i| 100 * (i / 4) + i % 4).collect();
    let text = found.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    Ok(Outcome { is_right: found == expected, text })
}

/// 1000 values by that many blocks of 256 threads.
pub fn saxpy_threads<M: Machine>(machine: &M, blocks: u32) -> Result<Outcome, M::Error> {
    let (x, y) = (whole(1000), vec![1.0f32; 1000]);
    let (x_ptr, y_ptr) = (machine.upload(&x)?, machine.upload(&y)?);
    // SAFETY: both have 1000 values.
    unsafe { kernels::saxpy_threads(machine, &grid(blocks, 256), 1000, 2.0, x_ptr.into(), y_ptr)? };
    let expected: Vec<f32> = x.iter().map(|x| 2.0 * x + 1.0).collect();
    Ok(compare(&machine.download(y_ptr.into(), 1000)?, &expected))
}

fn reverse<M: Machine>(machine: &M) -> Result<Outcome, M::Error> {
    let x = whole(1024);
    let (x_ptr, out) = (machine.upload(&x)?, machine.upload(&[0.0f32; 1024])?);
    // SAFETY: a value for each of the 1024 threads.
    unsafe { kernels::reverse(machine, &grid(4, kernels::REVERSE_BLOCK), x_ptr.into(), out)? };
    let expected: Vec<f32> = x.chunks(256).flat_map(|block| block.iter().rev().copied()).collect();
    Ok(compare(&machine.download(out.into(), 1024)?, &expected))
}

/// The sums of the blocks of a kernel that was launched with a value for each thread.
pub fn sums<M: Machine>(
    machine: &M,
    [blocks, threads]: [u32; 2],
    launch: impl Fn(DevicePtrMut<f32>, DevicePtrMut<f32>) -> Result<(), M::Error>,
) -> Result<Outcome, M::Error> {
    let x = whole((blocks * threads) as usize);
    let (x_ptr, out) = (machine.upload(&x)?, machine.upload(&vec![0.0f32; blocks as usize])?);
    launch(x_ptr, out)?;
    let expected: Vec<f32> = x.chunks(threads as usize).map(|block| block.iter().sum()).collect();
    Ok(compare(&machine.download(out.into(), blocks as usize)?, &expected))
}

fn sum_tree<M: Machine>(machine: &M) -> Result<Outcome, M::Error> {
    // SAFETY: a value for each thread, a sum for each block.
    sums(machine, [4, kernels::TREE_BLOCK], |x, out| unsafe {
        kernels::sum_tree(machine, &grid(4, kernels::TREE_BLOCK), x.into(), out)
    })
}

fn sum_shuffled<M: Machine>(machine: &M) -> Result<Outcome, M::Error> {
    // SAFETY: as above.
    sums(machine, [4, 32], |x, out| unsafe { kernels::sum_shuffled(machine, &grid(4, 32), x.into(), out) })
}

fn total<M: Machine>(machine: &M) -> Result<Outcome, M::Error> {
    let x = whole(1024);
    let (x_ptr, total) = (machine.upload(&x)?, machine.upload(&[0.0f32])?);
    // SAFETY: a value for each of the 1024 threads, and one sum.
    unsafe { kernels::total(machine, &grid(32, 32), x_ptr.into(), total)? };
    Ok(compare(&machine.download(total.into(), 1)?, &[x.iter().sum::<f32>()]))
}

/// `n` values that begin `skipped` values behind the beginning of a buffer.
pub fn scale_vectors<M: Machine>(machine: &M, n: u32, skipped: usize) -> Result<Outcome, M::Error> {
    let x = whole(n as usize + skipped);
    let (x_ptr, out) = (machine.upload(&x)?, machine.upload(&vec![0.0f32; n as usize])?);
    let x_ptr = x_ptr.add(skipped);
    // SAFETY: both have `n` values. The emulator looks at how they are aligned.
    unsafe { kernels::scale_vectors(machine, &grid(n.div_ceil(4 * 256), 256), n, 3.0, x_ptr.into(), out)? };
    let expected: Vec<f32> = x[skipped..].iter().map(|x| 3.0 * x).collect();
    Ok(compare(&machine.download(out.into(), n as usize)?, &expected))
}
