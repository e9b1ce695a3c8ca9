//! Kernels that a GPU and the emulator must agree on: exact operations bit for bit, approximations within the
//! bounds that are stated for them. The main package's test `gpu_emulation` runs both.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    atomic::{AtomicAdd, AtomicInteger, Ordering, Scope},
    mma::{self, MmaElement},
};

/// Results of [`compare_exact`] for each pair of inputs.
pub const EXACT: [&str; 21] = [
    "floor",
    "ceil",
    "round",
    "round_ties_even",
    "trunc",
    "sqrt",
    "mul_add",
    "add_rn",
    "mul_rn",
    "division",
    "max",
    "min",
    "to f16",
    "to bf16",
    "from f16",
    "from bf16",
    "pack f16",
    "pack bf16",
    "to i32",
    "from u32",
    "fract",
];

/// Results of [`compare_approximate`].
pub const APPROXIMATE: [&str; 9] = [
    "exp2",
    "rsqrt",
    "exp",
    "recip_approx",
    "exp_approx",
    "log2_approx",
    "sin_approx",
    "cos_approx",
    "exp2_approx",
];

/// Exact functions of pairs of numbers, as bits; thread `i` takes pair `i`.
///
/// # Safety
/// `pairs` and `out` hold `n` elements.
#[kernel]
pub unsafe fn compare_exact(n: u32, pairs: *const [u32; 2], out: *mut [u32; 21]) {
    let i = thread::index_1d();
    if i >= n {
        return;
    }
    // SAFETY: `i` is below `n`.
    unsafe {
        let [a, b] = *pairs.add(i as usize);
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let half = |word: u32| f16::from_bits(word as u16);
        let brain = |word: u32| bf16::from_bits(word as u16);
        *out.add(i as usize) = [
            GpuFloat::floor(x).to_bits(),
            GpuFloat::ceil(x).to_bits(),
            GpuFloat::round(x).to_bits(),
            GpuFloat::round_ties_even(x).to_bits(),
            GpuFloat::trunc(x).to_bits(),
            GpuFloat::sqrt(x).to_bits(),
            GpuFloat::mul_add(x, y, 1.0).to_bits(),
            x.add_rn(y).to_bits(),
            x.mul_rn(y).to_bits(),
            (x / y).to_bits(),
            x.max(y).to_bits(),
            x.min(y).to_bits(),
            <f16 as Element>::from_f32(x).to_bits().into(),
            <bf16 as Element>::from_f32(x).to_bits().into(),
            Element::to_f32(half(a)).to_bits(),
            Element::to_f32(brain(a)).to_bits(),
            <f16 as PackedElement>::pack2(x, y),
            <bf16 as PackedElement>::pack2(x, y),
            (x as i32).cast_unsigned(),
            (a as f32).to_bits(),
            GpuFloat::fract(x).to_bits(),
        ];
    }
}

/// Approximate functions; thread `i` takes number `i`.
///
/// # Safety
/// `x` and `out` hold `n` elements.
#[kernel]
pub unsafe fn compare_approximate(n: u32, x: *const f32, out: *mut [f32; 9]) {
    let i = thread::index_1d();
    if i >= n {
        return;
    }
    // SAFETY: `i` is below `n`.
    unsafe {
        let x = *x.add(i as usize);
        *out.add(i as usize) = [
            GpuFloat::exp2(x),
            GpuFloat::rsqrt(x),
            GpuFloat::exp(x),
            x.recip_approx(),
            x.exp_approx(),
            x.log2_approx(),
            x.sin_approx(),
            x.cos_approx(),
            x.exp2_approx(),
        ];
    }
}

