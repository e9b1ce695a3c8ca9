//! Products of a warpgroup are those of their tiles, and what would be wrong on a device is said.

use cuda_std::emulation::{Defect, Emulator, Report};
use cuda_std::half::{bf16, f16};
use cuda_std::prelude::*;
use cuda_std::tensor_map::TensorMap;
use cuda_std::wgmma::{Descriptor, WgmmaElement, packed};
use cuda_std::{async_copy, mbarrier::Mbarrier};
use cuda_std_test_kernels::*;

use super::support::{buffer, caught_in, clean, emulator, grid, values, with_shared};

/// Small integers and halves, all of whose products and sums are exact.
fn number(i: usize) -> f32 {
    ((i as u32).wrapping_mul(0x9e37_79b9) >> 24) as f32 / 16.0 - 8.0
}

type Launch = unsafe fn(
    &Emulator,
    &LaunchConfig,
    DevicePtr<[u32; 4]>,
    DevicePtr<[u32; 4]>,
    DevicePtrMut<f32>,
) -> Result<(), Report>;

fn compare(launch: Launch, n: usize, bits: fn(f32) -> u16) {
    let e = &emulator(2);
    let a: Vec<f32> = (0..64 * 64).map(number).collect();
    let b: Vec<f32> = (0..2 * n * 64).map(|i| number(i + 7777)).collect();
    let tile = |values: &[f32]| buffer(e, &values.iter().map(|x| bits(*x)).collect::<Vec<_>>()).cast().into();
    let out = buffer(e, &vec![0f32; 3 * 128 * n]);
    // SAFETY: one warpgroup, with tiles and sums as the kernel says.
    unsafe { launch(e, &with_shared(grid(1, 128), WGMMA_SHARED_BYTES), tile(&a), tile(&b), out) }.unwrap();
    let sum = |row: usize, at: &dyn Fn(usize) -> f32| (0..64).map(|k| a[row * 64 + k] * at(k)).sum::<f32>();
    for (i, found) in values(e, out, 3 * 128 * n).into_iter().enumerate() {
        let (kind, t, i) = (i / (128 * n), i / n % 128, i % n);
        let (row, column) = (16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (t % 4) + i % 2);
        let straight = 2.0 * sum(row, &|k| b[column * 64 + k]);
        let expected = match kind {
            0 => straight,
            1 => straight + if i == 0 { 1.0 } else { 0.0 },
            _ => sum(row, &|k| b[(column / 64 * 64 + k) * 64 + column % 64]) + 0.5,
        };
        assert_eq!(found, expected, "kind {kind}, row {row}, column {column}");
    }
}

#[test]
fn products_are_those_of_their_tiles() {
    compare(compare_wgmma_f16_n64, 32, |x| f16::from_f32(x).to_bits());
    compare(compare_wgmma_f16_n128, 64, |x| f16::from_f32(x).to_bits());
    compare(compare_wgmma_f16_n256, 128, |x| f16::from_f32(x).to_bits());
    compare(compare_wgmma_bf16_n64, 32, |x| bf16::from_f32(x).to_bits());
    compare(compare_wgmma_bf16_n128, 64, |x| bf16::from_f32(x).to_bits());
}

/// Where a tile begins, and a second one behind it.
#[device]
fn tiles() -> [Shared<[u32; 4]>; 2] {
    let first = Shared::from_address(dynamic_shared::<u8>().address().next_multiple_of(1024));
    [first, first.add(512)]
}

/// Ones in a tile, by the threads from `first` on.
#[device]
unsafe fn ones(tile: Shared<[u32; 4]>, first: u32) {
    let mut i = thread::thread_idx_x() - first;
    while i < 512 {
        unsafe { tile.set(i, [0x3c00_3c00; 4]) }
        i += 128;
    }
}

fn launched(
    kernel: unsafe fn(&Emulator, &LaunchConfig, DevicePtrMut<f32>) -> Result<(), Report>,
    threads: u32,
) -> impl Fn(&Emulator) -> Result<(), Report> {
    move |e| unsafe { kernel(e, &with_shared(grid(1, threads), 17 * 1024), buffer(e, &vec![0f32; 256])) }
}

/// A producer and a consumer over one tile, which the producer may write again when all four warps have waited.
#[kernel]
pub unsafe fn handed_over(out: *mut f32) {
    unsafe {
        let [tile, barriers] = tiles();
        let full = Mbarrier::new(Shared::from_address(barriers.address()));
        let empty = Mbarrier::new(Shared::from_address(barriers.address() + 8));
        if thread::thread_idx_x() == 0 {
            full.init(128);
            empty.init(4);
        }
        thread::sync_threads();
        if thread::thread_idx_x() >= 128 {
            let mut step = 0;
            while step < 3 {
                empty.wait(step & 1 ^ 1);
                ones(tile, 128);
                async_copy::fence_proxy_async_shared();
                full.arrive();
                step += 1;
            }
        } else {
            let (mut d, mut e, mut step) = ([0.0; 32], [1.0; 32], 0);
            while step < 3 {
                full.wait(step & 1);
                f16::multiply(&mut d, Descriptor::k_major(tile), Descriptor::k_major(tile), true);
                f16::multiply_transposed(&mut e, [0x3c00_3c00; 16], Descriptor::n_major(tile, 0));
                f16::wait::<1>(&mut d);
                d[5] += 1.0;
                f16::wait::<0>(&mut e);
                if warp::lane_id() == 0 {
                    empty.arrive();
                }
                step += 1;
            }
            let words = packed::<f16, 32>(&d, 0);
            *out.add(thread::thread_idx_x() as usize) = d[5] + e[31] + f32::from_bits(words[0]) * 0.0;
        }
    }
}

