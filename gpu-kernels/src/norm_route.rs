//! The norm before a mixture of experts, and its router.

use cuda_std::prelude::*;

use crate::route::MAX_EXPERTS;
#[device]
use crate::{
    experts::part_of,
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, is_last_block, offset, repeat},
    route::{keys_of_logits, store_chosen},
    vector::Group,
};
#[device]
use cuda_std::{
    memory,
    warp::{FULL_MASK, WarpReductionOp, warp_reduce},
};

/// The most warps of a block.
pub const MAX_WARPS: u32 = 8;
/// Rows of a block where a step has some, and where it has many.
pub const SOME_ROWS: u32 = 8;
pub const MANY_ROWS: u32 = 16;
/// The most bytes of shared memory of a block besides its rows.
pub const STATIC_BYTES: u32 = 4 * MAX_WARPS * (MAX_EXPERTS + MANY_ROWS) + 128;

/// `normed = rms_norm(x)`, and [`crate::route`] of that, as it was rounded.
#[kernel_args]
pub struct NormRoute<E> {
    pub num_rows: u32,
    pub hidden_size: u32,
    /// At most [`MAX_EXPERTS`].
    pub num_experts: u32,
    /// At most [`MAX_CHOSEN`](crate::route::MAX_CHOSEN) and `num_experts`, not 0.
    pub num_chosen: u32,
    pub renormalise: u32,
    /// Blocks that share the experts of some rows.
    pub splits: u32,
    pub eps: f32,
    /// f32 `[num_rows, hidden_size]`
    pub x: *const f32,
    /// f32 `[hidden_size]`
    pub norm: *const f32,
    /// f32 `[num_experts, hidden_size]`
    pub router: *const f32,
    /// f32 `[num_rows, num_experts]`, scratch
    pub logits: *mut f32,
    /// u32, a zero for each block of rows
    pub counters: *mut u32,
    /// E `[num_rows, hidden_size]`
    pub normed: *mut E,
    /// f32 `[num_rows, 2 * num_chosen]`: of each row the numbers of its experts, ascending, which f32 holds exactly, then their weights.
    pub chosen: *mut f32,
}

