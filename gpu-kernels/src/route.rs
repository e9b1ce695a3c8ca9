//! The router of a mixture of experts: which experts a row goes to, and with what weights.

use cuda_std::prelude::*;

#[device]
use crate::{
    grid::offset,
    reduce::{Max, Reduce},
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;
/// The most experts.
pub const MAX_EXPERTS: u32 = 1024;
/// The most experts that a row goes to: a lane for each.
pub const MAX_CHOSEN: u32 = 32;

/// `p = softmax(x · routerᵀ)`; the `num_chosen` experts of the largest `p`, of equal ones the first, and their `p`, which are divided by their
/// sum if `renormalise` is not 0 (Shazeer et al. 2017, "Outrageously large neural networks"; as Qwen2-MoE and Qwen3-MoE have it).
#[kernel_args]
pub struct Route<X> {
    pub hidden_size: u32,
    /// At most [`MAX_EXPERTS`].
    pub num_experts: u32,
    /// At most [`MAX_CHOSEN`] and `num_experts`, not 0.
    pub num_chosen: u32,
    pub renormalise: u32,
    /// X `[num_rows, hidden_size]`
    pub x: *const X,
    /// f32 `[num_experts, hidden_size]`
    pub router: *const f32,
    /// f32 `[num_rows, 2 * num_chosen]`: of each row the numbers of its experts, ascending, which f32 holds exactly, then their weights.
    pub chosen: *mut f32,
}

/// f32 throughout. Sums have a fixed order that depends on the sizes alone. Where a probability is no number its expert is chosen, so that
/// the result is none either: what is chosen are always different experts that exist.
///
/// Grid `[num_rows, 1, 1]`, exact: one block a row; block `[BLOCK_SIZE, 1, 1]`. A warp computes every eighth logit; then the first warp alone
/// chooses.
///
/// # Safety
/// Grid and block are as above, sizes and arrays are as [`Route`] has them, `chosen` overlaps nothing.
#[kernel(X = [f32, f16], name = "route_{X}_plain")]
pub unsafe fn plain<X: Element>(a: Route<X>) {
    let Route { hidden_size, num_experts, num_chosen, renormalise, x, router, chosen } = a;
    // The logits' bits, then for each expert a key that grows with its probability; 0 once it is chosen.
    let keys = shared_array![u32; 1024];
    let (warp, lane) = (warp::warp_id(), warp::lane_id());
    let row = thread::block_idx_x();
    // SAFETY: the grid has a block a row, columns stay below `hidden_size`, experts below `num_experts`, for which `keys` has room; behind
    // the barrier each lane touches every 32nd key alone.
    unsafe {
        let x = x.add(offset(row, hidden_size, 0));
        let mut expert = warp;
        while expert < num_experts {
            let weight = router.add(offset(expert, hidden_size, 0));
            let mut sum = 0.0;
            let mut column = lane;
            while column < hidden_size {
                sum = x.add(column as usize).read().to_f32().fma(*weight.add(column as usize), sum);
                column += 32;
            }
            let logit = warp::reduce_sum(sum);
            if lane == 0 {
                keys.set(expert, logit.to_bits());
            }
            expert += BLOCK_SIZE / 32;
        }
        thread::sync_threads();
        if warp != 0 {
            return; // No barrier follows.
        }

        let (mut max, mut expert) = (f32::NEG_INFINITY, lane);
        while expert < num_experts {
            let logit = f32::from_bits(keys.get(expert));
            max = if logit > max { logit } else { max };
            expert += 32;
        }
        keys_of_logits(keys, num_experts, max);

        // Lane `i` keeps the expert of rank `i`.
        let (mut own, mut own_probability, mut total, mut rank) = (0, 0.0, 0.0, 0);
        while rank < num_chosen {
            let (mut best, mut expert) = (0u64, lane);
            while expert < num_experts {
                let candidate = u64::from(keys.get(expert)) << 32 | u64::from(u32::MAX - expert);
                best = if candidate > best { candidate } else { best };
                expert += 32;
            }
            let best = <Max as Reduce<u64>>::of_warp(best);
            let expert = u32::MAX - best as u32;
            let probability = f32::from_bits(((best >> 32) as u32).wrapping_sub(1));
            if expert % 32 == lane {
                keys.set(expert, 0);
            }
            if lane == rank {
                own = expert;
                own_probability = probability;
            }
            total += probability;
            rank += 1;
        }

        store_chosen(chosen, row, num_chosen, renormalise, [own_probability, total], own);
    }
}

/// Turns the bits of logits, of which `max` is the largest of this lane's, into keys that grow with their probabilities, from 1 on.
///
/// # Safety
/// All lanes of the warp call it together, and each has every 32nd of `num_experts` keys for itself.
#[device]
#[inline(always)]
pub(crate) unsafe fn keys_of_logits(keys: Shared<u32>, num_experts: u32, max: f32) {
    let lane = warp::lane_id();
    // SAFETY: the caller's promise.
    unsafe {
        let max = warp::reduce_max(max);
        let (mut sum, mut expert) = (0.0, lane);
        while expert < num_experts {
            let share = (f32::from_bits(keys.get(expert)) - max).exp();
            sum += share;
            keys.set(expert, share.to_bits());
            expert += 32;
        }
        let sum = warp::reduce_sum(sum);
        let mut expert = lane;
        while expert < num_experts {
            let probability = f32::from_bits(keys.get(expert)) / sum;
            // Bits of numbers from 0 on grow with them; those of NaN are above all.
            keys.set(expert, (probability.to_bits() & 0x7fff_ffff) + 1);
            expert += 32;
        }
    }
}

/// Writes the experts of a row, of which lane `i` has the one of rank `i`, `own`, with its probability, and all know the `total` of these.
///
/// # Safety
/// All lanes of the warp call it together; `chosen` has such a row of [`Route`], and nobody else writes it.
#[device]
#[inline(always)]
pub(crate) unsafe fn store_chosen(
    chosen: *mut f32,
    row: u32,
    num_chosen: u32,
    renormalise: u32,
    [own_probability, total]: [f32; 2],
    own: u32,
) {
    let lane = warp::lane_id();
    // By their numbers: the sum over them has one order then, whichever comes first.
    let (mut place, mut other) = (0, 0);
    while other < num_chosen {
        place += u32::from(warp::shuffle_idx(own, other) < own);
        other += 1;
    }
    if lane < num_chosen {
        let weight = if renormalise != 0 { own_probability / total } else { own_probability };
        // SAFETY: the caller's promise; places are below `num_chosen`.
        unsafe {
            *chosen.add(offset(row, 2 * num_chosen, place)) = own as f32;
            *chosen.add(offset(row, 2 * num_chosen, num_chosen + place)) = weight;
        }
    }
}
