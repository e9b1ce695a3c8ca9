//! Every operation gives what the PTX ISA says.

use cuda_std::atomic::{AtomicAdd, AtomicInteger, AtomicWord, Ordering, Scope};
use cuda_std::grid::GridBarrier;
use cuda_std::prelude::*;

use super::support::{buffer, emulator, grid, values};

/// Places in a grid of 2 × 3 × 2 blocks of 4 × 2 × 3 threads.
#[kernel]
unsafe fn places(out: *mut [u32; 8]) {
    let place = [
        thread::index(),
        thread::index_in_block(),
        thread::index_of_block(),
        thread::index_1d(),
        thread::index_2d().1,
        thread::index_3d().2,
        warp::lane_id(),
        u32::from(thread::first()),
    ];
    unsafe { *out.add(thread::index() as usize) = place }
}

#[test]
fn threads_know_their_places() {
    let e = &emulator(2);
    let out = buffer(e, &[[0u32; 8]; 12 * 24]);
    let config = LaunchConfig { grid: [2, 3, 2], block: [4, 2, 3], shared_bytes: 0 };
    unsafe { places(e, &config, out) }.unwrap();
    for (i, place) in values(e, out, 12 * 24).into_iter().enumerate() {
        let (block, thread) = (i / 24, i % 24);
        let (x, y, z) =
            (block % 2 * 4 + thread % 4, block / 2 % 3 * 2 + thread / 4 % 2, block / 6 * 3 + thread / 8);
        let expected = [i, thread, block, x, y, z, thread % 32, usize::from(i == 0)];
        assert_eq!(place.map(|value| value as usize), expected);
    }
}

/// What barriers count, and what they order.
#[kernel]
unsafe fn barriers(out: *mut u32) {
    let tile = shared_array![u32; 96];
    let i = thread::thread_idx_x();
    unsafe {
        tile.set(i, i);
        let count = thread::sync_threads_count(i % 3);
        let and = thread::sync_threads_and(u32::from(i < 95));
        let or = thread::sync_threads_or(u32::from(i == 95));
        let mut seen = tile.get(95 - i);
        thread::sync_threads();
        // Two warps hand over to the third.
        if i < 64 {
            tile.set(i, 2 * i);
            thread::arrive_named(3, 96);
        } else {
            thread::sync_named(3, 96);
            seen += tile.get(i - 64);
        }
        *out.add(i as usize) = count * 10000 + and * 2000 + or * 1000 + seen;
    }
}

#[test]
fn barriers_count_and_order() {
    for seed in 0..20 {
        let e = &emulator(seed);
        let out = buffer(e, &[0u32; 96]);
        unsafe { barriers(e, &grid(1, 96), out) }.unwrap();
        let expected = (0..96).map(|i| 640_000 + 1000 + 95 - i + if i >= 64 { 2 * (i - 64) } else { 0 });
        assert_eq!(values(e, out, 96), expected.collect::<Vec<u32>>());
    }
}

/// All shuffles, one lane's results in a row.
#[kernel]
unsafe fn shuffles(out: *mut [u32; 10]) {
    let lane = warp::lane_id();
    unsafe {
        let (up, up_in) = warp::warp_shuffle_up(warp::FULL_MASK, lane, 3, 8);
        let (down, down_in) = warp::warp_shuffle_down(warp::FULL_MASK, lane, 5, 16);
        let (xor, xor_in) = warp::warp_shuffle_xor(warp::FULL_MASK, lane, 9, 8);
        let (index, index_in) = warp::warp_shuffle_idx(warp::FULL_MASK, lane, 13, 8);
        let wide = warp::shuffle_xor([u64::from(lane) << 40, 7], 31);
        let narrow = warp::shuffle_down(lane as u8, 1);
        let inside =
            u32::from(up_in) | u32::from(down_in) << 1 | u32::from(xor_in) << 2 | u32::from(index_in) << 3;
        let sum = warp::reduce_sum(lane as f32) as u32;
        let largest = warp::reduce(lane, u32::max);
        *out.add(lane as usize) = [
            up,
            down,
            xor,
            index,
            (wide[0] >> 40) as u32,
            wide[1] as u32,
            narrow.into(),
            inside,
            sum,
            largest,
        ];
    }
}

