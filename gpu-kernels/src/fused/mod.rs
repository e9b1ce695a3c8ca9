//! A decoder layer in few kernels, for the few rows of a decode step.
//!
//! A step at batch 1 reads every weight once and computes little, so what counts is that the memory is always busy.
//! Each kernel here reads its weights into registers before it waits for the kernel before it
//! ([`wait_for_dependencies`](grid::wait_for_dependencies)), and norms, biases, rotation, activation and residual
//! addition happen where their operands are at hand.
//!
//! A group of lanes computes `Dot` products of rows of weights with up to `N` rows of inputs. Inputs lie in shared
//! memory as f32: of each 8 values the first four in one plane and the last four in another, so that neighbouring
//! lanes read neighbouring 16 bytes. Each lane adds its share in ascending order, then a butterfly adds the
//! lanes: the order depends on the number of columns alone, so a row has the same bits alone and among others. Where a
//! norm comes first, its weight is multiplied into the inputs and the row's scale into the products, so that one barrier does.
//!
//! Weights are f16 or bf16, rows of them multiples of 8 values; sums are f32.

use cuda_std::prelude::*;

#[device]
use crate::{
    grid::{divide, offset, repeat},
    vector::Group,
};
#[device]
use cuda_std::{grid, memory};

pub mod matmul_add;
pub mod mma;
pub mod norm_gate_up;
pub mod norm_matmul;
pub mod norm_qkv_rope;
pub mod units;

/// The most rows of inputs that the kernels take.
pub const MAX_ROWS: u32 = 4;

/// Values of a word of weights: 16 bytes.
pub const WORD: u32 = 8;

/// Bytes of dynamic shared memory for `n` staged rows of `cols` values.
pub const fn stage_bytes(n: u32, cols: u32) -> u32 {
    n * cols * 4
}

/// Lets the next kernel start; sm_90, nothing before.
#[device]
#[inline(always)]
pub fn launch_dependents() {
    if cfg!(target_feature = "sm_90") {
        grid::launch_dependents();
    }
}

/// Waits for the kernel before this one; sm_90, nothing before, where a kernel starts when that has ended.
#[device]
#[inline(always)]
pub fn wait_for_dependencies() {
    if cfg!(target_feature = "sm_90") {
        grid::wait_for_dependencies();
    }
}

/// Quads that a thread loads before it uses the first of them, so that their latencies overlap.
#[device]
const AHEAD: usize = 2;

/// Rows of inputs in shared memory.
#[device]
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    /// Quads: for each row the first plane, then the second.
    quads: Shared<[f32; 4]>,
    /// Rows, at least one.
    rows: u32,
    /// Words of a row.
    words: u32,
}

#[device]
impl Stage {
    /// The block's dynamic shared memory, for `rows` rows of `words` words.
    #[inline(always)]
    pub(crate) fn new(rows: u32, words: u32) -> Self {
        Self { quads: dynamic_shared(), rows, words }
    }

    /// Word `word` of row `row`, or of the last row where there are fewer.
    ///
    /// # Safety
    /// The stage is complete, and its rows have more than `word` words.
    #[inline(always)]
    unsafe fn get(self, row: u32, word: u32) -> ([f32; 4], [f32; 4]) {
        let first = 2 * row.min(self.rows - 1) * self.words + word;
        // SAFETY: the caller's promise.
        unsafe { (self.quads.get(first), self.quads.get(first + self.words)) }
    }

    /// The place of quad `quad` (values `4 quad ..`) of row `row`.
    #[inline(always)]
    fn place(self, row: u32, quad: u32) -> u32 {
        (2 * row + quad % 2) * self.words + quad / 2
    }

    /// Copies the rows of `x`; the threads of the block share the work. A barrier must follow.
    ///
    /// # Safety
    /// `x` leads to that many rows, aligned to 16 bytes; the shared memory has room for them.
    #[inline(always)]
    pub(crate) unsafe fn copy<X: Group<4>>(self, x: *const X) {
        let n = self.rows;
        let quads = 2 * self.words;
        let mut first = thread::thread_idx_x();
        while first < n * quads {
            let mut v = [[0.0; 4]; 2 * AHEAD];
            repeat(2 * AHEAD, |i| {
                let quad = first + i as u32 * thread::block_dim_x();
                if quad < n * quads {
                    // SAFETY: inside the `n` rows.
                    v[i] = unsafe { X::load_group(x.add(4 * quad as usize)) };
                }
            });
            repeat(2 * AHEAD, |i| {
                let quad = first + i as u32 * thread::block_dim_x();
                if quad < n * quads {
                    // SAFETY: inside the stage; each quad has one thread.
                    unsafe {
                        let (row, quad) = divide(quad, quads);
                        self.quads.set(self.place(row, quad), v[i]);
                    }
                }
            });
            first += 2 * AHEAD as u32 * thread::block_dim_x();
        }
    }

