//! Rows of experts, brought together as [`wgmma`](super::warpgroups) takes them.
//!
//! Grid `[groups, ceil(rows of a group / ALIGNMENT), 1]`, of the most groups that there may be; block `[BLOCK_SIZE, 1, 1]`; arrays as [`Arrange`] has them, aligned to
//! 16 bytes, `cols` a multiple of [`STEP`], `rows` and `factors` overlap nothing.

use cuda_std::prelude::*;

use super::warpgroups::ALIGNMENT;
#[device]
use super::{Group, warpgroups::STEP};
#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
    vector::load8,
};
#[device]
use cuda_std::memory;

/// Brings the rows of groups together.
#[kernel_args]
pub struct Arrange<X> {
    pub cols: u32,
    /// Rows that there is room for in `rows`.
    pub places: u32,
    /// Pairs that have a row of x: all of a row, or one.
    pub pairs_of_row: u32,
    /// Whether weights are floats, whose units have columns in another order.
    pub of_floats: u32,
    /// What products are multiplied with, beside what the row was divided by.
    pub factor: f32,
    /// As [`crate::sort_experts`] leaves them.
    pub groups: *const u32,
    pub order: *const u32,
    /// X `[pairs / pairs_of_row, cols]`
    pub x: *const X,
    /// f16 `[cols / STEP, places, STEP]`
    pub rows: *mut f16,
    /// f32 `[places]`: what products are multiplied with.
    pub factors: *mut f32,
}

/// Threads of a block that arranges: a warp for a row.
pub const BLOCK_SIZE: u32 = 32 * ALIGNMENT;

/// Columns of a lane, and of a warp, at a time; and how many times it asks for those before it uses the first.
#[device]
const COLUMNS: u32 = 8;
#[device]
const CHUNK: u32 = 32 * COLUMNS;
#[device]
const TOGETHER: usize = 4;

/// One of the kernels; with `SCALED` rows are multiplied with a power of two first.
///
/// # Safety
/// Grid, block and arrays are as the [module](self) says.
#[device]
#[inline(always)]
pub(crate) unsafe fn arrange<X: Element, const SCALED: bool>(a: &Arrange<X>) {
    // The exponent of the largest value of a row, as f32 has it: half of what f16 could have.
    const LARGEST: u32 = 127 + 14;
    wait_for_dependencies();
    launch_dependents();
    let lane = warp::lane_id();
    let index = thread::block_idx_y() * ALIGNMENT + warp::warp_id();
    // SAFETY: the caller's promise; a warp has its row for itself.
    unsafe {
        let Some(group) = Group::get(a.groups, thread::block_idx_x()) else { return };
        if index >= group.count {
            return;
        }
        let place = group.first + index;
        let pair = memory::load_l2(a.order.add(place as usize));
        let x = a.x.add(offset(divide(pair, a.pairs_of_row).0, a.cols, COLUMNS * lane));
        let column_of = |first: u32, k: usize| first + CHUNK * k as u32;
        let load = |first: u32| {
            let mut values = [[0.0f32; COLUMNS as usize]; TOGETHER];
            repeat(TOGETHER, |k| {
                if column_of(first, k) + COLUMNS * lane < a.cols {
                    values[k] = load8(x.add(column_of(first, k) as usize));
                }
            });
            values
        };
        let mut values = load(0);
        let (mut times, mut back) = (1.0, 1.0);
        if SCALED {
            let mut largest = 0.0f32;
            let mut of = |values: &[[f32; COLUMNS as usize]; TOGETHER]| {
                repeat(TOGETHER, |k| repeat(COLUMNS as usize, |i| largest = largest.max(values[k][i].abs())));
            };
            of(&values);
            let mut first = CHUNK * TOGETHER as u32;
            while first < a.cols {
                of(&load(first));
                first += CHUNK * TOGETHER as u32;
            }
            let exponent = (warp::reduce_max(largest).to_bits() >> 23).clamp(LARGEST - 126, 254);
            times = f32::from_bits((LARGEST + 127 - exponent) << 23);
            back = f32::from_bits((exponent + 127 - LARGEST) << 23);
        }
        if lane == 0 {
            memory::store(a.factors.add(place as usize), back * a.factor);
        }
        let mut first = 0;
        while first < a.cols {
            repeat(TOGETHER, |k| {
                let pair = |i: usize, j: usize| f16::pack2(values[k][i] * times, values[k][j] * times);
                let words = if a.of_floats != 0 {
                    transpose([pair(0, 1), pair(2, 3), pair(4, 5), pair(6, 7)])
                } else {
                    exchange([pair(0, 2), pair(4, 6)], [pair(1, 3), pair(5, 7)])
                };
                let column = column_of(first, k) + COLUMNS * lane;
                if column < a.cols {
                    let row = offset(column / STEP, a.places, place) * STEP as usize;
                    let word = (column % STEP / COLUMNS) ^ (place % 8);
                    memory::store(a.rows.add(row).cast::<[u32; 4]>().add(word as usize), words);
                }
            });
            first += CHUNK * TOGETHER as u32;
            if first < a.cols {
                values = load(first);
            }
        }
    }
}

/// Of 16 columns, eight each of two lanes, those that a lane has of weights as `4 c` and `4 c + 2`, for the first of them, and the others, for the second.
#[device]
#[inline(always)]
fn exchange(even: [u32; 2], odd: [u32; 2]) -> [u32; 4] {
    let is_second = warp::lane_id() % 2 == 1;
    let theirs = |k: usize| warp::shuffle_xor(if is_second { even[k] } else { odd[k] }, 1);
    let theirs = [theirs(0), theirs(1)];
    if is_second { [theirs[0], theirs[1], odd[0], odd[1]] } else { [even[0], even[1], theirs[0], theirs[1]] }
}

/// Of 32 columns, eight each of four lanes: word `w` of each for the `w`th of them.
#[device]
#[inline(always)]
fn transpose(mut words: [u32; 4]) -> [u32; 4] {
    let lane = warp::lane_id();
    repeat(2, |bit| {
        let (mask, is_high) = (1 << bit, lane >> bit & 1 == 1);
        repeat(4, |word| {
            if word & mask == 0 {
                let (low, high) = (words[word], words[word | mask]);
                let theirs = warp::shuffle_xor(if is_high { low } else { high }, mask as u32);
                words[word] = if is_high { theirs } else { low };
                words[word | mask] = if is_high { high } else { theirs };
            }
        });
    });
    words
}