#[test]
fn shuffles_move_values() {
    let e = &emulator(1);
    let out = buffer(e, &[[0u32; 10]; 32]);
    unsafe { shuffles(e, &grid(1, 32), out) }.unwrap();
    for (lane, got) in (0u32..).zip(values(e, out, 32)) {
        let (up_in, down_in) = (lane % 8 >= 3, lane % 16 + 5 < 16);
        let expected = [
            if up_in { lane - 3 } else { lane },
            if down_in { lane + 5 } else { lane },
            // Beyond the segment's end, but a lower lane is always in range.
            if lane ^ 9 <= (lane | 7) { lane ^ 9 } else { lane },
            lane / 8 * 8 + 5,
            31 - lane,
            7,
            if lane < 31 { lane + 1 } else { 31 },
            u32::from(up_in) | u32::from(down_in) << 1 | u32::from((lane ^ 9) <= (lane | 7)) << 2 | 8,
            496,
            31,
        ];
        assert_eq!(got, expected, "lane {lane}");
    }
}

/// Votes, matches and reductions.
#[kernel]
unsafe fn votes(out: *mut [u32; 12]) {
    use warp::WarpReductionOp::{Add, And, Max, Min, Or, Xor};
    let lane = warp::lane_id();
    let odd = 0xaaaa_aaaa;
    unsafe {
        let value = lane / 10;
        let signed = lane.cast_signed() - 16;
        let partial = if lane % 2 == 1 { warp::warp_vote_ballot(odd, lane > 20) } else { 0 };
        *out.add(lane as usize) = [
            u32::from(warp::warp_vote_all(warp::FULL_MASK, lane < 32)),
            u32::from(warp::warp_vote_any(warp::FULL_MASK, lane == 33)),
            warp::warp_vote_ballot(warp::FULL_MASK, lane.is_multiple_of(3)),
            partial,
            warp::warp_match_any(warp::FULL_MASK, u64::from(value) << 33),
            warp::warp_match_all(warp::FULL_MASK, 1.5f32).unwrap_or(0)
                ^ warp::warp_match_all(warp::FULL_MASK, value).unwrap_or(0),
            warp::warp_reduce(warp::FULL_MASK, lane, Add),
            warp::warp_reduce(warp::FULL_MASK, signed, Min).cast_unsigned(),
            warp::warp_reduce(warp::FULL_MASK, signed.cast_unsigned(), Max),
            warp::warp_reduce(warp::FULL_MASK, lane | 64, And),
            warp::warp_reduce(warp::FULL_MASK, lane, Or) + warp::warp_reduce(warp::FULL_MASK, lane, Xor),
            u32::from(warp::elect(warp::FULL_MASK)),
        ];
    }
}

#[test]
fn votes_matches_and_reductions() {
    let e = &emulator(5);
    let out = buffer(e, &[[0u32; 12]; 32]);
    unsafe { votes(e, &grid(1, 32), out) }.unwrap();
    let got = values(e, out, 32);
    for (lane, got) in (0u32..).zip(&got) {
        let same = [0x3ff, 0xf_fc00, 0x3ff0_0000, 0xc000_0000][lane as usize / 10];
        let partial = if lane % 2 == 1 { 0xaaa0_0000 } else { 0 };
        let expected =
            [1, 0, 0x4924_9249, partial, same, u32::MAX, 496, (-16i32).cast_unsigned(), u32::MAX, 64, 31];
        assert_eq!(got[..11], expected, "lane {lane}");
    }
    assert_eq!(got.iter().map(|got| got[11]).sum::<u32>(), 1);
}