/// Some blocks share the experts of up to `R` rows, each of which norms these rows for itself; the last to finish chooses. Each of its `W` warps has `P`
/// experts at a time, and the first of their weights are under way before the kernel waits for its inputs: several experts where many rows keep the device
/// busy, for then what counts is how often the rows are read.
///
/// f32 throughout. Sums have a fixed order that depends on the sizes alone. Where a probability is no number its expert is chosen, so that the result is
/// none either.
///
/// Grid `[ceil(num_rows / R) * splits, 1, 1]`, exact, `splits` from 1 to `num_experts`; block `[32 W, 1, 1]`; dynamic shared memory for `R` rows of
/// f32.
///
/// # Safety
/// Grid and block are as above, sizes and arrays are as [`NormRoute`] has them, `hidden_size` is a multiple of 4, arrays are aligned to
/// 16 bytes, what is written overlaps nothing.
#[kernel(
    E = [f32, f16],
    (AHEAD, R, W, P) = [one: (16, 1, 4, 1), eight: (8, 8, 8, 1), many: (2, 16, 8, 4)],
    name = "norm_route_{E}_split_{AHEAD}",
    max_threads = 256,
)]
pub unsafe fn split<E: Group<4>, const AHEAD: usize, const R: usize, const W: usize, const P: usize>(
    a: NormRoute<E>,
) {
    let NormRoute { num_rows, hidden_size, num_experts, splits, router, logits, counters, .. } = a;
    let (warp, lane) = (warp::warp_id(), warp::lane_id());
    let (group, split) = divide(thread::block_idx_x(), splits);
    let first_row = group * R as u32;
    let rows = (num_rows - first_row).min(R as u32);
    let stage = dynamic_shared::<[f32; 4]>();
    let (warps, lanes_of_row) = const { (W as u32, 32 / R as u32) };
    let keys = shared_array![u32; (MAX_WARPS * MAX_EXPERTS) as usize];
    let is_last = shared_array![u32; 1];
    let [first, count] = part_of(num_experts, split, splits);
    // What lane `l` has of rows of the router: quads `l`, `l + 32`, …, `AHEAD` at a time. Of this warp's experts from `expert` on.
    let load = |expert: u32, column: u32| {
        let mut quads = [[[0.0f32; 4]; AHEAD]; P];
        repeat(P, |p| {
            let expert = expert + p as u32 * warps;
            repeat(AHEAD, |k| {
                let column = column + 128 * k as u32 + 4 * lane;
                if expert < first + count && column < hidden_size {
                    let from = router.wrapping_add(offset(expert, hidden_size, column));
                    // SAFETY: inside the row.
                    quads[p][k] = unsafe { memory::load_nc(from.cast::<[f32; 4]>()) };
                }
            });
        });
        quads
    };
    let mut expert = first + warp;
    let mut quads = load(expert, 0);
    let norm = norm_of_thread::<E, W>(&a);
    wait_for_dependencies();
    launch_dependents();
    // SAFETY: the caller's promise; barriers order what is shared, one warp has a row's keys.
    unsafe {
        stage_normed::<E, R, W>(&a, norm, stage, first_row, rows, split == 0);
        while expert < first + count {
            let (mut sums, mut column) = ([[0.0f32; R]; P], 0);
            let next = expert + P as u32 * warps;
            while column < hidden_size {
                let behind = column + 128 * AHEAD as u32;
                let load_next = || if behind < hidden_size { load(expert, behind) } else { load(next, 0) };
                // One row has too many under way for that.
                let ahead = if R > 1 { load_next() } else { quads };
                repeat(AHEAD, |k| {
                    let column = column + 128 * k as u32 + 4 * lane;
                    if column < hidden_size {
                        repeat(R, |i| {
                            let x = stage.get((i as u32 * hidden_size + column) / 4);
                            repeat(P, |p| {
                                repeat(4, |j| sums[p][i] = x[j].mul_add(quads[p][k][j], sums[p][i]));
                            });
                        });
                    }
                });
                column = behind;
                quads = if R > 1 { ahead } else { load_next() };
            }
            repeat(P, |p| {
                let expert = expert + p as u32 * warps;
                let logit = sum_of_rows(sums[p]);
                let row = lane / lanes_of_row;
                if lane.is_multiple_of(lanes_of_row) && row < rows && expert < first + count {
                    let to = logits.add(offset(first_row + row, num_experts, expert));
                    memory::store(to, logit);
                }
            });
            expert = next;
        }
        if !is_last_block(counters.add(group as usize), splits, is_last) {
            return;
        }
        let mut row = warp;
        while row < rows {
            if num_experts <= 32 * FEW_KEYS as u32 {
                choose_of_few(&a, first_row + row);
            } else {
                choose(&a, first_row + row, keys.add(warp * MAX_EXPERTS));
            }
            row += warps;
        }
    }
}

/// What the lanes' values of `R` rows, 1 to 32, add up to: of row `i` for lanes `32 i / R` and those behind it, in the order of
/// [`warp::reduce_sum`].
#[device]
#[inline(always)]
fn sum_of_rows<const R: usize>(mut sums: [f32; R]) -> f32 {
    let lane = warp::lane_id();
    repeat(5, |step| {
        let (delta, kept) = (16 >> step, R >> (step + 1));
        if kept == 0 {
            sums[0] += warp::shuffle_xor(sums[0], delta);
        }
        // Half of the rows for each half of the lanes.
        let is_high = lane & delta != 0;
        repeat(kept, |i| {
            let (low, high) = (sums[i], sums[i + kept]);
            let theirs = warp::shuffle_xor(if is_high { low } else { high }, delta);
            sums[i] = if is_high { high } else { low } + theirs;
        });
    });
    sums[0]
}

/// Quads of a row that a thread loads before it uses the first.
#[device]
const TOGETHER: usize = 4;
/// And rows.
#[device]
const ROWS_TOGETHER: usize = 4;
/// The most experts of a lane that are chosen from in registers.
#[device]
const FEW_KEYS: usize = 8;

/// The norm's weight where this thread of `W` warps needs it first: quads `t`, `t + 32 W`, ….
#[device]
#[inline(always)]
fn norm_of_thread<E, const W: usize>(a: &NormRoute<E>) -> [[f32; 4]; TOGETHER] {
    let mut quads = [[0.0; 4]; TOGETHER];
    repeat(TOGETHER, |k| {
        let quad = thread::thread_idx_x() + (32 * W * k) as u32;
        if quad < a.hidden_size / 4 {
            // SAFETY: inside the row.
            quads[k] = unsafe { f32::load_group(a.norm.wrapping_add(4 * quad as usize)) };
        }
    });
    quads
}

