//! Planted defects of memory, each caught by name and line, and beside each the same kernel done right, which is left
//! alone over 100 seeds.
//!
//! A line that a report must name ends in `// HERE`, or `// OTHER` for the earlier access of a race.

use cuda_std::atomic::{AtomicAdd, Ordering, Scope};
use cuda_std::emulation::{Defect, Emulator, Report};
use cuda_std::mbarrier::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::{async_copy, memory, mma};

use super::support::{buffer, clean, emulator, grid, line, with_shared, zeros};

fn caught(kernel: &str, defect: Defect, launch: impl Fn(&Emulator) -> Result<(), Report>) {
    super::support::caught_in(include_str!("memory.rs"), kernel, defect, launch);
}

// A race in shared memory: no barrier between reading a neighbour's element and overwriting it.

#[kernel]
unsafe fn race_shared(out: *mut u32) {
    let tile = shared_array![u32; 64];
    let i = thread::thread_idx_x();
    unsafe {
        tile.set(i, i);
        thread::sync_threads();
        *out.add(i as usize) = tile.get(63 - i); // HERE
        tile.set(i, 0); // OTHER
    }
}

#[kernel]
unsafe fn race_shared_clean(out: *mut u32) {
    let tile = shared_array![u32; 64];
    let i = thread::thread_idx_x();
    unsafe {
        tile.set(i, i);
        thread::sync_threads();
        *out.add(i as usize) = tile.get(63 - i);
        thread::sync_threads();
        tile.set(i, 0);
    }
}

#[test]
fn a_race_in_shared_memory() {
    caught("race_shared", Defect::Race, |e| unsafe { race_shared(e, &grid(1, 64), zeros(e, 64)) });
    clean(|e| unsafe { race_shared_clean(e, &grid(1, 64), zeros(e, 64)) });
}

// A race in one warp: a shuffle does not order memory, `sync_warp` does.

#[kernel]
unsafe fn race_warp(out: *mut u32) {
    let lane = warp::lane_id();
    unsafe {
        *out.add(lane as usize) = lane; // OTHER
        let sum = warp::shuffle_xor(lane, 1);
        *out.add(32 + lane as usize) = sum + *out.add((lane ^ 1) as usize); // HERE
    }
}

#[kernel]
unsafe fn race_warp_clean(out: *mut u32) {
    let lane = warp::lane_id();
    unsafe {
        *out.add(lane as usize) = lane;
        warp::sync_warp(warp::FULL_MASK);
        let pair = 3 << (lane & !1);
        *out.add(32 + lane as usize) = *out.add((lane ^ 1) as usize);
        warp::sync_warp(pair);
        *out.add((lane ^ 1) as usize) = 1;
    }
}

#[test]
fn a_race_in_a_warp() {
    caught("race_warp", Defect::Race, |e| unsafe { race_warp(e, &grid(1, 32), zeros(e, 64)) });
    clean(|e| unsafe { race_warp_clean(e, &grid(1, 32), zeros(e, 64)) });
}

// A race between blocks: the last block adds up what the others left, without an acquire.

#[kernel]
unsafe fn race_grid(counter: *mut u32, partials: *mut u32, out: *mut u32) {
    let block = thread::block_idx_x() as usize;
    unsafe {
        *partials.add(block) = 1; // OTHER
        let before = u32::fetch_add(counter, 1, Ordering::Relaxed, Scope::Device);
        if before == thread::grid_dim_x() - 1 {
            let mut sum = 0;
            let mut i = 0;
            while i < thread::grid_dim_x() as usize {
                sum += *partials.add(i); // HERE
                i += 1;
            }
            *out = sum;
        }
    }
}

#[kernel]
unsafe fn race_grid_clean(fenced: u32, counter: *mut u32, partials: *mut u32, out: *mut u32) {
    let block = thread::block_idx_x() as usize;
    unsafe {
        *partials.add(block) = 1;
        let before = if fenced != 0 {
            thread::device_fence();
            let before = u32::fetch_add(counter, 1, Ordering::Relaxed, Scope::Device);
            thread::device_fence();
            before
        } else {
            u32::fetch_add(counter, 1, Ordering::AcqRel, Scope::Device)
        };
        if before == thread::grid_dim_x() - 1 {
            let mut sum = 0;
            let mut i = 0;
            while i < thread::grid_dim_x() as usize {
                sum += *partials.add(i);
                i += 1;
            }
            *out = sum;
        }
    }
}

#[test]
fn a_race_between_blocks() {
    caught("race_grid", Defect::Race, |e| unsafe {
        race_grid(e, &grid(7, 1), zeros(e, 1), zeros(e, 7), zeros(e, 1))
    });
    for fenced in [0, 1] {
        clean(|e| unsafe { race_grid_clean(e, &grid(7, 1), fenced, zeros(e, 1), zeros(e, 7), zeros(e, 1)) });
    }
}

// Neighbouring half words are different elements; the same one is not.