/// Atomics of all kinds, by all threads of a grid.
#[kernel]
unsafe fn atomics(words: *mut u32, wide: *mut i64, floats: *mut f32) {
    use Ordering::{AcqRel, Relaxed, SeqCst};
    let i = thread::index_1d();
    unsafe {
        u32::fetch_add(words, i, AcqRel, Scope::Device);
        u32::fetch_min(words.add(1), i + 5, Relaxed, Scope::System);
        u32::fetch_max(words.add(2), i, SeqCst, Scope::Device);
        u32::fetch_and(words.add(3), !(1 << (i % 32)), Relaxed, Scope::Device);
        u32::fetch_or(words.add(4), 1 << (i % 32), Relaxed, Scope::Device);
        u32::fetch_xor(words.add(5), i, Relaxed, Scope::Device);
        i64::fetch_min(wide, -i64::from(i), Relaxed, Scope::Device);
        i64::fetch_add(wide.add(1), -1 << 40, Relaxed, Scope::Device);
        f32::add(floats, 0.5, Ordering::Relaxed, Scope::Device);
        // A lock by exchange, a counter under it, and a ticket by compare-and-exchange.
        while u32::exchange(words.add(6), 1, Ordering::Acquire, Scope::Device) != 0 {}
        *words.add(7) += 1;
        u32::store(words.add(6), 0, Ordering::Release, Scope::Device);
        let mut seen = u32::load(words.add(8), Relaxed, Scope::Device);
        loop {
            let old = u32::compare_exchange(words.add(8), seen, seen + 2, Relaxed, Scope::Device);
            if old == seen {
                break;
            }
            seen = old;
        }
    }
}

#[test]
fn atomics_are_atomic() {
    for seed in 0..20 {
        let e = &emulator(seed);
        let words = buffer(e, &[0, u32::MAX, 0, u32::MAX, 0, 0, 0, 0, 0u32]);
        let (wide, floats) = (buffer(e, &[0i64; 2]), buffer(e, &[0.0f32]));
        unsafe { atomics(e, &grid(5, 40), words, wide, floats) }.unwrap();
        let xor = (0..200).fold(0, |a, b| a ^ b);
        assert_eq!(values(e, words, 9), [199 * 100, 5, 199, 0, u32::MAX, xor, 0, 200, 400]);
        assert_eq!(values(e, wide, 2), [-199, -200 << 40]);
        assert_eq!(values(e, floats, 1), [100.0]);
    }
}

/// Blocks exchange values through global memory, several times.
#[kernel]
unsafe fn exchange_over_grid(rounds: u32, word: *mut u32, out: *mut u32) {
    let blocks = thread::grid_dim_x();
    let (block, i) = (thread::block_idx_x(), thread::thread_idx_x());
    unsafe {
        let barrier = GridBarrier::new(word);
        let mut round = 0;
        while round < rounds {
            let next = (block + 1) % blocks * 32 + i;
            let value = *out.add(next as usize);
            barrier.sync();
            *out.add((block * 32 + i) as usize) = value + 1;
            let arrival = barrier.arrive();
            barrier.wait(arrival);
            round += 1;
        }
    }
}

#[test]
fn a_barrier_over_the_grid() {
    for seed in 0..20 {
        let e = &emulator(seed);
        let out = buffer(e, &(0..37 * 32).collect::<Vec<u32>>());
        unsafe { exchange_over_grid(e, &grid(37, 32), 3, buffer(e, &[0u32]), out) }.unwrap();
        let expected = (0..37 * 32).map(|i| (i + 3 * 32) % (37 * 32) + 3);
        assert_eq!(values(e, out, 37 * 32), expected.collect::<Vec<u32>>());
    }
}