/// Norms the block's rows, `R` at most, to `stage`, and if `is_written` to where all see them; zeros where there are fewer. Ends with a barrier.
///
/// # Safety
/// As [`split`]; `norm` is [`norm_of_thread`].
#[device]
#[inline(always)]
unsafe fn stage_normed<E: Group<4>, const R: usize, const W: usize>(
    a: &NormRoute<E>,
    norm: [[f32; 4]; TOGETHER],
    stage: Shared<[f32; 4]>,
    first_row: u32,
    rows: u32,
    is_written: bool,
) {
    let of_warps = shared_array![f32; (MAX_WARPS * MANY_ROWS) as usize];
    let (warps, block) = const { (W as u32, 32 * W as u32) };
    let (t, quads) = (thread::thread_idx_x(), a.hidden_size / 4);
    // SAFETY: the caller's promise; a quad has one thread.
    unsafe {
        let mut first_of = 0;
        while first_of < R as u32 {
            let mut squares = [0.0f32; ROWS_TOGETHER];
            let mut first = t;
            while first < quads {
                let mut values = [[[0.0f32; 4]; TOGETHER]; ROWS_TOGETHER];
                repeat(ROWS_TOGETHER, |i| {
                    let row = first_of + i as u32;
                    repeat(TOGETHER, |k| {
                        let quad = first + k as u32 * block;
                        if row < rows && quad < quads {
                            let from = a.x.add(offset(first_row + row, a.hidden_size, 4 * quad));
                            values[i][k] = memory::load_l2(from.cast::<[f32; 4]>());
                        }
                    });
                });
                repeat(ROWS_TOGETHER, |i| {
                    let row = first_of + i as u32;
                    repeat(TOGETHER, |k| {
                        let quad = first + k as u32 * block;
                        if row < R as u32 && quad < quads {
                            repeat(4, |j| {
                                squares[i] = values[i][k][j].mul_add(values[i][k][j], squares[i]);
                            });
                            stage.set(row * quads + quad, values[i][k]);
                        }
                    });
                });
                first += TOGETHER as u32 * block;
            }
            repeat(ROWS_TOGETHER, |i| {
                let row = first_of + i as u32;
                if row < R as u32 {
                    let squares = warp::reduce_sum(squares[i]);
                    if warp::lane_id() == 0 {
                        of_warps.set(row * warps + warp::warp_id(), squares);
                    }
                }
            });
            first_of += ROWS_TOGETHER as u32;
        }
        thread::sync_threads();
        repeat(R, |i| {
            let row = i as u32;
            let mut squares = 0.0;
            repeat(W, |w| squares += of_warps.get(row * warps + w as u32));
            let scale = crate::rms_norm::scale(squares, a.hidden_size, a.eps);
            let normed = |quad: u32, w: [f32; 4]| {
                let x = stage.get(row * quads + quad);
                let normed =
                    [x[0] * scale * w[0], x[1] * scale * w[1], x[2] * scale * w[2], x[3] * scale * w[3]];
                let word = E::join_saturated(normed);
                stage.set(row * quads + quad, E::split(word));
                if is_written && row < rows {
                    a.normed
                        .add(offset(first_row + row, a.hidden_size, 4 * quad))
                        .cast::<E::Word>()
                        .write(word);
                }
            };
            repeat(TOGETHER, |k| {
                let quad = t + k as u32 * block;
                if quad < quads {
                    normed(quad, norm[k]);
                }
            });
            let mut quad = t + TOGETHER as u32 * block;
            while quad < quads {
                normed(quad, f32::load_group(a.norm.add(4 * quad as usize)));
                quad += block;
            }
        });
        thread::sync_threads();
    }
}

