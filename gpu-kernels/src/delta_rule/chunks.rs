//! The gated delta rule in chunks of rows, on tensor cores (Yang, Wang, Zhang, Shen and Kim 2024, "Parallelizing linear transformers with the
//! delta rule over sequence length"; with decay as in "Gated Delta Networks"; docs/hybrids.md derives it).
//!
//! With `G_i` the sum of the logarithms of what is kept of a state up to row `i` of a chunk, S the state before it, and rows `d_i` of D for what the
//! rows write:
//!
//! ```text
//! A_ij = β_i e^(G_i - G_j) (k_i · k_j)   j < i        P_ij = e^(G_i - G_j) (q_i · k_j)   j <= i
//! D    = (I + A)⁻¹ diag(β) (V - diag(e^G) K S)
//! out  = diag(e^G) Q S + P D
//! S    = e^G_last S + Σ_j e^(G_last - G_j) k_j d_jᵀ
//! ```
//!
//! [`prepare`] computes `(I + A)⁻¹ diag(β)` and P of all chunks at once, for they do not depend on S; [`scan`] goes through a sequence's chunks one
//! after the other, a block for some columns of a head's state, which it keeps in registers.
//!
//! Factors of products are rounded to TF32 (10 bits of fraction, f32's range), sums are f32, and so is the state from chunk to chunk. A chunk begins
//! at a sequence's first row in the batch, so where a prompt is cut changes roundings, as it does nothing else.

use cuda_std::prelude::*;

mod fragments;
mod invert;
mod scan;

pub use scan::scan;

use super::DeltaRule;
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, repeat},
    reduce::warp_inclusive_sum,
    vector::Group,
};
#[device]
use cuda_std::mma::{mma_m16n8k8_tf32, tf32};
#[device]
use fragments::rows_of;
#[device]
use invert::invert;

/// Rows of a chunk.
pub const CHUNK: u32 = 64;
/// Values of the heads of K.
pub const KEY_DIM: u32 = 128;
/// Rows of a sequence in the batch from which on it is computed in chunks.
pub const MIN_ROWS: u32 = 32;
/// Threads of a block of [`prepare`].
pub const BLOCK_SIZE: u32 = 128;
/// Threads of a block of [`scan`].
pub const SCAN_BLOCK_SIZE: u32 = 256;
/// Values that [`prepare`] leaves for a chunk and head: the inverse and P, then `FACTORS` values for each row.
pub const CHUNK_VALUES: u32 = 2 * CHUNK * CHUNK + FACTORS * CHUNK;

/// For each row what products with its K as it came are multiplied with, with its Q, and with its K where it is written; the last [`CHUNK`] values begin with
/// what is kept of the state.
const FACTORS: u32 = 4;

/// The most chunks of a batch.
pub const fn max_chunks(num_tokens: usize, num_sequences: usize) -> usize {
    let long = num_tokens / MIN_ROWS as usize;
    num_tokens / CHUNK as usize + if long < num_sequences { long } else { num_sequences }
}

/// Warps of a block of [`scan`].
#[device]
const SCAN_WARPS: u32 = SCAN_BLOCK_SIZE / 32;
/// From one row of K or Q in shared memory to the next.
const ROW: u32 = KEY_DIM + 4;
/// From one row of a square to the next.
const SQUARE_ROW: u32 = CHUNK + 4;
/// From one row of `cols` columns of a state to the next.
const fn state_row(cols: u32) -> u32 {
    cols + 8
}

/// Bytes of dynamic shared memory of [`prepare`].
pub const PREPARE_SHARED_BYTES: u32 = 4 * (2 * CHUNK * ROW + CHUNK * SQUARE_ROW + 4 * CHUNK);

/// Bytes of dynamic shared memory of [`scan`], of blocks of `cols` columns.
pub const fn scan_shared_bytes(cols: u32) -> u32 {
    let matrices = 2 * CHUNK * ROW + 2 * CHUNK * SQUARE_ROW + FACTORS * CHUNK;
    4 * (matrices + (KEY_DIM + 3 * CHUNK) * state_row(cols))
}

/// Chunks of a sequence of so many rows.
#[device]
#[inline(always)]
fn chunks_of(rows: u32) -> u32 {
    if rows < MIN_ROWS { 0 } else { rows.div_ceil(CHUNK) }
}

#[device]
impl DeltaRule {
    /// Rows of a sequence in the batch.
    ///
    /// # Safety
    /// As [`DeltaRule::rows_of`].
    #[inline(always)]
    unsafe fn num_rows(&self, sequence: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { *self.query_start.add(sequence as usize + 1) - *self.query_start.add(sequence as usize) }
    }