/// Warp operations on random values: `out` holds 26 words a lane.
///
/// # Safety
/// One warp a block; `x` and `out` hold an element for each thread.
#[kernel]
pub unsafe fn compare_warp(x: *const u32, out: *mut [u32; 26]) {
    use warp::WarpReductionOp::{Add, And, Max, Min, Or, Xor};
    let mask = warp::FULL_MASK;
    // SAFETY: all lanes come to everything; elements are the threads' own.
    unsafe {
        let value = *x.add(thread::index_1d() as usize);
        // The same in all lanes.
        let (by, few) = (warp::shuffle_idx(value, 7) % 32, value % 5);
        let (down, up) =
            (warp::warp_shuffle_down(mask, value, by, 16), warp::warp_shuffle_up(mask, value, by, 8));
        let (index, xor) =
            (warp::warp_shuffle_idx(mask, value, value, 4), warp::warp_shuffle_xor(mask, value, by, 32));
        let signed = value.cast_signed();
        // Either zeros of both signs in all lanes, or NaN of all kinds.
        let float = f32::from_bits(if by % 2 == 0 { value & 0x8000_0000 } else { value | 0x7fc0_0000 });
        *out.add(thread::index_1d() as usize) = [
            down.0,
            u32::from(down.1),
            up.0,
            u32::from(up.1),
            index.0,
            u32::from(index.1),
            xor.0,
            u32::from(xor.1),
            warp::shuffle_xor(value, 5),
            warp::warp_vote_ballot(mask, few == 0),
            u32::from(warp::warp_vote_any(mask, value > u32::MAX - (1 << 26))),
            u32::from(warp::warp_vote_all(mask, value > 1 << 26)),
            warp::warp_match_any(mask, few),
            warp::warp_match_any(mask, u64::from(few) << 40),
            warp::warp_match_all(mask, by).unwrap_or(0),
            warp::warp_match_all(mask, few).unwrap_or(0),
            warp::warp_reduce(mask, value, Add),
            warp::warp_reduce(mask, value, Min) ^ warp::warp_reduce(mask, value, Max),
            warp::warp_reduce(mask, signed, Min).cast_unsigned(),
            warp::warp_reduce(mask, signed, Max).cast_unsigned(),
            warp::warp_reduce(mask, value | 0xff, And),
            warp::warp_reduce(mask, value & 0xff00, Or),
            warp::warp_reduce(mask, value, Xor),
            warp::reduce_sum(value as f32).to_bits(),
            warp::reduce_max(float).to_bits(),
            warp::reduce_min(float).to_bits(),
        ];
    }
}

/// What `ldmatrix` puts where.
///
/// # Safety
/// One warp; `out` holds 32 elements.
#[kernel]
pub unsafe fn compare_ldmatrix(out: *mut [u32; 14]) {
    let tile = shared_array![[u16; 8]; 32];
    let lane = warp::lane_id();
    // SAFETY: each lane writes its row, then all read.
    unsafe {
        let mut row = [0u16; 8];
        let mut i = 0;
        while i < 8 {
            row[i] = (lane * 8 + i as u32) as u16;
            i += 1;
        }
        tile.set(lane, row);
        warp::sync_warp(warp::FULL_MASK);
        let place = tile.add(lane ^ 3);
        let ([a], [b]) = (mma::ldmatrix_x1(place), mma::ldmatrix_x1_trans(place));
        let ([c, d], [e, f]) = (mma::ldmatrix_x2(place), mma::ldmatrix_x2_trans(place));
        let ([g, h, i, j], [k, l, m, n]) = (mma::ldmatrix_x4(place), mma::ldmatrix_x4_trans(place));
        *out.add(lane as usize) = [a, b, c, d, e, f, g, h, i, j, k, l, m, n];
    }
}

#[device]
#[inline(always)]
unsafe fn multiply<E: MmaElement>(words: [u32; 10]) -> [f32; 8] {
    let [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3] = words;
    let c = [c0, c1, c2, c3].map(f32::from_bits);
    // SAFETY: all lanes come.
    unsafe {
        let [d0, d1, d2, d3] = E::mma_m16n8k16([a0, a1, a2, a3], [b0, b1], c);
        let [e0, e1, e2, e3] = E::mma_m16n8k8([a0, a1], b0, c);
        [d0, d1, d2, d3, e0, e1, e2, e3]
    }
}