/// `out = a · b + 1` for a row-major `a` (16 × 16) and `b` (16 × 8), by way of shared memory.
#[kernel]
unsafe fn product(a: *const bf16, b: *const bf16, out: *mut f32) {
    use cuda_std::mma::{self, MmaElement};
    let (left, right) = (shared_array![bf16; 256], shared_array![bf16; 128]);
    let lane = warp::lane_id();
    unsafe {
        let mut i = lane;
        while i < 256 {
            left.set(i, *a.add(i as usize));
            if i < 128 {
                right.set(i, *b.add(i as usize));
            }
            i += 32;
        }
        warp::sync_warp(warp::FULL_MASK);
        let a = mma::ldmatrix_x4(left.add(lane % 16 * 16 + lane / 16 * 8));
        let b = mma::ldmatrix_x2_trans(right.add(lane % 16 * 8));
        let d = bf16::mma_m16n8k16(a, b, [1.0; 4]);
        let (row, column) = (lane / 4, lane % 4 * 2);
        let at = |row: u32, column: u32| out.add((row * 8 + column) as usize);
        *at(row, column) = d[0];
        *at(row, column + 1) = d[1];
        *at(row + 8, column) = d[2];
        *at(row + 8, column + 1) = d[3];
    }
}

#[test]
fn fragments_make_a_matrix_product() {
    let (a, b) =
        (|row: usize, k: usize| (row * 3 + k * 5) % 17, |k: usize, column: usize| (k * 7 + column) % 13);
    let e = &emulator(0);
    let left: Vec<_> = (0..256).map(|i| bf16::from_f32(a(i / 16, i % 16) as f32)).collect();
    let right: Vec<_> = (0..128).map(|i| bf16::from_f32(b(i / 8, i % 8) as f32)).collect();
    let out = buffer(e, &[0.0f32; 128]);
    unsafe { product(e, &grid(1, 32), buffer(e, &left).into(), buffer(e, &right).into(), out) }.unwrap();
    let sum = |i: usize| 1 + (0..16).map(|k| a(i / 8, k) * b(k, i % 8)).sum::<usize>();
    assert_eq!(values(e, out, 128), (0..128).map(|i| sum(i) as f32).collect::<Vec<_>>());
}

/// A ring of two stages: one warp copies with bulk copies, two warps add up.
#[kernel]
unsafe fn pipeline(stages: u32, x: *const u32, out: *mut u32) {
    use cuda_std::{async_copy, mbarrier::Mbarrier};
    let (full, empty) = (shared_array![u64; 2], shared_array![u64; 2]);
    let tile = dynamic_shared::<u32>();
    let i = thread::thread_idx_x();
    unsafe {
        if i == 0 {
            let mut slot = 0;
            while slot < 2 {
                Mbarrier::new(full.add(slot)).init(1);
                Mbarrier::new(empty.add(slot)).init(64);
                slot += 1;
            }
            cuda_std::mbarrier::fence_init();
        }
        thread::sync_threads();
        let mut stage = 0;
        let mut sum = 0;
        while stage < stages {
            let (slot, phase) = (stage % 2, stage / 2 % 2);
            let (full, empty) = (Mbarrier::new(full.add(slot)), Mbarrier::new(empty.add(slot)));
            if i == 64 {
                if stage >= 2 {
                    empty.wait(phase ^ 1);
                }
                full.arrive_expect_tx(256);
                async_copy::bulk_copy(tile.add(64 * slot), x.add(64 * stage as usize), 256, full);
            } else if i < 64 {
                full.wait(phase);
                sum += tile.get(64 * slot + (i ^ 1));
                empty.arrive();
            }
            stage += 1;
        }
        if i < 64 {
            *out.add(i as usize) = sum;
        }
    }
}