#[kernel]
unsafe fn race_half(out: *mut u16) {
    unsafe { *out.add(thread::thread_idx_x() as usize / 2) = 1 } // HERE // OTHER
}

#[kernel]
unsafe fn race_half_clean(out: *mut u16, bytes: *mut u8) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        *out.add(i) = 1;
        *bytes.add(i) = 1;
    }
}

#[test]
fn a_race_of_half_words() {
    let report = |e: &Emulator| unsafe { race_half(e, &grid(1, 32), buffer(e, &[0u16; 16])) };
    assert_eq!(report(&emulator(3)).unwrap_err().defect, Defect::Race);
    clean(|e| unsafe { race_half_clean(e, &grid(1, 64), buffer(e, &[0u16; 64]), buffer(e, &[0u8; 64])) });
}

// A read of shared memory that nobody wrote.

#[kernel]
unsafe fn uninitialised(out: *mut u32) {
    let tile = shared_array![u32; 64];
    let i = thread::thread_idx_x();
    unsafe {
        if i != 7 {
            tile.set(i, i);
        }
        thread::sync_threads();
        *out.add(i as usize) = tile.get(63 - i); // HERE
    }
}

#[test]
fn a_read_of_shared_memory_that_nobody_wrote() {
    caught("uninitialised", Defect::UninitialisedShared, |e| unsafe {
        uninitialised(e, &grid(1, 64), zeros(e, 64))
    });
}

// Accesses outside: behind a buffer, behind a shared array, in a buffer that is not the launch's.

#[kernel]
unsafe fn outside_global(x: *const f32, out: *mut f32) {
    let i = thread::index_1d() as usize;
    unsafe { *out.add(i) = 1.0 + *x.add(i) } // HERE
}

#[kernel]
unsafe fn outside_shared(out: *mut u32) {
    let (tile, other) = (shared_array![u32; 32], shared_array![u32; 32]);
    let i = thread::thread_idx_x();
    unsafe {
        other.set(i, 0);
        tile.set(i + 1, 0); // HERE
        *out.add(i as usize) = i;
    }
}

/// A pointer in a structure.
#[repr(C)]
#[derive(Clone, Copy)]
struct View {
    length: u32,
    data: *const f32,
}

#[kernel]
unsafe fn outside_foreign(view: View, address: u64, out: *mut f32) {
    let i = thread::thread_idx_x() as usize;
    let foreign = (address + 1) as *const f32;
    unsafe {
        *out.add(i) = *view.data.add(i) + view.length as f32;
        *out.add(i) += *foreign; // HERE
    }
}

#[test]
fn accesses_outside_the_buffers() {
    caught("outside_global", Defect::OutOfBounds, |e| unsafe {
        let x = buffer(e, &[0.0f32; 63]);
        outside_global(e, &grid(2, 32), x.into(), buffer(e, &[0.0f32; 64]))
    });
    clean(|e| unsafe {
        let x = buffer(e, &[0.0f32; 64]);
        outside_global(e, &grid(2, 32), x.into(), buffer(e, &[0.0f32; 64]))
    });
    caught("outside_shared", Defect::OutOfBounds, |e| unsafe {
        outside_shared(e, &grid(1, 32), zeros(e, 32))
    });
    caught("outside_foreign", Defect::OutOfBounds, |e| unsafe {
        let view = View { length: 32, data: buffer(e, &[0.0f32; 32]).as_raw() as *const f32 };
        let foreign = buffer(e, &[0.0f32; 1]).as_raw();
        outside_foreign(e, &grid(1, 32), view, foreign - 1, buffer(e, &[0.0f32; 32]))
    });
}

// A vector load at an address that is a multiple of 4 only.

#[kernel]
unsafe fn misaligned(x: *const f32, out: *mut f32) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        let lanes = <f32 as Element>::load(x.add(i)); // HERE
        *out.add(i) = lanes[0];
    }
}

#[kernel]
unsafe fn misaligned_hint(x: *const f32, out: *mut f32) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        let [value, _] = memory::load_nc::<[f32; 2]>(x.add(i).cast()); // HERE
        *out.add(i) = value;
    }
}

#[kernel]
unsafe fn misaligned_clean(x: *const f32, out: *mut f32) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        let lanes = <f32 as Element>::load(x.add(4 * i));
        let [value, _] = memory::load_nc::<[f32; 2]>(x.add(2 * i).cast());
        *out.add(i) = lanes[0] + value;
    }
}

#[test]
fn a_misaligned_vector_load() {
    let x = |e: &Emulator| buffer(e, &[0.0f32; 128]);
    caught("misaligned", Defect::Misaligned, |e| unsafe { misaligned(e, &grid(1, 32), x(e).into(), x(e)) });
    caught("misaligned_hint", Defect::Misaligned, |e| unsafe {
        misaligned_hint(e, &grid(1, 32), x(e).into(), x(e))
    });
    clean(|e| unsafe { misaligned_clean(e, &grid(1, 32), x(e).into(), x(e)) });
}

