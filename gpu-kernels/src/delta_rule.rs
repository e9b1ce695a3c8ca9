//! The gated delta rule, row by row of each sequence (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"; docs/hybrids.md).
//!
//! Each head of V has a state S `[key_dim, value_dim]` in its sequence's slot, and goes with one head of Q and K. Of each row, with `k` and `q`
//! divided by `sqrt(Σ k² + eps)` and `sqrt(Σ q² + eps) * sqrt(key_dim)`:
//!
//! ```text
//! S     = exp(decay * softplus(α + dt_bias)) * S
//! delta = sigmoid(β) * (v - Sᵀ k)
//! S     = S + k deltaᵀ
//! out   = Sᵀ q
//! ```
//!
//! All is f32. Columns of S have nothing to do with each other. A state is read once, before a sequence's first row in the batch, and
//! written once, behind its last; at position 0 it is zeros, whatever the slot has.
//!
//! A row has the same bits however its sequence was cut into chunks; the kernels differ from each other in the order of sums.

use cuda_std::prelude::*;

#[device]
use crate::{
    delta::{self, PARTS},
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
};

pub mod chunks;

pub use crate::delta::WARP_COLUMNS;

/// The largest heads of K that the plain kernel takes.
pub const MAX_KEY_DIM: u32 = 256;

/// The largest heads of V that the plain kernel takes.
pub const MAX_VALUE_DIM: u32 = 1024;

/// What all kernels take.
#[kernel_args]
pub struct DeltaRule {
    pub key_heads: u32,
    /// A multiple of `key_heads`.
    pub value_heads: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    /// Not 0: head `h` of V goes with head `h mod key_heads` of K; 0: with head `h / (value_heads / key_heads)`.
    pub tiled: u32,
    pub eps: f32,
    /// u32 `[num_tokens]`
    pub positions: *const u32,
    /// u32 `[num_sequences + 1]`
    pub query_start: *const u32,
    /// u32 `[num_sequences]`, each below `num_slots`, all different
    pub state_slots: *const u32,
    /// f32 `[num_tokens, (2 key_heads) * key_dim + value_heads * value_dim]`: Q, K, V
    pub qkv: *const f32,
    /// f32 `[num_tokens, cols]`
    pub mixed: *const f32,
    pub cols: u32,
    /// The column of `mixed` where the `value_heads` values of β begin.
    pub beta: u32,
    /// As `beta`, of α.
    pub alpha: u32,
    /// f32 `[value_heads]`
    pub decay: *const f32,
    /// f32 `[value_heads]`
    pub dt_bias: *const f32,
    /// f32 `[num_slots, slot_values]`, a layer's; the state `[value_heads, key_dim, value_dim]` begins at `first_value` of a slot.
    pub states: *mut f32,
    pub slot_values: u32,
    pub first_value: u32,
    /// f32 `[num_tokens, value_heads * value_dim]`
    pub out: *mut f32,
    pub num_sequences: u32,
    /// Sequences of more rows are left to the kernels of [`chunks`]: `u32::MAX` computes all.
    pub max_rows: u32,
    /// f32 `[chunks, value_heads, CHUNK_VALUES]`, aligned to 16 bytes: what the kernels of [`chunks`] leave for each other; the others do not look at it.
    pub scratch: *mut f32,
}

#[device]
impl DeltaRule {
    /// The rows of a sequence, and whether its first one is at position 0.
    ///
    /// # Safety
    /// The arrays are as described, and the sequence is one of the batch.
    #[inline(always)]
    unsafe fn rows_of(&self, sequence: u32) -> (u32, u32, bool) {
        // SAFETY: the caller's promise.
        unsafe {
            let first = *self.query_start.add(sequence as usize);
            let end = *self.query_start.add(sequence as usize + 1);
            (first, end, first < end && *self.positions.add(first as usize) == 0)
        }
    }

    /// Where the state of a head of V begins.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn state(&self, sequence: u32, head: u32) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let slot = *self.state_slots.add(sequence as usize);
            let of_head = head as usize * self.key_dim as usize * self.value_dim as usize;
            self.states.add(offset(slot, self.slot_values, self.first_value) + of_head)
        }
    }

    /// The first column of the head's Q in `qkv`; K's is `key_heads * key_dim` behind.
    #[inline(always)]
    fn first_of_q(&self, head: u32) -> u32 {
        delta::key_head(head, self.key_heads, self.value_heads, self.tiled != 0) * self.key_dim
    }

    /// Columns of `qkv`.
    #[inline(always)]
    fn channels(&self) -> u32 {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// What is left of the head's state at a row, and the share of the difference that is written.
    ///
    /// # Safety
    /// As above, and the row is one of the batch.
    #[inline(always)]
    unsafe fn gates(&self, row: u32, head: u32) -> (f32, f32) {
        // SAFETY: the caller's promise.
        let (log, share) = unsafe { self.log_gates(row, head) };
        (log.exp(), share)
    }

    /// As [`DeltaRule::gates`], the first as its logarithm.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn log_gates(&self, row: u32, head: u32) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let beta = *self.mixed.add(offset(row, self.cols, self.beta + head));
            let alpha = *self.mixed.add(offset(row, self.cols, self.alpha + head));
            let (dt_bias, decay) = (*self.dt_bias.add(head as usize), *self.decay.add(head as usize));
            delta::log_gates(alpha, dt_bias, decay, beta)
        }
    }
}