#[test]
fn tiles_are_handed_over_and_back() {
    clean(launched(handed_over, 256));
    let e = &emulator(5);
    let out = buffer(e, &vec![0f32; 128]);
    // SAFETY: a producer and a consumer warpgroup, a number for each consumer.
    unsafe { handed_over(e, &with_shared(grid(1, 256), 17 * 1024), out) }.unwrap();
    assert_eq!(values(e, out, 128), [3.0 * 64.0 + 3.0 + 3.0 * 64.0 + 1.0; 128]);
}

/// Writes the tile again before the products are waited for.
#[kernel]
pub unsafe fn overwritten(out: *mut f32) {
    unsafe {
        let [tile, _] = tiles();
        ones(tile, 0);
        async_copy::fence_proxy_async_shared();
        thread::sync_threads();
        let mut d = [0.0; 32];
        f16::multiply(&mut d, Descriptor::k_major(tile), Descriptor::k_major(tile), false);
        thread::sync_threads();
        tile.set(thread::thread_idx_x(), [0; 4]); // OTHER
        f16::wait::<0>(&mut d); // HERE
        *out.add(thread::thread_idx_x() as usize) = d[0];
    }
}

/// Reads what another thread stored without a fence.
#[kernel]
pub unsafe fn unfenced(out: *mut f32) {
    unsafe {
        let [tile, _] = tiles();
        ones(tile, 0);
        thread::sync_threads();
        async_copy::fence_proxy_async_shared();
        ones(tile, 0);
        thread::sync_threads();
        let mut d = [0.0; 32];
        f16::multiply(&mut d, Descriptor::k_major(tile), Descriptor::k_major(tile), false); // HERE
        f16::wait::<0>(&mut d);
        *out.add(thread::thread_idx_x() as usize) = d[0];
    }
}

/// Changes a sum under way.
#[kernel]
pub unsafe fn touched(out: *mut f32) {
    unsafe {
        let [tile, _] = tiles();
        ones(tile, 0);
        async_copy::fence_proxy_async_shared();
        thread::sync_threads();
        let mut d = [0.0; 32];
        f16::multiply(&mut d, Descriptor::k_major(tile), Descriptor::k_major(tile), false);
        d[3] = 1.0;
        f16::wait::<0>(&mut d); // HERE
        *out.add(thread::thread_idx_x() as usize) = d[0];
    }
}

/// The last warp multiplies another tile.
#[kernel]
pub unsafe fn of_two_minds(out: *mut f32) {
    unsafe {
        let [tile, other] = tiles();
        ones(tile, 0);
        ones(other, 0);
        async_copy::fence_proxy_async_shared();
        thread::sync_threads();
        let mut d = [0.0; 32];
        let mine = if warp::warp_id() == 3 { other } else { tile };
        f16::multiply(&mut d, Descriptor::k_major(tile), Descriptor::k_major(mine), false); // HERE
        f16::wait::<0>(&mut d);
        *out.add(thread::thread_idx_x() as usize) = d[0];
    }
}

#[test]
fn misuse_is_caught() {
    let source = include_str!("wgmma.rs");
    caught_in(source, "overwritten", Defect::Race, launched(overwritten, 128));
    caught_in(source, "unfenced", Defect::UnfencedProxy, launched(unfenced, 128));
    caught_in(source, "touched", Defect::UnfinishedProduct, launched(touched, 128));
    caught_in(source, "of_two_minds", Defect::AbsentLanes, launched(of_two_minds, 128));
}

/// Copies the box from column and row 64 on, and writes its words in the order of the matrix.
#[kernel]
pub unsafe fn boxed(matrix: *const u16, map: *const TensorMap, waits: u32, out: *mut [u32; 4]) {
    unsafe {
        let _ = matrix;
        let [tile, barriers] = tiles();
        let full = Mbarrier::new(Shared::from_address(barriers.address()));
        if thread::thread_idx_x() == 0 {
            full.init(1);
            full.arrive_expect_tx(TensorMap::box_bytes(64));
            async_copy::tensor_copy(tile, map, [64, 64], full);
        }
        thread::sync_threads();
        if waits != 0 {
            full.wait(0);
        }
        let mut i = thread::thread_idx_x();
        while i < 512 {
            *out.add(i as usize) = tile.get((i / 8) * 8 + ((i % 8) ^ (i / 8 % 8))); // HERE
            i += 128;
        }
    }
}

#[test]
fn boxes_are_swizzled_and_what_is_not_there_becomes_zeros() {
    const ROWS: usize = 100;
    const COLS: usize = 128;
    let value = |row: usize, column: usize| (row * COLS + column) as u16;
    let run = |e: &Emulator, waits| {
        let matrix: Vec<u16> = (0..ROWS * COLS).map(|i| value(i / COLS, i % COLS)).collect();
        let matrix = buffer(e, &matrix);
        let map = buffer(e, &TensorMap::emulated(matrix.as_raw(), ROWS as u32, COLS as u32, 64).0);
        let out = buffer(e, &[[7u32; 4]; 512]);
        // SAFETY: a matrix with its map, and room for a box.
        unsafe {
            boxed(e, &with_shared(grid(1, 128), 17 * 1024), matrix.into(), map.cast().into(), waits, out)
        }
        .map(|()| out)
    };
    for seed in 0..8 {
        let e = &emulator(seed);
        let out = run(e, 1).unwrap();
        for (i, found) in values::<u16>(e, out.cast(), 64 * 64).into_iter().enumerate() {
            let (row, column) = (64 + i / 64, 64 + i % 64);
            assert_eq!(found, if row < ROWS { value(row, column) } else { 0 }, "row {row}, column {column}");
        }
    }
    caught_in(include_str!("wgmma.rs"), "boxed", Defect::UnfinishedCopy, |e| run(e, 0).map(drop));
}