    /// Starts to load the part of a norm's weight that this thread needs first.
    ///
    /// # Safety
    /// `weight` leads to a row, aligned to 16 bytes.
    #[inline(always)]
    unsafe fn load_norm(self, weight: *const f32) -> [[f32; 4]; AHEAD] {
        let mut quads = [[0.0; 4]; AHEAD];
        repeat(AHEAD, |i| {
            let quad = thread::thread_idx_x() + i as u32 * thread::block_dim_x();
            if quad < 2 * self.words {
                // SAFETY: inside the row.
                quads[i] = unsafe { f32::load_group(weight.add(4 * quad as usize)) };
            }
        });
        quads
    }

    /// Copies the rows of `x`, each multiplied with `weight`, and returns what makes them normalised rows:
    /// `1 / sqrt(mean(x²) + eps)` for each, to multiply products with. Ends with a barrier.
    ///
    /// # Safety
    /// As [`Stage::copy`]; `weight` leads to a row and `ahead` is its [`Stage::load_norm`]. All threads of the block call
    /// it together, once in a launch.
    #[inline(always)]
    unsafe fn copy_normed<const N: usize>(
        self,
        x: *const f32,
        weight: *const f32,
        ahead: [[f32; 4]; AHEAD],
        eps: f32,
    ) -> [f32; N] {
        let sums = shared_array![f32; 32 * 4];
        let n = self.rows;
        let quads = 2 * self.words;
        let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
        let num_warps = thread::block_dim_x() / 32;
        let mut squares = [0.0f32; N];
        let mut w = ahead;
        let mut first = thread::thread_idx_x();
        // SAFETY: inside the rows; each quad and each sum has one thread until the barrier.
        unsafe {
            while first < quads {
                let mut v = [[[0.0f32; 4]; N]; AHEAD];
                repeat(AHEAD, |i| {
                    let quad = first + i as u32 * thread::block_dim_x();
                    repeat(N, |row| {
                        if quad < quads && (row as u32) < n {
                            v[i][row] = f32::load_group(x.add((row as u32 * quads + quad) as usize * 4));
                        }
                    });
                });
                repeat(AHEAD, |i| {
                    let quad = first + i as u32 * thread::block_dim_x();
                    repeat(N, |row| {
                        if quad < quads && (row as u32) < n {
                            let (x, w) = (v[i][row], w[i]);
                            repeat(4, |j| squares[row] = x[j].mul_add(x[j], squares[row]));
                            let product = [x[0] * w[0], x[1] * w[1], x[2] * w[2], x[3] * w[3]];
                            self.quads.set(self.place(row as u32, quad), product);
                        }
                    });
                });
                first += AHEAD as u32 * thread::block_dim_x();
                repeat(AHEAD, |i| {
                    let quad = first + i as u32 * thread::block_dim_x();
                    if quad < quads {
                        w[i] = f32::load_group(weight.add(4 * quad as usize));
                    }
                });
            }
            repeat(N, |row| {
                let sum = warp::reduce_sum(squares[row]);
                if lane == 0 {
                    sums.set(row as u32 * 32 + warp_id, sum);
                }
            });
            thread::sync_threads();
            let mut scales = [0.0; N];
            repeat(N, |row| {
                let sum = if lane < num_warps { sums.get(row as u32 * 32 + lane) } else { 0.0 };
                scales[row] = crate::norm::scale(warp::reduce_sum(sum), quads * 4, eps);
            });
            scales
        }
    }
}

/// The products of `R` rows of weights with up to `N` rows of inputs, computed by `LANES` neighbouring lanes that take
/// `C` words each at a time.
#[device]
pub(crate) struct Dot<E, const R: usize, const C: usize, const LANES: u32> {
    /// This lane's first word of each row.
    rows: [*const E; R],
    /// The words that were loaded last.
    chunk: [[[u32; 4]; C]; R],
}

#[device]
impl<E: PackedElement, const R: usize, const C: usize, const LANES: u32> Dot<E, R, C, LANES> {
    /// Starts to load the first words of the rows.
    ///
    /// # Safety
    /// Each of `rows` leads to `words` words, aligned to 16 bytes; `lane` is below `LANES`.
    #[inline(always)]
    pub(crate) unsafe fn new(rows: [*const E; R], words: u32, lane: u32) -> Self {
        let mut dot = Self { rows, chunk: [[[0; 4]; C]; R] };
        // SAFETY: the caller's promise.
        unsafe { dot.load(lane, words) }
        dot
    }

    /// # Safety
    /// As [`Dot::new`].
    #[inline(always)]
    unsafe fn load(&mut self, first: u32, words: u32) {
        repeat(C, |c| {
            let word = first + c as u32 * LANES;
            if word < words {
                repeat(R, |r| {
                    // SAFETY: inside the row.
                    self.chunk[r][c] = unsafe {
                        memory::load_nc_no_allocate(
                            self.rows[r].add((word * WORD) as usize).cast::<[u32; 4]>(),
                        )
                    };
                });
            }
        });
    }

