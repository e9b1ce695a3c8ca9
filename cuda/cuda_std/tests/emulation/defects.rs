//! One planted defect of each kind, each caught by name and line, and beside it the same kernel done right, which is
//! left alone over 100 seeds.
//!
//! A line that a report must name ends in `// HERE`, or `// OTHER` for the earlier access of a race.

use cuda_std::atomic::{AtomicAdd, AtomicWord, Ordering, Scope};
use cuda_std::emulation::{Defect, Emulator, Report};
use cuda_std::mbarrier::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::{async_copy, memory, mma};

use super::support::{buffer, emulator, grid, with_shared};

const SOURCE: &str = include_str!("defects.rs");
/// Seeds over which a correct kernel must be left alone.
const SEEDS: u64 = 100;

/// The line of kernel `kernel` that ends with `mark`.
fn line(kernel: &str, mark: &str) -> u32 {
    let start = SOURCE.lines().position(|line| line.contains(&format!("unsafe fn {kernel}("))).unwrap();
    let found = SOURCE.lines().enumerate().skip(start).find(|(_, line)| line.ends_with(mark)).unwrap();
    found.0 as u32 + 1
}

/// Runs a launch with a few seeds; all must report `defect` at the line of `kernel` that is marked.
fn caught(kernel: &str, defect: Defect, launch: impl Fn(&Emulator) -> Result<(), Report>) {
    for seed in 0..8 {
        let report = launch(&emulator(seed)).expect_err(kernel);
        let text = report.to_string();
        assert_eq!(report.defect, defect, "{text}");
        assert_eq!(report.kernel, kernel, "{text}");
        assert!(report.file.ends_with("emulation/defects.rs"), "{text}");
        let place = (report.line, report.other.as_ref().map(|other| other.line));
        let here = line(kernel, "// HERE");
        if defect == Defect::Race {
            // Which of the two comes first depends on the schedule.
            let (this, other) = (report.line, place.1.expect("a race has two sides"));
            let pair = [here, line(kernel, "// OTHER")];
            assert!(pair == [this, other] || pair == [other, this], "{text}");
        } else {
            assert_eq!(report.line, here, "{text}");
        }
    }
}

/// Runs a launch with many seeds; none may report anything.
fn clean(launch: impl Fn(&Emulator) -> Result<(), Report>) {
    for seed in 0..SEEDS {
        if let Err(report) = launch(&emulator(seed)) {
            panic!("{report}");
        }
    }
}

fn zeros(emulator: &Emulator, count: usize) -> DevicePtrMut<u32> {
    buffer(emulator, &vec![0u32; count])
}

// A race in shared memory: no barrier between writing and reading a neighbour's element.

#[kernel]
unsafe fn race_shared(out: *mut u32) {
    let tile = shared_array![u32; 64];
    let i = thread::thread_idx_x();
    unsafe {
        tile.set(i, i); // OTHER
        *out.add(i as usize) = tile.get(63 - i); // HERE
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
    }
}

#[test]
fn a_race_in_shared_memory() {
    // Nobody has written the element before the first thread reads it, unless it is its own: so fill it first.
    #[kernel]
    unsafe fn race_shared_reuse(out: *mut u32) {
        let tile = shared_array![u32; 64];
        let i = thread::thread_idx_x();
        unsafe {
            tile.set(i, i);
            thread::sync_threads();
            *out.add(i as usize) = tile.get(63 - i); // HERE
            tile.set(i, 0); // OTHER
        }
    }
    caught("race_shared_reuse", Defect::Race, |e| unsafe {
        race_shared_reuse(e, &grid(1, 64), zeros(e, 64))
    });
    let report = unsafe { race_shared(&emulator(0), &grid(1, 64), zeros(&emulator(0), 64)) }.unwrap_err();
    assert!(
        matches!(report.defect, Defect::Race | Defect::UninitialisedShared | Defect::OutOfBounds),
        "{report}"
    );
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
    clean(|e| {
        unsafe { race_warp_clean(e, &grid(2, 32), zeros(e, 64)) }.map_or_else(
            |report| {
                if report.defect == Defect::Race && report.block != report.other.as_ref().unwrap().block {
                    Ok(())
                } else {
                    Err(report)
                }
            },
            Ok,
        )
    });
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
    let report = unsafe { race_half(&emulator(3), &grid(1, 32), buffer(&emulator(3), &[0u16; 16])) };
    assert!(report.is_err());
    clean(|e| unsafe { race_half_clean(e, &grid(1, 64), buffer(e, &[0u16; 64]), buffer(e, &[0u8; 64])) });
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
    let report =
        unsafe { divergent_barrier_warp(&emulator(0), &grid(1, 64), zeros(&emulator(0), 64)) }.unwrap_err();
    assert_eq!(report.defect, Defect::DivergentBarrier, "{report}");
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
        assert_eq!(report.line, line("unfinished_bulk", "// HERE"), "{report}");
    }
    clean(|e| unsafe { unfinished_bulk_clean(e, &config, x(e).into(), x(e)) });
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

// Unused here but for its address: `ldmatrix` outside shared memory.

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
    assert_eq!(report.line, line("ldmatrix_outside", "// HERE"), "{report}");
}