// Reading the destination of a copy before it was waited for.

#[kernel]
unsafe fn unfinished_copy(x: *const f32, out: *mut f32) {
    let tile = dynamic_shared::<f32>();
    let i = thread::thread_idx_x();
    unsafe {
        async_copy::copy_4(tile.add(i), x.add(i as usize));
        async_copy::commit_group();
        async_copy::copy_4(tile.add(64 + i), x.add(i as usize));
        async_copy::commit_group();
        async_copy::wait_group::<1>();
        *out.add(i as usize) = tile.get(i) + tile.get(64 + i); // HERE
    }
}

#[kernel]
unsafe fn unfinished_copy_clean(x: *const f32, out: *mut f32) {
    let tile = dynamic_shared::<f32>();
    let i = thread::thread_idx_x();
    unsafe {
        async_copy::copy_4(tile.add(i), x.add(i as usize));
        async_copy::commit_group();
        async_copy::copy_4(tile.add(64 + i), x.add(i as usize));
        async_copy::commit_group();
        async_copy::wait_group::<1>();
        *out.add(i as usize) = tile.get(i);
        async_copy::wait_all();
        thread::sync_threads();
        *out.add(i as usize) += tile.get(64 + (i ^ 1));
    }
}

/// A bulk copy that is read before its `mbarrier` says so.
#[kernel]
unsafe fn unfinished_bulk(x: *const f32, out: *mut f32) {
    let (tile, place) = (dynamic_shared::<f32>(), shared_array![u64; 1]);
    let barrier = Mbarrier::new(place);
    let i = thread::thread_idx_x();
    unsafe {
        if i == 0 {
            barrier.init(1);
            barrier.arrive_expect_tx(256);
            async_copy::bulk_copy(tile, x, 256, barrier);
        }
        thread::sync_threads();
        if i == 40 {
            *out.add(100) = tile.get(i); // HERE
        }
        barrier.wait(0);
        *out.add(i as usize) = tile.get(i);
    }
}

#[kernel]
unsafe fn unfinished_bulk_clean(x: *const f32, out: *mut f32) {
    let (tile, place) = (dynamic_shared::<f32>(), shared_array![u64; 1]);
    let barrier = Mbarrier::new(place);
    let i = thread::thread_idx_x();
    unsafe {
        if i == 0 {
            barrier.init(1);
            cuda_std::mbarrier::fence_init();
        }
        thread::sync_threads();
        if i == 0 {
            barrier.arrive_expect_tx(256);
            async_copy::bulk_copy(tile, x, 256, barrier);
        }
        barrier.wait(0);
        *out.add(i as usize) = tile.get(i);
        thread::sync_threads();
        if i == 0 {
            barrier.arrive_expect_tx(256);
            async_copy::bulk_copy(tile, x, 256, barrier);
        }
        barrier.wait(1);
        *out.add(i as usize) += tile.get(63 - i);
    }
}

#[test]
fn a_copy_that_was_not_waited_for() {
    let x = |e: &Emulator| buffer(e, &[0.0f32; 128]);
    let config = with_shared(grid(1, 64), 512);
    caught("unfinished_copy", Defect::UnfinishedCopy, |e| unsafe {
        unfinished_copy(e, &config, x(e).into(), x(e))
    });
    clean(|e| unsafe { unfinished_copy_clean(e, &config, x(e).into(), x(e)) });
    // A copy that has landed by chance leaves a race behind.
    for seed in 0..8 {
        let e = emulator(seed);
        let report = unsafe { unfinished_bulk(&e, &config, x(&e).into(), x(&e)) }.unwrap_err();
        assert!(matches!(report.defect, Defect::UnfinishedCopy | Defect::Race), "{report}");
        assert_eq!(report.line, line(include_str!("memory.rs"), "unfinished_bulk", "// HERE"), "{report}");
    }
    clean(|e| unsafe { unfinished_bulk_clean(e, &config, x(e).into(), x(e)) });
}

// A row of `ldmatrix` behind its array.

#[kernel]
unsafe fn ldmatrix_outside(out: *mut u32) {
    let tile = shared_array![[u32; 4]; 4];
    unsafe {
        if warp::lane_id() < 4 {
            tile.set(warp::lane_id(), [0; 4]);
        }
        warp::sync_warp(warp::FULL_MASK);
        let [word] = mma::ldmatrix_x1(tile.add(warp::lane_id() % 8)); // HERE
        *out.add(warp::lane_id() as usize) = word;
    }
}

#[test]
fn a_matrix_row_outside_shared_memory() {
    let e = &emulator(0);
    let report = unsafe { ldmatrix_outside(e, &grid(1, 32), zeros(e, 32)) }.unwrap_err();
    assert_eq!(report.defect, Defect::OutOfBounds, "{report}");
    assert_eq!(report.line, line(include_str!("memory.rs"), "ldmatrix_outside", "// HERE"), "{report}");
}