    /// Chunks of all sequences before this one.
    ///
    /// # Safety
    /// As [`DeltaRule::rows_of`]; all lanes of the warp call it together.
    #[inline(always)]
    unsafe fn chunks_before(&self, sequence: u32) -> u32 {
        let (mut chunks, mut s) = (0, warp::lane_id());
        while s < sequence {
            // SAFETY: one of the batch.
            chunks += chunks_of(unsafe { self.num_rows(s) });
            s += 32;
        }
        warp::reduce(chunks, |a, b| a + b)
    }

    /// The sequence and first row of chunk `index` of the batch, and how many rows it has: none, if there is no such chunk.
    ///
    /// # Safety
    /// As [`DeltaRule::rows_of`]; all lanes of the warp call it together.
    #[inline(always)]
    unsafe fn chunk(&self, num_sequences: u32, index: u32) -> (u32, u32) {
        let (mut before, mut s) = (0, 0);
        while s < num_sequences {
            let lane_sequence = s + warp::lane_id();
            // SAFETY: one of the batch; all lanes take the same way.
            unsafe {
                let rows = if lane_sequence < num_sequences { self.num_rows(lane_sequence) } else { 0 };
                let chunks = chunks_of(rows);
                let sum = warp_inclusive_sum(chunks);
                let first = before + sum - chunks;
                let is_here = index >= first && index < first + chunks;
                let found = warp::warp_vote_ballot(warp::FULL_MASK, is_here);
                if found != 0 {
                    let lane = found.trailing_zeros();
                    let skipped = CHUNK * (index - warp::shuffle_idx(first, lane));
                    let row = *self.query_start.add((s + lane) as usize) + skipped;
                    return (row, (warp::shuffle_idx(rows, lane) - skipped).min(CHUNK));
                }
                before += warp::shuffle_idx(sum, 31);
            }
            s += 32;
        }
        (0, 0)
    }

    /// Where what [`prepare`] leaves of a chunk and head begins.
    #[inline(always)]
    fn scratch_of(&self, chunk: u32, head: u32) -> *mut f32 {
        self.scratch.wrapping_add(
            (chunk as usize * self.value_heads as usize + head as usize) * CHUNK_VALUES as usize,
        )
    }
}

