//! What the lanes of a warp do together: shuffles, votes, matches, reductions, matrix fragments.

use core::panic::Location;

use crate::emulation::{Format, Operation, Reduce, Shuffle, current};

/// Comes to an operation with `words`, returns what it left there.
#[track_caller]
#[inline]
fn exchange<const N: usize>(operation: Operation, mask: u32, words: [u32; N]) -> [u32; 10] {
    let mut io = [0; 10];
    io[..N].copy_from_slice(&words);
    current().exchange(operation, mask, &mut io, Location::caller());
    io
}

#[track_caller]
pub unsafe fn bar_warp_sync(mask: u32) {
    exchange(Operation::Sync, mask, []);
}

/// Lanes that run together right now: here each runs alone.
pub fn activemask() -> u32 {
    1 << current().lane()
}

macro_rules! shuffle {
    ($($plain:ident, $predicated:ident = $kind:ident;)*) => { $(
        #[track_caller]
        pub unsafe fn $predicated(mask: u32, value: u32, lane: u32, clamp: u32) -> (u32, bool) {
            let io = exchange(Operation::Shuffle(Shuffle::$kind), mask, [value, lane, clamp]);
            (io[0], io[1] != 0)
        }

        #[track_caller]
        pub unsafe fn $plain(mask: u32, value: u32, lane: u32, clamp: u32) -> u32 {
            exchange(Operation::Shuffle(Shuffle::$kind), mask, [value, lane, clamp])[0]
        }
    )* };
}

shuffle! {
    shfl_bfly, shfl_bfly_p = Butterfly;
    shfl_idx, shfl_idx_p = Index;
    shfl_up, shfl_up_p = Up;
    shfl_down, shfl_down_p = Down;
}

#[track_caller]
pub unsafe fn vote_ballot(mask: u32, predicate: bool) -> u32 {
    exchange(Operation::Ballot, mask, [predicate.into()])[0]
}

#[track_caller]
pub unsafe fn vote_any(mask: u32, predicate: bool) -> bool {
    exchange(Operation::Ballot, mask, [predicate.into()])[0] != 0
}

#[track_caller]
pub unsafe fn vote_all(mask: u32, predicate: bool) -> bool {
    // The lanes that are there: whoever has ended does not vote.
    exchange(Operation::Ballot, mask, [(!predicate).into()])[0] == 0
}

#[track_caller]
pub unsafe fn match_any_32(mask: u32, value: u32) -> u32 {
    exchange(Operation::Match, mask, [value])[0]
}

#[track_caller]
pub unsafe fn match_any_64(mask: u32, value: u64) -> u32 {
    exchange(Operation::Match, mask, [value as u32, (value >> 32) as u32])[0]
}

#[track_caller]
pub unsafe fn match_all_32(mask: u32, value: u32) -> (u32, bool) {
    all(mask, exchange(Operation::Match, mask, [value])[0])
}

#[track_caller]
pub unsafe fn match_all_64(mask: u32, value: u64) -> (u32, bool) {
    all(mask, exchange(Operation::Match, mask, [value as u32, (value >> 32) as u32])[0])
}

/// The answer of `match.all` from that of `match.any`.
fn all(mask: u32, same: u32) -> (u32, bool) {
    if same == mask { (mask, true) } else { (0, false) }
}

macro_rules! redux {
    ($($name:ident, $t:ty = $kind:ident;)*) => { $(
        #[track_caller]
        pub unsafe fn $name(value: $t, mask: u32) -> $t {
            exchange(Operation::Reduce(Reduce::$kind), mask, [value as u32])[0] as $t
        }
    )* };
}

redux! {
    redux_add, u32 = Add;
    redux_min, i32 = Min;
    redux_max, i32 = Max;
    redux_umin, u32 = UnsignedMin;
    redux_umax, u32 = UnsignedMax;
    redux_and, u32 = And;
    redux_or, u32 = Or;
    redux_xor, u32 = Xor;
}

#[track_caller]
pub unsafe fn elect(mask: u32) -> (u32, bool) {
    let io = exchange(Operation::Elect, mask, []);
    (io[0], io[1] != 0)
}

/// Four words of a fragment.
pub struct Words(pub u32, pub u32, pub u32, pub u32);

/// Four sums of a fragment.
pub struct Floats(pub f32, pub f32, pub f32, pub f32);

