//! `silu(x · gateᵀ) * (x · upᵀ)`: the products of a gated MLP and its activation at once.
//!
//! Products of gate and up never leave the registers that they were summed in, so that two thirds of what the separate operations write and read are spared, and
//! nothing is rounded between.

use cuda_std::prelude::*;
use cuda_std::tensor_map::TensorMap;

#[device]
use crate::{
    grid::{divide, offset, repeat},
    silu_mul::silu_mul,
    stage::Stage,
    vector::Saturate,
};
#[device]
use cuda_std::{
    async_copy,
    mbarrier::{self, Mbarrier},
    memory,
    wgmma::{self, Descriptor, WgmmaElement},
};

/// Threads of a block of [`plain`].
pub const BLOCK_SIZE: u32 = 128;

/// Rows of x, and columns of the result, of a tile.
pub const TILE_ROWS: u32 = 128;
pub const TILE_COLUMNS: u32 = 64;

/// Values of x and of weights that are multiplied at a time.
pub const DEPTH: u32 = 64;

/// Rows of a box that is copied.
pub const BOX_ROWS: u32 = 64;

/// Threads of a block of [`wgmma()`]: a warpgroup that copies, two that multiply.
pub const WGMMA_THREADS: u32 = 384;

/// Steps of [`DEPTH`] that are in shared memory, or on their way.
const STAGES: u32 = 6;

/// 16-byte words of 64 rows of [`DEPTH`] values.
const HALF: u32 = 64 * DEPTH / 8;

/// Bytes of dynamic shared memory of [`wgmma()`]: stages, their barriers, and room to begin at a multiple of 1,024.
pub const WGMMA_SHARED_BYTES: u32 = 1024 + STAGES * (4 * HALF * 16 + 2 * 8);

/// Tiles of rows whose columns are computed before those of the next ones, so that what they read is in the L2 cache.
const ROWS_AT_ONCE: u32 = 8;

/// `out[i][j] = silu(gate_scale * x[i] · gate[j]) * (up_scale * x[i] · up[j])`, with sums in f32.
#[kernel_args]
pub struct GatedMatmul<E> {
    /// Rows of `x`.
    pub n: u32,
    /// Rows of `gate` and of `up`.
    pub rows: u32,
    pub cols: u32,
    pub gate_scale: f32,
    pub up_scale: f32,
    /// E `[n, cols]`
    pub x: *const E,
    /// E `[rows, cols]`
    pub gate: *const E,
    /// E `[rows, cols]`
    pub up: *const E,
    /// Of kernels that copy boxes: maps of these three, with boxes of [`BOX_ROWS`]; there may be more rows of x.
    pub x_map: *const TensorMap,
    pub gate_map: *const TensorMap,
    pub up_map: *const TensorMap,
    /// E `[n, rows]`, rounded once, no f16 to infinity
    pub out: *mut E,
}

/// Grid `[n, ceil(rows / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread a result.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`GatedMatmul`], and `out` overlaps nothing.
#[kernel(E = [f16, bf16], name = "gated_matmul_{E}_plain", max_threads = 128)]
pub unsafe fn plain<E: Saturate>(a: GatedMatmul<E>) {
    let (row, column) = (thread::block_idx_x(), thread::block_idx_y() * BLOCK_SIZE + thread::thread_idx_x());
    if column >= a.rows {
        return;
    }
    // SAFETY: a row of x, and one of each matrix.
    unsafe {
        let (x, gate, up) = (
            a.x.add(offset(row, a.cols, 0)),
            a.gate.add(offset(column, a.cols, 0)),
            a.up.add(offset(column, a.cols, 0)),
        );
        let (mut gated, mut upper) = (0.0f32, 0.0f32);
        let mut i = 0;
        while i < a.cols as usize {
            let value = (*x.add(i)).to_f32();
            gated = value.mul_add((*gate.add(i)).to_f32(), gated);
            upper = value.mul_add((*up.add(i)).to_f32(), upper);
            i += 1;
        }
        *a.out.add(offset(row, a.rows, column)) =
            E::round(silu_mul(gated * a.gate_scale, upper * a.up_scale));
    }
}