/// Written to be read: a block a head of V, a thread a column of its state, which stays where it is.
///
/// Grid `[value_heads, num_sequences, 1]`; block `[value_dim, rounded up to a multiple of 32, 1, 1]`. `key_dim` is at most
/// [`MAX_KEY_DIM`], `value_dim` at most [`MAX_VALUE_DIM`].
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`DeltaRule`], `states` and `out` overlap nothing.
#[kernel(E = [f32], name = "delta_rule_{E}_plain", max_threads = 1024)]
pub unsafe fn plain(
    a: DeltaRule,
    #[shared(MAX_KEY_DIM as usize)] q: Shared<f32>,
    #[shared(MAX_KEY_DIM as usize)] k: Shared<f32>,
) {
    launch_dependents();
    wait_for_dependencies();
    let (head, sequence, column) = (thread::block_idx_x(), thread::block_idx_y(), thread::thread_idx_x());
    let (key_dim, value_dim) = (a.key_dim, a.value_dim);
    // SAFETY: the grid has a block for each head of each sequence; columns stay below `value_dim`, rows of a state below `key_dim`. All
    // threads of the block go through the same rows, and so through the same barriers.
    unsafe {
        let (first, end, begins) = a.rows_of(sequence);
        let state = a.state(sequence, head).add(column as usize);
        let is_column = column < value_dim;
        if begins && is_column {
            let mut i = 0;
            while i < key_dim {
                *state.add(offset(i, value_dim, 0)) = 0.0;
                i += 1;
            }
        }
        let mut row = first;
        while row < end {
            let of_q = a.qkv.add(offset(row, a.channels(), a.first_of_q(head)));
            let of_k = of_q.add((a.key_heads * key_dim) as usize);
            let (mut q_squares, mut k_squares) = (0.0, 0.0);
            let mut i = warp::lane_id();
            while i < key_dim {
                let (q, k) = (*of_q.add(i as usize), *of_k.add(i as usize));
                q_squares = q.mul_add(q, q_squares);
                k_squares = k.mul_add(k, k_squares);
                i += 32;
            }
            let (q_scale, k_scale) = delta::norm_scales(q_squares, k_squares, a.eps, key_dim);
            // Nobody reads those of the row before any more.
            thread::sync_threads();
            let mut i = column;
            while i < key_dim {
                q.set(i, *of_q.add(i as usize) * q_scale);
                k.set(i, *of_k.add(i as usize) * k_scale);
                i += thread::block_dim_x();
            }
            thread::sync_threads();
            if is_column {
                let (kept, beta) = a.gates(row, head);
                let mut known = 0.0;
                let mut i = 0;
                while i < key_dim {
                    known = (kept * *state.add(offset(i, value_dim, 0))).mul_add(k.get(i), known);
                    i += 1;
                }
                let of_v = 2 * a.key_heads * key_dim + head * value_dim + column;
                let delta = beta * (*a.qkv.add(offset(row, a.channels(), of_v)) - known);
                let mut answer = 0.0;
                let mut i = 0;
                while i < key_dim {
                    let place = state.add(offset(i, value_dim, 0));
                    let value = k.get(i).mul_add(delta, kept * *place);
                    *place = value;
                    answer = value.mul_add(q.get(i), answer);
                    i += 1;
                }
                *a.out.add(offset(row, a.value_heads * value_dim, head * value_dim + column)) = answer;
            }
            row += 1;
        }
    }
}

/// Warps of a block of [`registers`].
pub const WARPS: u32 = 4;

/// What a row asks of a warp's columns: loaded a row ahead.
#[device]
#[derive(Clone, Copy)]
struct Row<const M: usize> {
    /// Values `lane`, `lane + 32`, … of the head's Q and K.
    q: [f32; M],
    k: [f32; M],
    /// Of the lane's column.
    v: f32,
    kept: f32,
    beta: f32,
}