#[test]
fn a_pipeline_of_bulk_copies() {
    for seed in 0..40 {
        let e = &emulator(seed);
        let x: Vec<u32> = (0..64 * 7).map(|i| i * i).collect();
        let out = buffer(e, &[0u32; 64]);
        let config = LaunchConfig { shared_bytes: 512, ..grid(1, 96) };
        unsafe { pipeline(e, &config, 7, buffer(e, &x).into(), out) }.unwrap();
        let expected = (0..64).map(|i| (0..7).map(|stage| x[64 * stage + (i ^ 1)]).sum());
        assert_eq!(values(e, out, 64), expected.collect::<Vec<u32>>(), "seed {seed}");
    }
}

/// Copies of all sizes, ragged ones, and an arrival after copies.
#[kernel]
unsafe fn copies(x: *const u8, out: *mut [u32; 4]) {
    use cuda_std::{async_copy, mbarrier::Mbarrier};
    let tile = shared_array![[u32; 4]; 160];
    let barrier = Mbarrier::new(shared_array![u64; 1]);
    let i = thread::thread_idx_x();
    unsafe {
        if i == 0 {
            barrier.init(32);
        }
        thread::sync_threads();
        let (place, from) = (tile.add(5 * i), x.add(16 * i as usize));
        place.set(0, [0; 4]);
        place.set(1, [0; 4]);
        async_copy::copy_4(place, from);
        async_copy::copy_8(place.add(1), from);
        async_copy::copy_16(place.add(2), from);
        async_copy::commit_group();
        async_copy::copy_16_l2(place.add(3), from);
        async_copy::copy_16_or_zero(place.add(4), from, i % 17);
        barrier.arrive_after_copies();
        barrier.wait(0);
        let mut word = 0;
        while word < 5 {
            *out.add((5 * i + word) as usize) = tile.get(5 * (i ^ 1) + word);
            word += 1;
        }
    }
}

#[test]
fn asynchronous_copies_arrive() {
    for seed in 0..20 {
        let e = &emulator(seed);
        let x: Vec<u8> = (0..512).map(|i| (i % 251) as u8 + 1).collect();
        let out = buffer(e, &[[0u32; 4]; 160]);
        unsafe { copies(e, &grid(1, 32), buffer(e, &x).into(), out) }.unwrap();
        for (i, row) in values(e, out, 160).chunks(5).enumerate() {
            let source = &x[16 * (i ^ 1)..][..16];
            for (word, bytes) in row.iter().zip([4, 8, 16, 16, (i ^ 1) % 17]) {
                let mut expected = [0; 16];
                expected[..bytes].copy_from_slice(&source[..bytes]);
                let got: Vec<u8> = word.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!(got, expected, "seed {seed}, thread {i}");
            }
        }
    }
}

#[test]
fn kernels_that_a_gpu_is_compared_on_run_here() {
    use cuda_std_test_kernels::{
        compare_approximate, compare_atomics, compare_exact, compare_ldmatrix, compare_mma, compare_warp,
    };
    let e = &emulator(7);
    let words: Vec<u32> = (0..64 * 10).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
    let words = || buffer(e, &words);
    let exact = buffer(e, &[[0u32; 21]; 64]);
    let matrices = buffer(e, &[[0u32; 14]; 32]);
    let lanes = buffer(e, &[[0u32; 26]; 64]);
    unsafe {
        compare_exact(e, &grid(2, 32), 64, words().cast().into(), exact).unwrap();
        compare_approximate(e, &grid(2, 32), 64, words().cast().into(), buffer(e, &[[0.0; 9]; 64])).unwrap();
        compare_atomics(e, &grid(2, 32), words().cast(), buffer(e, &[[0u32; 10]; 64])).unwrap();
        compare_mma(e, &grid(2, 32), words().cast().into(), buffer(e, &[[[0.0; 8]; 2]; 64])).unwrap();
        compare_ldmatrix(e, &grid(1, 32), matrices).unwrap();
        compare_warp(e, &grid(2, 32), words().cast().into(), lanes).unwrap();
    }
    let first = values(e, exact, 1)[0];
    assert_eq!(f32::from_bits(first[6]), 1.0, "0 * y + 1");
    // Lane 5 has elements 2 and 3 of row 1, which lane 1 gave as the row of lane 2.
    assert_eq!(values(e, matrices, 6)[5][0], (2 * 8 + 2) | ((2 * 8 + 3) << 16));
}