/// With `wgmma`: blocks that stay for many tiles of 128 rows and 64 columns. A thread copies steps of x, gate and up to a ring of stages; of two other warpgroups each has
/// every second tile, and multiplies it with 64 rows of gate above 64 of up as one matrix, so that one's products run while the other's become results.
///
/// Grid any, best the number of multiprocessors; block `[WGMMA_THREADS, 1, 1]`; dynamic shared memory [`WGMMA_SHARED_BYTES`].
///
/// # Safety
/// Block and shared memory are as above, arrays have the lengths of [`GatedMatmul`] and are aligned to 16 bytes, `out` overlaps nothing; `cols` is a multiple of
/// [`DEPTH`] and not 0, `rows` one of [`TILE_COLUMNS`].
#[kernel(E = [f16], name = "gated_matmul_{E}_wgmma", max_threads = 384, min_blocks = 1, requires = "sm_90a")]
pub unsafe fn wgmma<E: WgmmaElement<64> + Saturate>(a: GatedMatmul<E>) {
    // SAFETY: the kernel's own contract.
    unsafe {
        let ring = Ring::start();
        let warpgroup = warp::shuffle_idx(thread::thread_idx_x() / 128, 0);
        if warpgroup == 0 {
            wgmma::decrease_registers::<40>();
            if thread::thread_idx_x() == 0 {
                ring.copy(&a);
            }
        } else {
            wgmma::increase_registers::<232>();
            ring.multiply(&a, warpgroup);
        }
    }
}

/// The stages: each 128 rows of x, 64 of gate and 64 of up; then their barriers.
#[device]
#[derive(Clone, Copy)]
struct Ring {
    words: Shared<[u32; 4]>,
    barriers: Shared<u64>,
}

/// Tiles in the order in which blocks take them.
#[device]
#[derive(Clone, Copy)]
struct Tiles {
    of_rows: u32,
    of_columns: u32,
}

#[device]
impl Tiles {
    #[inline(always)]
    fn of<E>(a: &GatedMatmul<E>) -> Self {
        Self { of_rows: a.n.div_ceil(TILE_ROWS), of_columns: a.rows / TILE_COLUMNS }
    }

    #[inline(always)]
    fn count(self) -> u32 {
        self.of_rows * self.of_columns
    }

    /// The first row and column of a tile.
    #[inline(always)]
    fn place(self, tile: u32) -> (u32, u32) {
        let (group, rest) = divide(tile, ROWS_AT_ONCE * self.of_columns);
        let first = group * ROWS_AT_ONCE;
        let (column, row) = divide(rest, (self.of_rows - first).min(ROWS_AT_ONCE));
        ((first + row) * TILE_ROWS, column * TILE_COLUMNS)
    }
}

#[device]
impl Ring {
    /// # Safety
    /// All threads of the block call it together; shared memory is as the kernel says.
    #[inline(always)]
    unsafe fn start() -> Self {
        let base = (dynamic_shared::<u8>().address() + 1023) & !1023;
        let ring = Self {
            words: Shared::from_address(base),
            barriers: Shared::from_address(base + STAGES * 4 * HALF * 16),
        };
        // SAFETY: nobody uses them yet.
        unsafe {
            if thread::thread_idx_x() == 0 {
                repeat(STAGES as usize, |stage| {
                    ring.full(stage as u32).init(1);
                    ring.empty(stage as u32).init(4);
                });
                mbarrier::fence_init();
            }
        }
        thread::sync_threads();
        ring
    }