#[device]
impl DeltaRule {
    /// # Safety
    /// As [`DeltaRule::gates`]; the column is one of the head's.
    #[inline(always)]
    unsafe fn row<const M: usize>(&self, row: u32, head: u32, column: u32) -> Row<M> {
        let lane = warp::lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            let of_row = self.qkv.add(offset(row, self.channels(), 0));
            let of_q = of_row.add((self.first_of_q(head) + lane) as usize);
            let of_k = of_q.add((self.key_heads * self.key_dim) as usize);
            let (mut q, mut k) = ([0.0; M], [0.0; M]);
            repeat(M, |i| {
                q[i] = *of_q.add(32 * i);
                k[i] = *of_k.add(32 * i);
            });
            let of_v = 2 * self.key_heads * self.key_dim + head * self.value_dim + column;
            let (kept, beta) = self.gates(row, head);
            Row { q, k, v: *of_row.add(of_v as usize), kept, beta }
        }
    }
}

/// States in registers: a warp has [`WARP_COLUMNS`] columns, and of each every lane a quarter, `N = KEY_DIM / 4` values. Nothing is
/// waited for but the next row's values, which are asked for a row ahead. Warps have nothing to do with each other.
///
/// Grid `[value_heads * value_dim / (WARPS * WARP_COLUMNS), num_sequences, 1]`, exact; block `[32 * WARPS, 1, 1]`. `key_dim` is `KEY_DIM`,
/// `M` is `KEY_DIM / 32`, `value_dim` a multiple of `WARPS * WARP_COLUMNS`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`DeltaRule`], `states` and `out` overlap nothing.
#[kernel(
    (E, KEY_DIM, N, M) = [(f32, 32, 8, 1), (f32, 64, 16, 2), (f32, 128, 32, 4)],
    name = "delta_rule_{E}_registers_k{KEY_DIM}",
    max_threads = 128,
)]
pub unsafe fn registers<const KEY_DIM: usize, const N: usize, const M: usize>(
    a: DeltaRule,
    #[shared(WARPS as usize * KEY_DIM)] q: Shared<f32>,
    #[shared(WARPS as usize * KEY_DIM)] k: Shared<f32>,
) {
    launch_dependents();
    wait_for_dependencies();
    let (lane, warp_id, sequence) = (warp::lane_id(), warp::warp_id(), thread::block_idx_y());
    let first_column = (thread::block_idx_x() * WARPS + warp_id) * WARP_COLUMNS + lane % WARP_COLUMNS;
    let (head, column) = divide(first_column, a.value_dim);
    let part = lane / WARP_COLUMNS;
    let (q, k) = (q.add(warp_id * KEY_DIM as u32), k.add(warp_id * KEY_DIM as u32));
    // SAFETY: the grid has a warp for each group of columns of each sequence; `part + PARTS * i` stays below KEY_DIM. Lanes of a warp go
    // through the same rows together; what they share is their own.
    unsafe {
        let (first, end, begins) = a.rows_of(sequence);
        if first == end || end - first > a.max_rows {
            return;
        }
        let place = a.state(sequence, head).add(offset(part, a.value_dim, column));
        let stride = PARTS * a.value_dim as usize;
        let mut state = [0.0; N];
        if !begins {
            repeat(N, |i| state[i] = *place.add(i * stride));
        }
        let mut next = a.row::<M>(first, head, column);
        let mut row = first;
        while row < end {
            let Row { q: of_q, k: of_k, v, kept, beta } = next;
            next = a.row::<M>((row + 1).min(end - 1), head, column);
            let (mut q_squares, mut k_squares) = (0.0, 0.0);
            repeat(M, |i| {
                q_squares = of_q[i].mul_add(of_q[i], q_squares);
                k_squares = of_k[i].mul_add(of_k[i], k_squares);
            });
            let (q_scale, k_scale) = delta::norm_scales(q_squares, k_squares, a.eps, KEY_DIM as u32);
            // No lane reads those of the row before any more.
            warp::sync_warp(warp::FULL_MASK);
            repeat(M, |i| {
                q.set(lane + 32 * i as u32, of_q[i] * q_scale);
                k.set(lane + 32 * i as u32, of_k[i] * k_scale);
            });
            warp::sync_warp(warp::FULL_MASK);
            let (q, k) = (q.add(part), k.add(part));
            let at = |i: usize| (PARTS * i) as u32;
            let answer = delta::take_row(&mut state, |i| q.get(at(i)), |i| k.get(at(i)), v, (kept, beta));
            if part == 0 {
                *a.out.add(offset(row, a.value_heads * a.value_dim, first_column)) = answer;
            }
            row += 1;
        }
        repeat(N, |i| *place.add(i * stride) = state[i]);
    }
}