#[track_caller]
fn load_matrix(row: *const u8, count: u32, transposed: bool) -> [u32; 10] {
    let thread = current();
    let address = thread.block().shared_address(row);
    if thread.lane() < 8 * count {
        // SAFETY: checked before it is read.
        unsafe { thread.load_shared::<[u16; 8]>(address, Location::caller()) };
    }
    exchange(Operation::LoadMatrix { count, transposed }, u32::MAX, [address])
}

macro_rules! ldmatrix {
    ($($name:ident, $count:literal, $transposed:literal -> $result:ty, |$io:ident| $value:expr;)*) => { $(
        #[track_caller]
        pub unsafe fn $name(row: *const u8) -> $result {
            let $io = load_matrix(row, $count, $transposed);
            $value
        }
    )* };
}

ldmatrix! {
    ldmatrix_x1, 1, false -> u32, |io| io[0];
    ldmatrix_x1_trans, 1, true -> u32, |io| io[0];
    ldmatrix_x2, 2, false -> (u32, u32), |io| (io[0], io[1]);
    ldmatrix_x2_trans, 2, true -> (u32, u32), |io| (io[0], io[1]);
    ldmatrix_x4, 4, false -> Words, |io| Words(io[0], io[1], io[2], io[3]);
    ldmatrix_x4_trans, 4, true -> Words, |io| Words(io[0], io[1], io[2], io[3]);
}

/// Two f16 in the register that holds them.
pub const fn f16x2(word: u32) -> u32 {
    word
}

macro_rules! mma {
    ($($k16:ident, $k8:ident = $format:ident;)*) => { $(
        #[track_caller]
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $k16(
            a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32,
        ) -> Floats {
            let [c0, c1, c2, c3] = [c0, c1, c2, c3].map(f32::to_bits);
            let words = [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3];
            floats(exchange(Operation::Mma { format: Format::$format, depth: 16 }, u32::MAX, words))
        }

        #[track_caller]
        pub unsafe fn $k8(a0: u32, a1: u32, b: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Floats {
            let [c0, c1, c2, c3] = [c0, c1, c2, c3].map(f32::to_bits);
            let words = [a0, a1, b, c0, c1, c2, c3];
            floats(exchange(Operation::Mma { format: Format::$format, depth: 8 }, u32::MAX, words))
        }
    )* };
}

mma! {
    mma_k16_bf16, mma_k8_bf16 = Bf16;
    mma_k16_f16, mma_k8_f16 = F16;
}

#[track_caller]
#[allow(clippy::too_many_arguments)]
pub unsafe fn mma_k8_tf32(
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    b0: u32,
    b1: u32,
    c0: f32,
    c1: f32,
    c2: f32,
    c3: f32,
) -> Floats {
    let [c0, c1, c2, c3] = [c0, c1, c2, c3].map(f32::to_bits);
    floats(exchange(Operation::MmaTf32, u32::MAX, [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3]))
}

fn floats(io: [u32; 10]) -> Floats {
    let [a, b, c, d, ..] = io.map(f32::from_bits);
    Floats(a, b, c, d)
}

/// Four integer sums of a fragment.
pub struct Integers(pub i32, pub i32, pub i32, pub i32);

fn integers(io: [u32; 10]) -> Integers {
    let [a, b, c, d, ..] = io.map(|word| word as i32);
    Integers(a, b, c, d)
}

#[track_caller]
#[allow(clippy::too_many_arguments)]
pub unsafe fn mma_k32_s8(
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    b0: u32,
    b1: u32,
    c0: i32,
    c1: i32,
    c2: i32,
    c3: i32,
) -> Integers {
    let [c0, c1, c2, c3] = [c0, c1, c2, c3].map(|sum| sum as u32);
    let words = [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3];
    integers(exchange(Operation::MmaIntegers { depth: 32 }, u32::MAX, words))
}

#[track_caller]
pub unsafe fn mma_k16_s8(a0: u32, a1: u32, b: u32, c0: i32, c1: i32, c2: i32, c3: i32) -> Integers {
    let [c0, c1, c2, c3] = [c0, c1, c2, c3].map(|sum| sum as u32);
    let words = [a0, a1, b, c0, c1, c2, c3];
    integers(exchange(Operation::MmaIntegers { depth: 16 }, u32::MAX, words))
}