    /// The sums of this lane's shares, for the first `N` rows of the stage.
    ///
    /// # Safety
    /// As [`Dot::new`], with the same `words` and `lane`; the stage is complete.
    #[inline(always)]
    pub(crate) unsafe fn shares<const N: usize>(&mut self, lane: u32, stage: Stage) -> [[f32; N]; R] {
        let words = stage.words;
        let mut sums = [[0.0f32; N]; R];
        let mut first = lane;
        loop {
            repeat(C, |c| {
                let word = first + c as u32 * LANES;
                if word < words {
                    let mut w = [[0.0f32; 8]; R];
                    repeat(R, |r| {
                        let [a, b, c, d] = self.chunk[r][c];
                        let ((v0, v1), (v2, v3)) = (E::unpack2(a), E::unpack2(b));
                        let ((v4, v5), (v6, v7)) = (E::unpack2(c), E::unpack2(d));
                        w[r] = [v0, v1, v2, v3, v4, v5, v6, v7];
                    });
                    repeat(N, |n| {
                        // SAFETY: inside the stage.
                        let (low, high) = unsafe { stage.get(n as u32, word) };
                        repeat(R, |r| {
                            repeat(4, |i| sums[r][n] = w[r][i].mul_add(low[i], sums[r][n]));
                            repeat(4, |i| sums[r][n] = w[r][4 + i].mul_add(high[i], sums[r][n]));
                        });
                    });
                }
            });
            first += C as u32 * LANES;
            if first - lane >= words {
                return sums;
            }
            // SAFETY: the caller's promise.
            unsafe { self.load(first, words) }
        }
    }
}

/// The sums over a group of `LANES` lanes, at most 32, in every lane of it.
///
/// All lanes of the warp must call it together.
#[device]
#[inline(always)]
pub(crate) fn sum_of_lanes<const R: usize, const N: usize, const LANES: u32>(
    mut shares: [[f32; N]; R],
) -> [[f32; N]; R] {
    repeat(R, |r| {
        repeat(N, |n| {
            let mut mask = LANES / 2;
            while mask > 0 {
                shares[r][n] += warp::shuffle_xor(shares[r][n], mask);
                mask /= 2;
            }
        });
    });
    shares
}

/// Threads of a block of [`matmul`].
pub(crate) const MATMUL_BLOCK_SIZE: u32 = 256;
/// Lanes that compute [`MATMUL_ROWS`] columns of its output.
pub(crate) const MATMUL_LANES: u32 = 16;
/// Rows of weights that share one read of the inputs.
pub(crate) const MATMUL_ROWS: u32 = 2;
/// Words of each row that a lane has in flight: with 16 lanes, all of a row of 896 columns.
#[device]
const MATMUL_AHEAD: usize = 7;

/// `out = x · weightᵀ` for the first `n` of `N` rows, by any number of blocks along x: weight `[rows, cols]`, out `[n, rows]` in rows of
/// `out_stride` values. `stage_inputs` is called once the first weights are on their way; it waits for what it needs, completes the
/// stage for every thread, and returns what each row's products are multiplied with.
///
/// # Safety
/// Blocks of [`MATMUL_BLOCK_SIZE`] threads; arrays have these sizes and are aligned to 16 bytes, `rows` is not 0; all threads of the
/// block call it together.
#[device]
#[inline(always)]
pub(crate) unsafe fn matmul<E: PackedElement, const N: usize>(
    n: u32,
    rows: u32,
    cols: u32,
    weight: *const E,
    out: *mut f32,
    out_stride: u32,
    stage_inputs: impl FnOnce(Stage) -> [f32; N],
) {
    const ROWS: usize = MATMUL_ROWS as usize;
    let lane = thread::thread_idx_x() % MATMUL_LANES;
    let words = cols / WORD;
    let stage = Stage::new(n, words);
    let columns_per_block = MATMUL_BLOCK_SIZE / MATMUL_LANES * MATMUL_ROWS;
    let step = thread::grid_dim_x() * columns_per_block;
    let mut block_first = thread::block_idx_x() * columns_per_block;
    let group = thread::thread_idx_x() / MATMUL_LANES * MATMUL_ROWS;
    // SAFETY: rows below `rows`; groups beyond the last row compute it again and do not store. Every lane of a warp
    // makes the same number of rounds.
    unsafe {
        let dot = |block_first: u32| {
            let row = |r: u32| weight.add(offset((block_first + group + r).min(rows - 1), cols, 0));
            Dot::<E, ROWS, MATMUL_AHEAD, MATMUL_LANES>::new([row(0), row(1)], words, lane)
        };
        let mut products = dot(block_first);
        let scales = stage_inputs(stage);
        loop {
            let shares = products.shares::<N>(lane, stage);
            let first = block_first + group;
            block_first += step;
            // The next weights are under way while these products are added up.
            if block_first < rows {
                products = dot(block_first);
            }
            let sums = sum_of_lanes::<ROWS, N, MATMUL_LANES>(shares);
            repeat(N, |i| {
                repeat(ROWS, |r| {
                    let row = first + r as u32;
                    if lane == (i * ROWS + r) as u32 && (i as u32) < n && row < rows {
                        *out.add(offset(i as u32, out_stride, row)) = sums[r][i] * scales[i];
                    }
                });
            });
            if block_first >= rows {
                return;
            }
        }
    }
}