/// The experts of a row, from its logits.
///
/// # Safety
/// All lanes of the warp call it together; all blocks have left the row's logits; `keys` has room for [`MAX_EXPERTS`], the warp's alone.
#[device]
#[inline(always)]
unsafe fn choose<E>(a: &NormRoute<E>, row: u32, keys: Shared<u32>) {
    let &NormRoute { num_experts, num_chosen, renormalise, logits, chosen, .. } = a;
    let lane = warp::lane_id();
    // A lane has every 32nd expert.
    // SAFETY: the caller's promise; a lane touches its own keys alone.
    unsafe {
        let logits = logits.add(offset(row, num_experts, 0)).cast_const();
        let (mut max, mut expert) = (f32::NEG_INFINITY, lane);
        while expert < num_experts {
            let logit = memory::load_l2(logits.add(expert as usize));
            keys.set(expert, logit.to_bits());
            max = if logit > max { logit } else { max };
            expert += 32;
        }
        // 0 once it is chosen.
        keys_of_logits(keys, num_experts, max);
        // The largest key of this lane, of equal ones the first, and whose it is.
        let best_of_lane = || {
            let (mut best, mut whose, mut expert) = (0, lane, lane);
            while expert < num_experts {
                let key = keys.get(expert);
                if key > best {
                    (best, whose) = (key, expert);
                }
                expert += 32;
            }
            (best, whose)
        };
        let (mut best, mut whose) = best_of_lane();
        // Lane `i` keeps the expert of rank `i`.
        let (mut own, mut own_probability, mut total, mut rank) = (0, 0.0, 0.0, 0);
        while rank < num_chosen {
            let (key, expert) = likeliest(best, whose);
            let probability = f32::from_bits(key.wrapping_sub(1));
            if whose == expert {
                keys.set(expert, 0);
                (best, whose) = best_of_lane();
            }
            if lane == rank {
                (own, own_probability) = (expert, probability);
            }
            total += probability;
            rank += 1;
        }
        store_chosen(chosen, row, num_chosen, renormalise, [own_probability, total], own);
    }
}

/// The largest of the lanes' keys, and the expert that has it: of several the first.
///
/// # Safety
/// All lanes of the warp call it together.
#[device]
#[inline(always)]
unsafe fn likeliest(best: u32, whose: u32) -> (u32, u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let key = warp_reduce(FULL_MASK, best, WarpReductionOp::Max);
        let candidate = if best == key { whose } else { u32::MAX };
        (key, warp_reduce(FULL_MASK, candidate, WarpReductionOp::Min))
    }
}

/// [`choose`] with a lane's experts in registers, [`FEW_KEYS`] at most: the same results.
///
/// # Safety
/// All lanes of the warp call it together; all blocks have left the row's logits, and there are no more experts.
#[device]
#[inline(always)]
unsafe fn choose_of_few<E>(a: &NormRoute<E>, row: u32) {
    let &NormRoute { num_experts, num_chosen, renormalise, logits, chosen, .. } = a;
    let lane = warp::lane_id();
    let expert = |k: usize| lane + 32 * k as u32;
    let mut logits_of_lane = [f32::NEG_INFINITY; FEW_KEYS];
    let logits = logits.wrapping_add(offset(row, num_experts, 0)).cast_const();
    let mut max = f32::NEG_INFINITY;
    repeat(FEW_KEYS, |k| {
        if expert(k) < num_experts {
            // SAFETY: the caller's promise.
            logits_of_lane[k] = unsafe { memory::load_l2(logits.wrapping_add(expert(k) as usize)) };
        }
    });
    repeat(FEW_KEYS, |k| max = if logits_of_lane[k] > max { logits_of_lane[k] } else { max });
    let max = warp::reduce_max(max);
    let (mut shares, mut sum) = ([0.0f32; FEW_KEYS], 0.0);
    repeat(FEW_KEYS, |k| {
        if expert(k) < num_experts {
            shares[k] = (logits_of_lane[k] - max).exp();
            sum += shares[k];
        }
    });
    let sum = warp::reduce_sum(sum);
    // As in `keys_of_logits`; 0 where there is no expert, and once it is chosen.
    let mut keys = [0u32; FEW_KEYS];
    repeat(FEW_KEYS, |k| {
        if expert(k) < num_experts {
            keys[k] = ((shares[k] / sum).to_bits() & 0x7fff_ffff) + 1;
        }
    });
    // Lane `i` keeps the expert of rank `i`.
    let (mut own, mut own_probability, mut total, mut rank) = (0, 0.0, 0.0, 0);
    while rank < num_chosen {
        let (mut best, mut whose) = (0, lane);
        repeat(FEW_KEYS, |k| {
            if keys[k] > best {
                (best, whose) = (keys[k], expert(k));
            }
        });
        // SAFETY: the caller's promise.
        let (key, winner) = unsafe { likeliest(best, whose) };
        let probability = f32::from_bits(key.wrapping_sub(1));
        repeat(FEW_KEYS, |k| {
            if expert(k) == winner {
                keys[k] = 0;
            }
        });
        if lane == rank {
            (own, own_probability) = (winner, probability);
        }
        total += probability;
        rank += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { store_chosen(chosen, row, num_chosen, renormalise, [own_probability, total], own) }
}
