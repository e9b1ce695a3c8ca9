//! From chunk to chunk: what rows write to a state and are answered by it.

use cuda_std::prelude::*;

use super::DeltaRule;
#[device]
use super::fragments::{columns_of, nearest, rows_of};
#[device]
use super::{CHUNK, FACTORS, KEY_DIM, ROW, SCAN_BLOCK_SIZE, SCAN_WARPS, SQUARE_ROW, chunks_of, state_row};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
    vector::Group,
};
#[device]
use cuda_std::{
    async_copy,
    mma::{mma_m16n8k8_tf32, tf32},
};

/// Goes through the chunks of sequences of at least [`MIN_ROWS`](super::MIN_ROWS) rows: outputs and states. A warp has 16 rows of the
/// chunk and half of the block's columns, and 16 rows of the state and all columns.
///
/// Grid `[value_heads * value_dim / COLS, num_sequences, 1]`, exact; block `[SCAN_BLOCK_SIZE, 1, 1]`; dynamic shared memory [`scan_shared_bytes`](super::scan_shared_bytes). `key_dim` is
/// [`KEY_DIM`](super::KEY_DIM), `value_dim` a multiple of `COLS`, which is 8 `TILES` and 16 `HALF`; `qkv` aligned to 16 bytes, of a multiple of 4 columns.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`DeltaRule`], `states` and `out` overlap nothing; `scratch` is as [`prepare`](super::prepare) left it.
#[kernel(
    (E, COLS, TILES, HALF) = [(f32, 16, 2, 1), (f32, 32, 4, 2)],
    name = "delta_rule_scan_{E}_chunks_{COLS}",
    max_threads = 256,
)]
pub unsafe fn scan<const COLS: usize, const TILES: usize, const HALF: usize>(a: DeltaRule) {
    const { assert!(COLS == 8 * TILES && TILES == 2 * HALF) }
    launch_dependents();
    wait_for_dependencies();
    let row = const { state_row(COLS as u32) };
    let (lane, warp_id, sequence) = (warp::lane_id(), warp::warp_id(), thread::block_idx_y());
    let (head, first_column) = divide(thread::block_idx_x() * COLS as u32, a.value_dim);
    let (r, pair) = (lane / 4, 2 * (lane % 4));
    // Of the chunk: this warp's first row, and the first of its columns of eight.
    let (first_row, first_tile) = (16 * (warp_id % 4), warp_id / 4 * HALF as u32);
    let k = dynamic_shared::<f32>();
    let q = k.add(CHUNK * ROW);
    let inverse = q.add(CHUNK * ROW);
    let weights = inverse.add(CHUNK * SQUARE_ROW);
    let factors = weights.add(CHUNK * SQUARE_ROW);
    // The state, rounded; what is left of V; what rows write, and that as it is written.
    let rounded = factors.add(FACTORS * CHUNK);
    let left = rounded.add(KEY_DIM * row);
    let delta = left.add(CHUNK * row);
    let written = delta.add(CHUNK * row);
    // SAFETY: the grid has a block for each group of columns of each sequence; threads of a block take the same way to barriers, which part who writes from
    // who reads. Rows beyond the chunk's last are read as zeros, or of the scratch, where they are zeros, and not stored.
    unsafe {
        let (begin, end, begins) = a.rows_of(sequence);
        if chunks_of(end - begin) == 0 {
            return;
        }
        let mut index = a.chunks_before(sequence);
        let place = a.state(sequence, head).add(offset(16 * warp_id + r, a.value_dim, first_column + pair));
        // Where fragment `n` of the warp's rows is, of two pairs 8 rows apart.
        let at = |half: usize, n: usize| 8 * half * a.value_dim as usize + 8 * n;
        let mut state = [[0.0f32; 4]; TILES];
        if !begins {
            repeat(TILES, |n| {
                repeat(2, |half| {
                    let values: [f32; 2] = <f32 as Group<2>>::load_group(place.add(at(half, n)));
                    state[n][2 * half] = values[0];
                    state[n][2 * half + 1] = values[1];
                });
            });
        }
        let of_q = a.qkv.add(a.first_of_q(head) as usize);
        let of_k = of_q.add((a.key_heads * KEY_DIM) as usize);
        let of_v = a.qkv.add((2 * a.key_heads * KEY_DIM + head * a.value_dim + first_column + pair) as usize);
        let out = a.out.add((head * a.value_dim + first_column + pair) as usize);
        let mut first = begin;
        // K and Q as they came, and what `prepare` made of them: copied as soon as nobody needs those of the chunk before.
        let scratch = a.scratch_of(index, head).cast_const();
        copy_rows(q, of_q, &a, first, (end - first).min(CHUNK));
        copy_square(inverse, scratch);
        while first < end {
            let rows = (end - first).min(CHUNK);
            let scratch = a.scratch_of(index, head).cast_const();
            copy_rows(k, of_k, &a, first, rows);
            copy_square(weights, scratch.add((CHUNK * CHUNK) as usize));
            if thread::thread_idx_x() < FACTORS * CHUNK / 4 {
                let at = 4 * thread::thread_idx_x();
                let from = scratch.add((2 * CHUNK * CHUNK + at) as usize);
                async_copy::copy_16_or_zero(factors.add(at).cast::<[u32; 4]>(), from, 16);
            }
            async_copy::commit_group();
            let next = first + CHUNK;
            let mut v = [[[0.0f32; 2]; HALF]; 2];
            repeat(2, |half| {
                let i = first_row + r + 8 * half as u32;
                if i < rows {
                    repeat(HALF, |n| {
                        let from = of_v.add(offset(first + i, a.channels(), 8 * (first_tile + n as u32)));
                        v[half][n] = <f32 as Group<2>>::load_group(from);
                    });
                }
            });
            repeat(TILES, |n| {
                repeat(2, |half| {
                    let i = 16 * warp_id + 8 * half as u32 + r;
                    let to = rounded.add(i * row + 8 * n as u32 + pair);
                    to.set(0, tf32(state[n][2 * half]));
                    to.set(1, tf32(state[n][2 * half + 1]));
                });
            });
            async_copy::wait_group::<0>();
            thread::sync_threads();

            // K S and Q S.
            let (mut known, mut answer) = ([[0.0f32; 4]; HALF], [[0.0f32; 4]; HALF]);
            repeat((KEY_DIM / 8) as usize, |step| {
                let of_k = nearest(rows_of(k, ROW, first_row, step));
                let of_q = nearest(rows_of(q, ROW, first_row, step));
                repeat(HALF, |n| {
                    let b = columns_of(rounded.add(8 * first_tile), row, step, n);
                    known[n] = mma_m16n8k8_tf32(of_k, b, known[n]);
                    answer[n] = mma_m16n8k8_tf32(of_q, b, answer[n]);
                });
            });
            repeat(2, |half| {
                let i = first_row + r + 8 * half as u32;
                let (of_k, of_q) = (factors.get(i), factors.get(CHUNK + i));
                repeat(HALF, |n| {
                    let to = left.add(i * row + 8 * (first_tile + n as u32) + pair);
                    repeat(2, |right| {
                        let value = v[half][n][right] - of_k * known[n][2 * half + right];
                        to.set(right as u32, tf32(if i < rows { value } else { 0.0 }));
                        answer[n][2 * half + right] *= of_q;
                    });
                });
            });
            thread::sync_threads();
            if next < end {
                copy_rows(q, of_q, &a, next, (end - next).min(CHUNK));
            }

            // What rows write.
            let mut writes = [[0.0f32; 4]; HALF];
            repeat((CHUNK / 8) as usize, |step| {
                let of_row = rows_of(inverse, SQUARE_ROW, first_row, step);
                repeat(HALF, |n| {
                    let b = columns_of(left.add(8 * first_tile), row, step, n);
                    writes[n] = mma_m16n8k8_tf32(of_row, b, writes[n]);
                });
            });
            repeat(2, |half| {
                let i = first_row + r + 8 * half as u32;
                let of_k = factors.get(2 * CHUNK + i);
                repeat(HALF, |n| {
                    let at = i * row + 8 * (first_tile + n as u32) + pair;
                    repeat(2, |right| {
                        let value = writes[n][2 * half + right];
                        delta.set(at + right as u32, tf32(value));
                        written.set(at + right as u32, tf32(of_k * value));
                    });
                });
            });
            thread::sync_threads();
            if next < end {
                copy_square(inverse, a.scratch_of(index + 1, head).cast_const());
            }

            repeat((CHUNK / 8) as usize, |step| {
                let of_row = rows_of(weights, SQUARE_ROW, first_row, step);
                repeat(HALF, |n| {
                    let b = columns_of(delta.add(8 * first_tile), row, step, n);
                    answer[n] = mma_m16n8k8_tf32(of_row, b, answer[n]);
                });
            });
            repeat(2, |half| {
                let i = first_row + r + 8 * half as u32;
                if i < rows {
                    repeat(HALF, |n| {
                        let values = [answer[n][2 * half], answer[n][2 * half + 1]];
                        let column = 8 * (first_tile + n as u32);
                        let to = out.add(offset(first + i, a.value_heads * a.value_dim, column));
                        <f32 as Group<2>>::store_group(to, values);
                    });
                }
            });

            let kept = factors.get(3 * CHUNK);
            repeat(TILES, |n| repeat(4, |i| state[n][i] *= kept));
            repeat((CHUNK / 8) as usize, |step| {
                // Of Kᵀ: its rows are columns of K.
                let from = k.add((8 * step as u32 + lane % 4) * ROW + 16 * warp_id + r);
                let of_k = nearest([from.get(0), from.get(8), from.get(4 * ROW), from.get(4 * ROW + 8)]);
                repeat(TILES, |n| {
                    state[n] = mma_m16n8k8_tf32(of_k, columns_of(written, row, step, n), state[n]);
                });
            });
            // Everybody is done with what is copied next.
            thread::sync_threads();
            (first, index) = (next, index + 1);
        }
        repeat(TILES, |n| {
            repeat(2, |half| {
                let values = [state[n][2 * half], state[n][2 * half + 1]];
                <f32 as Group<2>>::store_group(place.add(at(half, n)), values);
            });
        });
    }
}

