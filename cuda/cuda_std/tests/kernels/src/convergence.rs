//! Kernels that invite the compiler to copy a convergent operation into two branches.
//!
//! Each sets a flag in one branch, does something convergent, and branches on the flag again. Jump threading
//! joins the two branches: it makes one copy of what lies between for each value of the flag, and the threads
//! of a block then wait at two different barriers (rust-lang/rust#137086). The tests count the operations in
//! the PTX.

use cuda_std::prelude::*;

/// One barrier between two branches on the same flag. Compiled with MIR's JumpThreading, the PTX has two.
#[kernel]
pub unsafe fn one_barrier(n: u32, x: *const f32, out: *mut f32) {
    let shared = shared_array![f32; 256];
    let i = thread::thread_idx_x();
    let mut found = false;
    if i < n {
        unsafe { shared.set(i, *x.add(i as usize)) };
        found = true;
    }
    thread::sync_threads();
    if found {
        unsafe { *out.add(i as usize) = shared.get(255 - i) };
    }
}

/// Two barriers around what a `match` decided, and two in a loop.
#[kernel]
pub unsafe fn four_barriers(n: u32, mode: u32, x: *const f32, out: *mut f32) {
    let shared = shared_array![f32; 256];
    let i = thread::thread_idx_x();
    let sign = match mode {
        0 => Some(1.0),
        1 => Some(-1.0),
        _ => None,
    };
    thread::sync_threads();
    let mut value = match sign {
        Some(sign) => sign * unsafe { *x.add(i as usize) },
        None => 0.0,
    };
    unsafe { shared.set(i, value) };
    thread::sync_threads();
    let mut round = 0;
    while round < n {
        thread::sync_threads();
        value += unsafe { shared.get(255 - i) };
        thread::sync_threads();
        unsafe { shared.set(i, value) };
        round += 1;
    }
    unsafe { *out.add(i as usize) = value };
}

/// One vote between two branches on the same flag. Compiled with MIR's JumpThreading, the PTX has two.
#[kernel]
pub unsafe fn one_vote(n: u32, x: *const f32, out: *mut u32) {
    let i = thread::thread_idx_x();
    let (mut value, mut found) = (0.0, false);
    if i < n {
        value = unsafe { *x.add(i as usize) };
        found = true;
    }
    let lanes = unsafe { warp::warp_vote_ballot(warp::FULL_MASK, value > 1.0) };
    if found {
        unsafe { *out.add(i as usize) = lanes };
    }
}

/// One shuffle, one vote and one `redux` between two branches on the same flag.
#[kernel]
pub unsafe fn one_of_each_exchange(n: u32, x: *const f32, out: *mut f32) {
    let i = thread::thread_idx_x();
    let (mut value, mut found) = (0.0, false);
    if i < n {
        value = unsafe { *x.add(i as usize) };
        found = true;
    }
    let other = warp::shuffle_xor(value, 1);
    let any = unsafe { warp::warp_vote_any(warp::FULL_MASK, other > 1.0) };
    let count = unsafe { warp::warp_reduce(warp::FULL_MASK, u32::from(any), warp::WarpReductionOp::Add) };
    if found {
        unsafe { *out.add(i as usize) = other + count as f32 };
    }
}

/// A sum over the warp of which only one lane needs the result: the five shuffles must not sink into its
/// branch.
#[kernel]
pub unsafe fn five_shuffles(x: *const f32, out: *mut f32) {
    let sum = warp::reduce_sum(unsafe { *x.add(thread::index_1d() as usize) });
    if warp::lane_id() == 0 {
        unsafe { *out.add(warp::warp_id() as usize) = sum };
    }
}

/// Stores to shared memory, a barrier, and loads from it, in this order, with a typed handle.
#[kernel]
pub unsafe fn shared_order(x: *const f32, out: *mut f32) {
    let shared = shared_array![f32; 64];
    let i = thread::thread_idx_x();
    unsafe { shared.set(i, *x.add(i as usize)) };
    thread::sync_threads();
    let other = unsafe { shared.get(63 - i) };
    thread::sync_threads();
    unsafe { shared.set(i, other) };
    thread::sync_threads();
    unsafe { *out.add(i as usize) = shared.get(i ^ 1) };
}

/// A sum over the warp of products: were the first addition fused with this lane's product, a lane and its
/// partner would round differently and get different sums.
#[kernel]
pub unsafe fn sum_of_products(x: *const f32, out: *mut f32) {
    let i = thread::index_1d() as usize;
    unsafe { *out.add(i) = warp::reduce_sum(*x.add(i) * *x.add(i + 1)) };
}
