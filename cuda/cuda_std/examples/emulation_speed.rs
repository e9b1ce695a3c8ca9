//! How fast kernels are emulated: memory accesses, barriers and shuffles a second, with checks and without.
//!
//! `cargo run --release -p cuda_std --example emulation_speed`
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "kernels of a few lines, each launched once, beside it"
)]

use std::time::Instant;

use cuda_std::emulation::{Emulator, Options};
use cuda_std::prelude::*;

/// Four loads and a store of 4 bytes for each element of a grid-stride loop.
#[kernel]
unsafe fn plain_accesses(n: u32, x: *const f32, out: *mut f32) {
    let mut i = thread::index_1d();
    while i + 3 < n {
        unsafe {
            let at = |k: u32| x.add((i + k) as usize);
            *out.add(i as usize) = *at(0) + *at(1) + *at(2) + *at(3);
        }
        i += thread::grid_dim_x() * thread::block_dim_x();
    }
}

/// Loads of 16 bytes.
#[kernel]
unsafe fn wide_accesses(n: u32, x: *const f32, out: *mut f32) {
    let mut i = thread::index_1d();
    let mut sum = 0.0;
    while 4 * i < n {
        let lanes = unsafe { <f32 as Element>::load(x.add(4 * i as usize)) };
        sum += lanes[0] + lanes[3];
        i += thread::grid_dim_x() * thread::block_dim_x();
    }
    unsafe { *out.add(thread::index_1d() as usize) = sum }
}

/// A load and a store of shared memory in each round.
#[kernel]
unsafe fn shared_accesses(rounds: u32) {
    let tile = shared_array![f32; 256];
    let i = thread::thread_idx_x();
    unsafe {
        tile.set(i, 0.0);
        let mut round = 0;
        while round < rounds {
            tile.set(i, tile.get(i) + 1.0);
            round += 1;
        }
    }
}

#[kernel]
unsafe fn barriers(rounds: u32) {
    let mut round = 0;
    while round < rounds {
        thread::sync_threads();
        round += 1;
    }
}

#[kernel]
unsafe fn shuffles(rounds: u32) {
    let (mut round, mut value) = (0, warp::lane_id());
    while round < rounds {
        value = warp::shuffle_xor(value, 1);
        round += 1;
    }
    assert!(value < 32);
}

/// Starts threads that do nothing.
#[kernel]
unsafe fn nothing() {}

/// Two buffers of `N` floats.
const N: usize = 1 << 20;

fn time(name: &str, count: f64, unit: &str, run: impl Fn(&Emulator, DevicePtr<f32>, DevicePtrMut<f32>)) {
    for check in [true, false] {
        let emulator = Emulator::new(Options { seed: 1, check, ..Options::default() });
        let x = DevicePtrMut::<f32>::from_raw(emulator.allocate(4 * N));
        let out = DevicePtrMut::from_raw(emulator.allocate(4 * N));
        run(&emulator, x.into(), out);
        let start = Instant::now();
        run(&emulator, x.into(), out);
        let rate = count / start.elapsed().as_secs_f64() / 1e6;
        println!(
            "{name:<18} {:<10} {rate:9.2} million {unit} a second",
            if check { "checked" } else { "unchecked" }
        );
    }
}

fn main() {
    let config = LaunchConfig { grid: [64, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
    let threads = 64.0 * 256.0;
    println!("{} threads of the host", rayon::current_num_threads());
    time("plain accesses", 5.0 * N as f64, "accesses", |emulator, x, out| {
        // SAFETY: `N` elements in both.
        unsafe { plain_accesses(emulator, &config, N as u32, x, out) }.unwrap();
    });
    time("wide accesses", N as f64 / 4.0, "accesses", |emulator, x, out| {
        // SAFETY: `N` elements in both.
        unsafe { wide_accesses(emulator, &config, N as u32, x, out) }.unwrap();
    });
    time("shared accesses", 2.0 * 200.0 * threads, "accesses", |emulator, _, _| {
        // SAFETY: 256 threads.
        unsafe { shared_accesses(emulator, &config, 200) }.unwrap();
    });
    time("barriers", 100.0 * threads, "arrivals", |emulator, _, _| {
        // SAFETY: no memory.
        unsafe { barriers(emulator, &config, 100) }.unwrap();
    });
    time("shuffles", 100.0 * threads, "lanes", |emulator, _, _| {
        // SAFETY: whole warps.
        unsafe { shuffles(emulator, &config, 100) }.unwrap();
    });
    time("empty threads", 16.0 * threads, "threads", |emulator, _, _| {
        // SAFETY: nothing happens.
        (0..16).for_each(|_| unsafe { nothing(emulator, &config) }.unwrap());
    });
}
