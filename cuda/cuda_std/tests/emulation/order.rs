//! Planted defects of order and of launches, each caught by name and line, and beside each the same kernel done right, which is left
//! alone over 100 seeds.
//!
//! A line that a report must name ends in `// HERE`, or `// OTHER` for the earlier access of a race.

use cuda_std::atomic::{AtomicWord, Ordering, Scope};
use cuda_std::emulation::{Defect, Emulator, Report};
use cuda_std::mbarrier::Mbarrier;
use cuda_std::prelude::*;

use super::support::{buffer, clean, emulator, grid, line, with_shared, zeros};

fn caught(kernel: &str, defect: Defect, launch: impl Fn(&Emulator) -> Result<(), Report>) {
    super::support::caught_in(include_str!("order.rs"), kernel, defect, launch);
}

// A barrier that half of the block does not reach.

#[kernel]
unsafe fn divergent_barrier(out: *mut u32) {
    let i = thread::thread_idx_x();
    if i < 32 {
        thread::sync_threads(); // HERE
    }
    unsafe { *out.add(i as usize) = i }
}

#[kernel]
unsafe fn divergent_barrier_clean(out: *mut u32) {
    let i = thread::thread_idx_x();
    if i < 32 {
        unsafe { thread::sync_named(1, 32) };
    }
    thread::sync_threads();
    unsafe { *out.add(i as usize) = i }
}

/// Lanes of one warp at two barriers.
#[kernel]
unsafe fn divergent_barrier_warp(out: *mut u32) {
    let i = thread::thread_idx_x();
    if i.is_multiple_of(2) {
        thread::sync_threads(); // HERE
    } else {
        thread::sync_threads(); // OTHER
    }
    unsafe { *out.add(i as usize) = i }
}

#[test]
fn a_barrier_that_not_all_reach() {
    caught("divergent_barrier", Defect::DivergentBarrier, |e| unsafe {
        divergent_barrier(e, &grid(1, 64), zeros(e, 64))
    });
    clean(|e| unsafe { divergent_barrier_clean(e, &grid(1, 64), zeros(e, 64)) });
    for seed in 0..8 {
        let e = &emulator(seed);
        let report = unsafe { divergent_barrier_warp(e, &grid(1, 64), zeros(e, 64)) }.unwrap_err();
        assert_eq!(report.defect, Defect::DivergentBarrier, "{report}");
        let lines = ["// HERE", "// OTHER"]
            .map(|mark| line(include_str!("order.rs"), "divergent_barrier_warp", mark));
        assert!(lines.contains(&report.line), "{report}");
    }
}

// A shuffle with half of its lanes, and one that reads a lane that has ended.

#[kernel]
unsafe fn absent_lanes(out: *mut u32) {
    let i = thread::thread_idx_x();
    let mut value = i;
    if i < 16 {
        value = warp::shuffle_xor(value, 1); // HERE
    }
    thread::sync_threads();
    unsafe { *out.add(i as usize) = value }
}

#[kernel]
unsafe fn absent_lanes_ended(out: *mut u32) {
    let i = thread::thread_idx_x();
    if i >= 16 {
        return;
    }
    let value = warp::shuffle_xor(i, 16); // HERE
    unsafe { *out.add(i as usize) = value }
}

#[kernel]
unsafe fn absent_lanes_clean(out: *mut u32) {
    let i = thread::thread_idx_x();
    let mut value = i;
    if i < 16 {
        value = unsafe { warp::warp_shuffle_xor(0xffff, value, 1, 32) }.0;
    }
    thread::sync_threads();
    unsafe { *out.add(i as usize) = value }
}

#[test]
fn a_shuffle_with_absent_lanes() {
    caught("absent_lanes", Defect::AbsentLanes, |e| unsafe { absent_lanes(e, &grid(1, 32), zeros(e, 32)) });
    caught("absent_lanes_ended", Defect::AbsentLanes, |e| unsafe {
        absent_lanes_ended(e, &grid(1, 32), zeros(e, 32))
    });
    clean(|e| unsafe { absent_lanes_clean(e, &grid(1, 32), zeros(e, 32)) });
}

// A wait for a flag that nobody sets.