/// Products of fragments, a block each: both depths in f16, then both in bf16.
///
/// # Safety
/// One warp a block; `words` (a, b, c) and `out` hold an element for each thread.
#[kernel]
pub unsafe fn compare_mma(words: *const [u32; 10], out: *mut [[f32; 8]; 2]) {
    let i = thread::index_1d() as usize;
    // SAFETY: all lanes come; elements are the threads' own.
    unsafe {
        let words = *words.add(i);
        *out.add(i) = [multiply::<f16>(words), multiply::<bf16>(words)];
    }
}

/// Products of fragments of signed bytes, a block each: both depths, and the four bytes of a0 with those of b0.
///
/// # Safety
/// As [`compare_mma`].
#[kernel]
pub unsafe fn compare_mma_integers(words: *const [u32; 10], out: *mut [i32; 9]) {
    let i = thread::index_1d() as usize;
    // SAFETY: all lanes come; elements are the threads' own.
    unsafe {
        let [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3] = *words.add(i);
        let c = [c0 as i32, c1 as i32, c2 as i32, c3 as i32];
        let [d0, d1, d2, d3] = mma::mma_m16n8k32_s8([a0, a1, a2, a3], [b0, b1], c);
        let [e0, e1, e2, e3] = mma::mma_m16n8k16_s8([a0, a1], b0, c);
        *out.add(i) = [d0, d1, d2, d3, e0, e1, e2, e3, mma::dot4_s8(a0, b0, c[0])];
    }
}

/// Products of TF32: the words of a lane are a, b and c.
///
/// # Safety
/// As [`compare_mma`].
#[kernel]
pub unsafe fn compare_mma_tf32(words: *const [f32; 10], out: *mut [f32; 4]) {
    let i = thread::index_1d() as usize;
    // SAFETY: all lanes come; elements are the threads' own.
    unsafe {
        let [a0, a1, a2, a3, b0, b1, c @ ..] = *words.add(i);
        *out.add(i) = mma::mma_m16n8k8_tf32([a0, a1, a2, a3], [b0, b1], c);
    }
}

/// One thread's atomics, in global and in shared memory.
///
/// # Safety
/// `words` holds 3 numbers for each thread, `out` 10.
#[kernel(max_threads = 64)]
pub unsafe fn compare_atomics(words: *mut [u32; 3], out: *mut [u32; 10]) {
    use Ordering::Relaxed;
    let tile = shared_array![f32; 64];
    let (i, t) = (thread::index_1d() as usize, thread::thread_idx_x());
    // SAFETY: each thread has its own elements.
    unsafe {
        let [a, b, c] = *words.add(i);
        tile.set(t, f32::from_bits(a));
        let (float, shared) = (words.add(i).cast::<f32>(), tile.add(t).as_mut_ptr());
        f32::add(float, f32::from_bits(b), Relaxed, Scope::Device);
        f32::add(shared, f32::from_bits(b), Relaxed, Scope::Block);
        let signed = words.add(i).cast::<i32>().add(1);
        let unsigned = words.add(i).cast::<u32>().add(2);
        *out.add(i) = [
            (*float).to_bits(),
            tile.get(t).to_bits(),
            i32::fetch_min(signed, c.cast_signed(), Relaxed, Scope::Device).cast_unsigned(),
            i32::fetch_max(signed, a.cast_signed(), Relaxed, Scope::Device).cast_unsigned(),
            i32::fetch_add(signed, a.cast_signed(), Relaxed, Scope::Device).cast_unsigned(),
            u32::fetch_and(unsigned, a, Relaxed, Scope::Device),
            u32::fetch_or(unsigned, b, Relaxed, Scope::Device),
            u32::fetch_xor(unsigned, a, Relaxed, Scope::Device),
            u32::fetch_max(unsigned, b, Relaxed, Scope::Device),
            *unsigned,
        ];
    }
}