/// Starts to copy a head's values of K or Q of rows `first ..` to shared memory; zeros behind the chunk's last row.
///
/// # Safety
/// The rows are rows of the batch; nobody uses the shared memory.
#[device]
#[inline(always)]
unsafe fn copy_rows(to: Shared<f32>, from: *const f32, a: &DeltaRule, first: u32, rows: u32) {
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    repeat((CHUNK / SCAN_WARPS) as usize, |i| {
        let row = SCAN_WARPS * i as u32 + warp_id;
        let from = from.wrapping_add(offset(first + row.min(rows - 1), a.channels(), 4 * lane));
        let bytes = if row < rows { 16 } else { 0 };
        // SAFETY: the caller's promise.
        unsafe { async_copy::copy_16_or_zero(to.add(row * ROW + 4 * lane).cast::<[u32; 4]>(), from, bytes) }
    });
}

/// Starts to copy a square to shared memory.
///
/// # Safety
/// `from` leads to one, aligned to 16 bytes; nobody uses the shared memory.
#[device]
#[inline(always)]
unsafe fn copy_square(to: Shared<f32>, from: *const f32) {
    repeat((CHUNK * CHUNK / 4 / SCAN_BLOCK_SIZE) as usize, |i| {
        let place = 4 * (i as u32 * SCAN_BLOCK_SIZE + thread::thread_idx_x());
        let (row, column) = (place / CHUNK, place % CHUNK);
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(row * SQUARE_ROW + column).cast::<[u32; 4]>();
            async_copy::copy_16_or_zero(to, from.add(place as usize), 16);
        }
    });
}