    /// The stage's step is there: its bytes, and the thread that copies has said how many.
    #[inline(always)]
    fn full(self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(stage))
    }

    /// Nobody reads it any more: each warp of the warpgroup that multiplied it says so.
    #[inline(always)]
    fn empty(self, stage: u32) -> Mbarrier {
        Mbarrier::new(self.barriers.add(STAGES + stage))
    }

    #[inline(always)]
    fn stage(self, stage: u32) -> Shared<[u32; 4]> {
        self.words.add(stage * 4 * HALF)
    }

    /// Copies the steps of all of the block's tiles, as stages become free.
    ///
    /// # Safety
    /// As for the kernel; one thread of the first warpgroup calls it.
    #[inline(always)]
    unsafe fn copy<E>(self, a: &GatedMatmul<E>) {
        let tiles = Tiles::of(a);
        let (mut at, mut tile) = (Stage::<STAGES>::FIRST, thread::block_idx_x());
        // SAFETY: boxes of the matrices; a stage is written when it is empty.
        unsafe {
            while tile < tiles.count() {
                let (row, column) = tiles.place(tile);
                let mut depth = 0;
                while depth < a.cols {
                    let (to, full) = (self.stage(at.stage), self.full(at.stage));
                    self.empty(at.stage).wait(at.parity ^ 1);
                    full.arrive_expect_tx(4 * TensorMap::box_bytes(BOX_ROWS));
                    async_copy::tensor_copy(to, a.x_map, [depth, row], full);
                    async_copy::tensor_copy(to.add(HALF), a.x_map, [depth, row + 64], full);
                    async_copy::tensor_copy(to.add(2 * HALF), a.gate_map, [depth, column], full);
                    async_copy::tensor_copy(to.add(3 * HALF), a.up_map, [depth, column], full);
                    at = at.next();
                    depth += DEPTH;
                }
                tile += thread::grid_dim_x();
            }
        }
    }

    /// Multiplies every second of the block's tiles.
    ///
    /// # Safety
    /// As for the kernel; all threads of warpgroup `me`, 1 or 2, call it together.
    #[inline(always)]
    unsafe fn multiply<E: WgmmaElement<64> + Saturate>(self, a: &GatedMatmul<E>, me: u32) {
        let tiles = Tiles::of(a);
        let steps = a.cols / DEPTH;
        let lane = warp::lane_id();
        let (mut upper, mut lower) = ([0.0; 64], [0.0; 64]);
        let mut tile = thread::block_idx_x() + (me - 1) * thread::grid_dim_x();
        // Steps of the block before the tile's first.
        let mut begin = (me - 1) * steps;
        // SAFETY: a stage is read between the barrier that says it is full and the one that says it is empty; rows below `n` are in `out`.
        unsafe {
            if me == 2 {
                thread::arrive_named(1, 256);
            }
            while tile < tiles.count() {
                let (row, column) = tiles.place(tile);
                let mut at = Stage::<STAGES> { stage: begin % STAGES, parity: (begin / STAGES) & 1 };
                let mut last = at.stage;
                let mut step = 0;
                // In turns, since a wait tells the current phase from the one before and no more.
                thread::sync_named(me, 256);
                while step < steps {
                    self.full(at.stage).wait(at.parity);
                    let words = self.stage(at.stage);
                    let weights = Descriptor::k_major(words.add(2 * HALF));
                    E::multiply(&mut upper, Descriptor::k_major(words), weights, step > 0);
                    E::multiply(&mut lower, Descriptor::k_major(words.add(HALF)), weights, step > 0);
                    E::wait::<2>(&mut upper);
                    E::wait::<2>(&mut lower);
                    self.empty(last).arrive_if(step > 0 && lane == 0);
                    last = at.stage;
                    at = at.next();
                    step += 1;
                }
                thread::arrive_named(3 - me, 256);
                E::wait::<0>(&mut upper);
                E::wait::<0>(&mut lower);
                self.empty(last).arrive_if(lane == 0);
                let row = row + warp::warp_id() % 4 * 16 + lane / 4;
                store(a, &upper, row, column);
                store(a, &lower, row + 64, column);
                tile += 2 * thread::grid_dim_x();
                begin += 2 * steps;
            }
        }
    }
}

/// Makes results of a thread's sums of 64 columns of gate and 64 of up, and writes those of rows `row` and 8 below, if they are there.
///
/// # Safety
/// The columns are in `out`; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn store<E: PackedElement + Saturate>(a: &GatedMatmul<E>, sums: &[f32; 64], row: u32, column: u32) {
    repeat(2, |half| {
        let row = row + 8 * half as u32;
        let to = a.out.wrapping_add(offset(row, a.rows, column + 8 * (warp::lane_id() % 4)));
        repeat(2, |part| {
            let mut words = [0; 4];
            repeat(4, |i| {
                let mut pair = [0.0; 2];
                repeat(2, |side| {
                    let at = 16 * part + 4 * i + 2 * half + side;
                    pair[side] = E::saturate(silu_mul(sums[at] * a.gate_scale, sums[at + 32] * a.up_scale));
                });
                words[i] = E::pack2(pair[0], pair[1]);
            });
            let words = transposed(words);
            if row < a.n {
                // SAFETY: eight columns of a row that is there; rows are aligned to 16 bytes, since they are multiples of 128.
                unsafe { memory::store(to.wrapping_add(32 * part).cast::<[u32; 4]>(), words) }
            }
        });
    });
}

/// Swaps words among the four lanes of a quad: word `i` becomes word `lane % 4` of lane `i`.
#[device]
#[inline(always)]
fn transposed([w0, w1, w2, w3]: [u32; 4]) -> [u32; 4] {
    let lane = warp::lane_id();
    let (odd, high) = (lane & 1 != 0, lane & 2 != 0);
    let pick = |which: bool, a: u32, b: u32| if which { a } else { b };
    let (r0, r1) = (warp::shuffle_xor(pick(odd, w0, w1), 1), warp::shuffle_xor(pick(odd, w2, w3), 1));
    let (w0, w1, w2, w3) = (pick(odd, r0, w0), pick(odd, w1, r0), pick(odd, r1, w2), pick(odd, w3, r1));
    let (r0, r1) = (warp::shuffle_xor(pick(high, w0, w2), 2), warp::shuffle_xor(pick(high, w1, w3), 2));
    [pick(high, r0, w0), pick(high, r1, w1), pick(high, w2, r0), pick(high, w3, r1)]
}