#[kernel]
unsafe fn deadlock(flag: *mut u32) {
    unsafe {
        if thread::block_idx_x() == 1 {
            u32::store(flag, 1, Ordering::Release, Scope::Device);
        }
        while u32::load(flag, Ordering::Acquire, Scope::Device) != 2 {} // HERE
    }
}

#[kernel]
unsafe fn deadlock_clean(flag: *mut u32, data: *mut u32) {
    unsafe {
        if thread::block_idx_x() == 1 {
            *data = 5;
            u32::store(flag, 2, Ordering::Release, Scope::Device);
        }
        while u32::load(flag, Ordering::Acquire, Scope::Device) != 2 {}
        if *data != 5 {
            *flag.add(100) = 0;
        }
    }
}

#[test]
fn a_wait_that_never_ends() {
    caught("deadlock", Defect::Deadlock, |e| unsafe { deadlock(e, &grid(3, 32), zeros(e, 1)) });
    clean(|e| unsafe { deadlock_clean(e, &grid(5, 1), zeros(e, 1), zeros(e, 1)) });
}

// More arrivals than an mbarrier expects; one that was never initialised.

#[kernel]
unsafe fn barrier_misuse(out: *mut u32) {
    let barrier = Mbarrier::new(shared_array![u64; 1]);
    let i = thread::thread_idx_x();
    unsafe {
        if i == 0 {
            barrier.init(31);
            barrier.arrive_expect_tx(16);
        }
        thread::sync_threads();
        barrier.arrive(); // HERE
        *out.add(i as usize) = i;
    }
}

#[test]
fn an_mbarrier_used_against_its_rules() {
    caught("barrier_misuse", Defect::BarrierMisuse, |e| unsafe {
        barrier_misuse(e, &grid(1, 32), zeros(e, 32))
    });
}

// A panic.

#[kernel]
unsafe fn panics(n: u32, out: *mut u32) {
    let table = [1, 2, 3, 4];
    let i = thread::thread_idx_x();
    unsafe { *out.add(i as usize) = table[(i % n) as usize] } // HERE
}

#[test]
fn a_panic() {
    caught("panics", Defect::Panic, |e| unsafe { panics(e, &grid(1, 32), 5, zeros(e, 32)) });
    clean(|e| unsafe { panics(e, &grid(1, 32), 4, zeros(e, 32)) });
}

// Launches that a driver refuses.

#[kernel(max_threads = 64)]
unsafe fn bounded(out: *mut u32) {
    unsafe { *out = 1 }
}

#[kernel]
unsafe fn large_parameter(x: [u64; 600], out: *mut u64) {
    unsafe { *out = x[7] }
}

#[kernel]
unsafe fn much_shared(out: *mut u32) {
    let tile = shared_array![u32; 40000]; // HERE
    unsafe {
        tile.set(0, 0);
        *out = tile.get(0);
    }
}

#[test]
fn launches_that_a_driver_refuses() {
    let refused = |result: Result<(), Report>, word: &str| {
        let report = result.unwrap_err();
        assert_eq!(report.defect, Defect::InvalidLaunch);
        assert!(report.detail.contains(word), "{report}");
    };
    let e = &emulator(0);
    unsafe {
        refused(bounded(e, &grid(1, 65), zeros(e, 1)), "max_threads = 64");
        refused(bounded(e, &grid(0, 64), zeros(e, 1)), "at least 1");
        refused(panics(e, &grid(1, 1025), 4, zeros(e, 1)), "1024");
        refused(bounded(e, &with_shared(grid(1, 1), 232_449), zeros(e, 1)), "232448");
        refused(large_parameter(e, &grid(1, 1), [0; 600], buffer(e, &[0u64])), "4096");
        refused(much_shared(e, &with_shared(grid(1, 1), 100_000), zeros(e, 1)), "260000");
        much_shared(e, &with_shared(grid(1, 1), 1000), zeros(e, 1)).unwrap();
    }
}

#[test]
fn names_are_stable_and_different() {
    let names: std::collections::BTreeSet<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
    assert_eq!(names.len(), Defect::ALL.len());
    assert_eq!(Defect::DivergentBarrier.to_string(), "divergent-barrier");
}