#[test]
fn nan_has_the_bits_that_an_h200_gives() {
    use cuda_std_test_kernels::{EXACT, compare_atomics, compare_exact, compare_warp};
    // Inputs and results from a run of the test `gpu_emulation`.
    const NAN: u32 = 0x7fff_ffff;
    let e = &emulator(3);
    let pairs = [
        [0x7fc0_0000, 0],
        [0xffd4_605a, 0x7fec_0a3f],
        [0x7f80_0001, 0xff80_0000],
        [0xf85a_587b, 0x7fc0_0000],
        [0x7f7f_ffff, 0x43c2_ce17],
        [0x3af5_7f86, 0x4178_0067],
    ];
    let out = buffer(e, &[[0u32; 21]; 6]);
    unsafe { compare_exact(e, &grid(1, 32), 6, buffer(e, &pairs).into(), out) }.unwrap();
    let rows = values(e, out, 6);
    let column = |name: &str| EXACT.iter().position(|column| *column == name).unwrap();
    let names = [
        "floor",
        "ceil",
        "round",
        "round_ties_even",
        "trunc",
        "fract",
        "sqrt",
        "mul_add",
        "add_rn",
        "mul_rn",
    ];
    for name in names {
        assert_eq!([0, 1, 2].map(|row: usize| rows[row][column(name)]), [NAN; 3], "{name}");
    }
    for half in ["to f16", "to bf16"] {
        assert_eq!([0, 1, 2].map(|row: usize| rows[row][column(half)]), [0x7fff; 3], "{half}");
    }
    assert_eq!(rows[4][column("from f16")], NAN);
    assert_eq!(rows[5][column("from bf16")], 0x7f86_0000);
    assert_eq!(rows[3][column("pack f16")], 0x7fff_fc00);
    assert_eq!(rows[3][column("pack bf16")], 0x7fff_f85a);

    let words = buffer(e, &[[0x5aad_1eb5u32, 0xffee_ddfd, 0xbf66_69cb]; 64]);
    let out = buffer(e, &[[0u32; 10]; 64]);
    unsafe { compare_atomics(e, &grid(1, 64), words, out) }.unwrap();
    assert_eq!(values(e, out, 1)[0][..2], [NAN; 2]);

    // An even word in lane 7 makes zeros of the signs in all lanes, an odd one NaN.
    for (word, expected) in [(0u32, [0, 0x8000_0000]), (1, [NAN; 2])] {
        let words: Vec<u32> = (0..32).map(|lane| lane << 31 | word).collect();
        let out = buffer(e, &[[0u32; 26]; 32]);
        unsafe { compare_warp(e, &grid(1, 32), buffer(e, &words).into(), out) }.unwrap();
        for lane in values(e, out, 32) {
            assert_eq!(lane[24..], expected);
        }
    }
    for x in [f32::NAN, f32::from_bits(0xff80_0001)] {
        let given = [
            x.exp2_approx(),
            GpuFloat::exp(x),
            GpuFloat::exp2(x),
            GpuFloat::rsqrt(x),
            x.recip_approx(),
            x.exp_approx(),
            x.ln_approx(),
            x.log2_approx(),
            x.sin_approx(),
            x.cos_approx(),
            GpuFloat::fract(f32::INFINITY),
        ];
        assert_eq!(given.map(f32::to_bits), [NAN; 11]);
    }
    let subnormal = f32::MIN_POSITIVE / 2.0;
    assert_eq!(
        [-127.0, -126.0, subnormal, 3.0, f32::NEG_INFINITY].map(f32::exp2_approx),
        [0.0, f32::MIN_POSITIVE, 1.0, 8.0, 0.0]
    );
}