/// What the chunks of a batch have that does not depend on states: for each head of V `(I + A)⁻¹ diag(β)`, P and factors of the rows.
///
/// Grid `[value_heads, chunks, 1]`, [`max_chunks`] of them; block `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`PREPARE_SHARED_BYTES`]. `key_dim` is
/// [`KEY_DIM`], `qkv` aligned to 16 bytes, of a multiple of 4 columns.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`DeltaRule`], `scratch` overlaps nothing.
#[kernel(E = [f32], name = "delta_rule_prepare_{E}_chunks", max_threads = 128, min_blocks = 2)]
pub unsafe fn prepare(a: DeltaRule) {
    launch_dependents();
    wait_for_dependencies();
    let (head, index, thread) = (thread::block_idx_x(), thread::block_idx_y(), thread::thread_idx_x());
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let k = dynamic_shared::<f32>();
    let q = k.add(CHUNK * ROW);
    let square = q.add(CHUNK * ROW);
    // Sums of logarithms to the base 2; β; what K and Q are multiplied with.
    let kept = square.add(CHUNK * SQUARE_ROW);
    let beta = kept.add(CHUNK);
    let k_scale = beta.add(CHUNK);
    let q_scale = k_scale.add(CHUNK);
    // SAFETY: rows of the chunk are rows of the batch, whose others are zeros in shared memory; threads of a block take the same way to barriers, which
    // part who writes from who reads.
    unsafe {
        let (first, rows) = a.chunk(a.num_sequences, index);
        if rows == 0 {
            return;
        }
        // A warp takes every fourth row, four at a time, of each lane four values.
        let of_q = a.qkv.add((a.first_of_q(head) + 4 * lane) as usize);
        let of_k = of_q.add((a.key_heads * KEY_DIM) as usize);
        repeat(4, |part| {
            let mut values = [[[0.0f32; 4]; 2]; 4];
            repeat(4, |i| {
                let row = 16 * part as u32 + 4 * i as u32 + warp_id;
                if row < rows {
                    let at = offset(first + row, a.channels(), 0);
                    values[i] = [f32::load_group(of_k.add(at)), f32::load_group(of_q.add(at))];
                }
            });
            repeat(4, |i| {
                let row = 16 * part as u32 + 4 * i as u32 + warp_id;
                repeat(2, |m| {
                    let v = values[i][m];
                    let squares = warp::reduce_sum(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]);
                    let scale = 1.0 / (squares + a.eps).sqrt();
                    let (to, scales, scale) = if m == 0 {
                        (k, k_scale, scale)
                    } else {
                        (q, q_scale, scale / (KEY_DIM as f32).sqrt())
                    };
                    let rounded = [tf32(v[0]), tf32(v[1]), tf32(v[2]), tf32(v[3])];
                    to.add(row * ROW).cast::<[f32; 4]>().set(lane, rounded);
                    if lane == 0 {
                        scales.set(row, scale);
                    }
                });
            });
        });
        if warp_id == 0 {
            // Rows `2 lane` and the next: what both keep, and all before them.
            let mut logs = [0.0f32; 2];
            repeat(2, |i| {
                let row = 2 * lane + i as u32;
                let mut share = 0.0;
                if row < rows {
                    (logs[i], share) = a.log_gates(first + row, head);
                    logs[i] *= core::f32::consts::LOG2_E;
                }
                beta.set(row, share);
            });
            let sum = warp_inclusive_sum(logs[0] + logs[1]);
            kept.set(2 * lane, sum - logs[1]);
            kept.set(2 * lane + 1, sum);
        }
        thread::sync_threads();

        // K · Kᵀ and Q · Kᵀ of the warp's 16 rows, as far as columns have rows before them.
        let mut products = [[[0.0f32; 4]; 8]; 2];
        repeat((KEY_DIM / 8) as usize, |step| {
            let rows = [rows_of(k, ROW, 16 * warp_id, step), rows_of(q, ROW, 16 * warp_id, step)];
            repeat(8, |n| {
                if n as u32 <= 2 * warp_id + 1 {
                    let (r, c) = (lane / 4, lane % 4);
                    let at = k.add((8 * n as u32 + r) * ROW + 8 * step as u32 + c);
                    let b = [at.get(0), at.get(4)];
                    repeat(2, |m| products[m][n] = mma_m16n8k8_tf32(rows[m], b, products[m][n]));
                }
            });
        });
        let scratch = a.scratch_of(index, head);
        let weights = scratch.add((CHUNK * CHUNK) as usize);
        repeat(8, |n| {
            repeat(2, |half| {
                let i = 16 * warp_id + lane / 4 + 8 * half as u32;
                let mut pair = [0.0f32; 2];
                repeat(2, |right| {
                    let j = 8 * n as u32 + 2 * (lane % 4) + right as u32;
                    let place = 2 * half + right;
                    // 0 above the diagonal, where the difference may be anything.
                    let decay =
                        if j <= i { (kept.get(i) - kept.get(j)).exp2() * k_scale.get(j) } else { 0.0 };
                    let (of_k, of_q) =
                        if j <= i { (products[0][n][place], products[1][n][place]) } else { (0.0, 0.0) };
                    let known = if j < i { beta.get(i) * decay * k_scale.get(i) * of_k } else { 0.0 };
                    square.set(i * SQUARE_ROW + j, known);
                    pair[right] = tf32(decay * q_scale.get(i) * of_q);
                });
                let to = weights.add((i * CHUNK + 8 * n as u32 + 2 * (lane % 4)) as usize);
                <f32 as Group<2>>::store_group(to, pair);
            });
        });
        thread::sync_threads();

        // Nobody needs K and Q any more.
        let inverse = k;
        invert(square, inverse, q);
        let mut place = 4 * thread;
        while place < CHUNK * CHUNK {
            let (i, j) = (place / CHUNK, place % CHUNK);
            let mut row = [0.0f32; 4];
            repeat(4, |part| {
                let column = j + part as u32;
                row[part] = tf32(inverse.get(i * SQUARE_ROW + column) * beta.get(column));
            });
            f32::store_group(scratch.add(place as usize), row);
            place += 4 * BLOCK_SIZE;
        }
        if thread < CHUNK {
            let factors = scratch.add((2 * CHUNK * CHUNK + thread) as usize);
            let (of_row, all) = (kept.get(thread), kept.get(CHUNK - 1));
            *factors = of_row.exp2() * k_scale.get(thread);
            *factors.add(CHUNK as usize) = of_row.exp2() * q_scale.get(thread);
            *factors.add(2 * CHUNK as usize) = (all - of_row).exp2() * k_scale.get(thread);
            *factors.add(3 * CHUNK as usize) = all.exp2();
        }
    }
}
