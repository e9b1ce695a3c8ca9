//! Mistakes, in kernels and in launches. None of this is to run on a GPU: the launches keep no promise, and the emulator survives that.

use crate::machine::Machine;
use crate::products::{product_of, product_of_warp};
use crate::right::{saxpy_threads, scale_vectors, sums};
use crate::{Outcome, Step, compare, grid, whole};
use cuda_std::emulation::{Emulator, Report};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use example_kernels::steps as kernels;

/// In the order of the page.
pub fn steps() -> Vec<Step<Emulator>> {
    vec![
        Step { name: "saxpy_without_bound", run: saxpy_without_bound },
        Step { name: "saxpy_few_blocks", run: |machine| saxpy_threads(machine, 3) },
        Step { name: "saxpy_large_blocks", run: saxpy_large_blocks },
        Step {
            name: "reverse_without_barrier",
            run: |machine| reversed(machine, kernels::reverse_without_barrier),
        },
        Step { name: "reverse_unwritten", run: reverse_unwritten },
        Step { name: "reverse_off_by_one", run: |machine| reversed(machine, kernels::reverse_off_by_one) },
        Step { name: "sum_tree_without_barrier", run: sum_tree_without_barrier },
        Step { name: "sum_tree_in_branch", run: sum_tree_in_branch },
        Step { name: "sum_shuffled_in_branch", run: sum_shuffled_in_branch },
        Step { name: "total_without_atomic", run: total_without_atomic },
        Step {
            name: "product_without_second_barrier",
            run: |machine| product_of(machine, kernels::product_without_second_barrier),
        },
        Step { name: "scale_vectors_misaligned", run: |machine| scale_vectors(machine, 1000, 1) },
        Step { name: "scale_vectors_rounded_up", run: scale_vectors_rounded_up },
        Step {
            name: "product_in_branch",
            run: |machine| product_of_warp(machine, kernels::product_in_branch),
        },
        Step {
            name: "product_without_wait",
            run: |machine| product_of_warp(machine, kernels::product_without_wait),
        },
    ]
}

fn saxpy_without_bound(machine: &Emulator) -> Result<Outcome, Report> {
    let (x, y) = (machine.upload(&whole(1000))?, machine.upload(&[1.0f32; 1000])?);
    // SAFETY: none.
    unsafe { kernels::saxpy_without_bound(machine, &grid(4, 256), 2.0, x.into(), y)? };
    Ok(compare(&machine.download(y.into(), 1)?, &[-15.0]))
}

fn saxpy_large_blocks(machine: &Emulator) -> Result<Outcome, Report> {
    let (x, y) = (machine.upload(&whole(1024))?, machine.upload(&[1.0f32; 1024])?);
    // SAFETY: none.
    unsafe { kernels::saxpy_threads(machine, &grid(2, 512), 1024, 2.0, x.into(), y)? };
    Ok(compare(&machine.download(y.into(), 1)?, &[-15.0]))
}

/// The launcher of a kernel that turns values round.
type Reverse = unsafe fn(&Emulator, &LaunchConfig, DevicePtr<f32>, DevicePtrMut<f32>) -> Result<(), Report>;

fn reversed(machine: &Emulator, launch: Reverse) -> Result<Outcome, Report> {
    let x = whole(256);
    let (x_ptr, out) = (machine.upload(&x)?, machine.upload(&[0.0f32; 256])?);
    // SAFETY: none.
    unsafe { launch(machine, &grid(1, kernels::REVERSE_BLOCK), x_ptr.into(), out)? };
    let expected: Vec<f32> = x.into_iter().rev().collect();
    Ok(compare(&machine.download(out.into(), 256)?, &expected))
}

fn reverse_unwritten(machine: &Emulator) -> Result<Outcome, Report> {
    let (x, out) = (machine.upload(&whole(1000))?, machine.upload(&[0.0f32; 1024])?);
    // SAFETY: none.
    unsafe { kernels::reverse_unwritten(machine, &grid(4, kernels::REVERSE_BLOCK), 1000, x.into(), out)? };
    Ok(compare(&machine.download(out.into(), 1)?, &whole(256)[255..]))
}

fn sum_tree_without_barrier(machine: &Emulator) -> Result<Outcome, Report> {
    // SAFETY: none.
    sums(machine, [1, kernels::TREE_BLOCK], |x, out| unsafe {
        kernels::sum_tree_without_barrier(machine, &grid(1, kernels::TREE_BLOCK), x.into(), out)
    })
}

fn sum_tree_in_branch(machine: &Emulator) -> Result<Outcome, Report> {
    // SAFETY: none.
    sums(machine, [1, kernels::TREE_BLOCK], |x, out| unsafe {
        kernels::sum_tree_in_branch(machine, &grid(1, kernels::TREE_BLOCK), x.into(), out)
    })
}

fn sum_shuffled_in_branch(machine: &Emulator) -> Result<Outcome, Report> {
    // SAFETY: none.
    sums(machine, [1, 32], |x, out| unsafe {
        kernels::sum_shuffled_in_branch(machine, &grid(1, 32), x.into(), out)
    })
}

fn total_without_atomic(machine: &Emulator) -> Result<Outcome, Report> {
    let x = whole(1024);
    let (x_ptr, total) = (machine.upload(&x)?, machine.upload(&[0.0f32])?);
    // SAFETY: none.
    unsafe { kernels::total_without_atomic(machine, &grid(32, 32), x_ptr.into(), total)? };
    Ok(compare(&machine.download(total.into(), 1)?, &[x.iter().sum::<f32>()]))
}

fn scale_vectors_rounded_up(machine: &Emulator) -> Result<Outcome, Report> {
    let (x, out) = (machine.upload(&whole(1002))?, machine.upload(&[0.0f32; 1002])?);
    // SAFETY: none.
    unsafe { kernels::scale_vectors_rounded_up(machine, &grid(1, 256), 1002, 3.0, x.into(), out)? };
    Ok(compare(&machine.download(out.into(), 1)?, &[-24.0]))
}
