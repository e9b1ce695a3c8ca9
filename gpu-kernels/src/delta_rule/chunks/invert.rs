//! The inverse of a chunk's square, which is lower triangular.

use cuda_std::prelude::*;

#[device]
use super::fragments::{columns_of, rows_of};
#[device]
use super::{BLOCK_SIZE, CHUNK, SQUARE_ROW};
#[device]
use crate::grid::repeat;
#[device]
use cuda_std::mma::{mma_m16n8k8_tf32, tf32};

/// Rows of the blocks that a square is inverted by.
#[device]
const BLOCK: u32 = 16;

/// `inverse = (I + a)⁻¹`, of which `a` is 0 on and above the diagonal: the blocks on the diagonal row by row in f32, a warp each, then one diagonal
/// of blocks after the other by `T_ij = -T_ii Σ_k A_ik T_kj` on tensor cores. `room` is scratch of as many values. Ends with a barrier.
///
/// # Safety
/// `a` is complete; the three do not overlap; all threads of the block call it together.
#[device]
#[inline(always)]
pub(super) unsafe fn invert(a: Shared<f32>, inverse: Shared<f32>, room: Shared<f32>) {
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let block = |matrix: Shared<f32>, i: u32, j: u32| matrix.add(BLOCK * (i * SQUARE_ROW + j));
    // SAFETY: places are inside the squares; each has one thread between two barriers.
    unsafe {
        // Zeros above the diagonal.
        let mut place = thread::thread_idx_x();
        while place < CHUNK * CHUNK {
            inverse.set(place / CHUNK * SQUARE_ROW + place % CHUNK, 0.0);
            place += BLOCK_SIZE;
        }
        thread::sync_threads();
        let of_block = block(a, warp_id, warp_id);
        let column = lane % BLOCK;
        let mut values = [0.0f32; BLOCK as usize];
        repeat(BLOCK as usize, |i| {
            let mut sum = if i as u32 == column { 1.0 } else { 0.0 };
            let row = of_block.add(i as u32 * SQUARE_ROW).cast::<[f32; 4]>();
            repeat(BLOCK as usize / 4, |quad| {
                if 4 * quad < i {
                    let known = row.get(quad as u32);
                    repeat(4, |part| {
                        if 4 * quad + part < i {
                            sum = (-known[part]).mul_add(values[4 * quad + part], sum);
                        }
                    });
                }
            });
            values[i] = sum;
        });
        if lane < BLOCK {
            let to = block(inverse, warp_id, warp_id).add(column);
            repeat(BLOCK as usize, |i| to.set(i as u32 * SQUARE_ROW, values[i]));
        }
        thread::sync_threads();
        // Block `i` of each diagonal has a warp; the others wait at the barriers.
        repeat(3, |d| {
            let distance = d as u32 + 1;
            let (i, j) = (warp_id, warp_id.wrapping_sub(distance));
            let is_block = warp_id >= distance;
            if is_block {
                let mut sums = [[0.0f32; 4]; 2];
                repeat(d + 1, |term| {
                    let between = j + term as u32;
                    add_product(block(a, i, between), block(inverse, between, j), &mut sums);
                });
                store_block(block(room, i, j), sums, 1.0);
            }
            warp::sync_warp(warp::FULL_MASK);
            if is_block {
                let mut sums = [[0.0f32; 4]; 2];
                add_product(block(inverse, i, i), block(room, i, j), &mut sums);
                store_block(block(inverse, i, j), sums, -1.0);
            }
            thread::sync_threads();
        });
    }
}

/// `sums += a · b` of blocks of a square.
///
/// # Safety
/// Both are blocks of squares in shared memory; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn add_product(a: Shared<f32>, b: Shared<f32>, sums: &mut [[f32; 4]; 2]) {
    repeat(2, |step| {
        // SAFETY: the caller's promise.
        unsafe {
            let of_a = rows_of(a, SQUARE_ROW, 0, step).map(tf32);
            repeat(2, |n| {
                let [x, y] = columns_of(b, SQUARE_ROW, step, n);
                sums[n] = mma_m16n8k8_tf32(of_a, [tf32(x), tf32(y)], sums[n]);
            });
        }
    });
}

/// Writes a block, times `sign`.
///
/// # Safety
/// It is a block of a square in shared memory, and nobody else uses it; all lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn store_block(to: Shared<f32>, sums: [[f32; 4]; 2], sign: f32) {
    let to = to.add(warp::lane_id() / 4 * SQUARE_ROW + 2 * (warp::lane_id() % 4));
    repeat(2, |n| {
        repeat(4, |i| {
            let (half, right) = (i as u32 / 2, i as u32 % 2);
            // SAFETY: the caller's promise.
            unsafe { to.set(8 * half * SQUARE_ROW + 8 * n as u32 + right, sign * sums[n][i]) }
        });
    });
}
