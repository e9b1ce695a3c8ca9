//! A decode step of linear attention between its two products, in one kernel: convolution, gated delta rule, norm and gate.
//!
//! What [`causal_conv`](crate::causal_conv), [`delta_rule`](crate::delta_rule) and [`gated_norm`](crate::gated_norm) compute of a sequence that has one row in
//! the batch, in the same order of sums but for the norm's. A block has a head of V: all columns of its state, so that the norm of its answer is its own, and
//! it convolves the channels that the head needs itself. Those of Q and K it shares with the other heads of V of their head of K: the last of these
//! blocks to have read them leaves the new inputs in the slot.
//!
//! What the product before it does not write is loaded while that still runs: the state, which is most of what a block reads, the inputs in the slot,
//! weights. Nothing of a slot is written by a kernel that this one may run beside: the steps of a sequence are apart, by the copy of a batch's indices.

use cuda_std::prelude::*;

#[device]
use crate::{
    delta::{self, PARTS, WARP_COLUMNS},
    fused::{launch_dependents, wait_for_dependencies},
    grid::{divide, offset, repeat},
    rms_norm,
    vector::Saturate,
};
#[device]
use cuda_std::{
    atomic::{AtomicAdd, Ordering, Scope},
    memory,
};

/// Values of the heads of K and of V.
pub const HEAD_DIM: u32 = 128;
/// Tokens that an output of the convolution sees.
pub const TAPS: u32 = 4;
/// Threads of a block: a warp for eight columns of a state, of which every lane has a quarter.
pub const BLOCK_SIZE: u32 = 512;

/// Values of a column that a lane has.
const VALUES: usize = HEAD_DIM as usize / PARTS;

#[kernel_args]
pub struct DeltaStep<E> {
    pub key_heads: u32,
    /// A multiple of `key_heads`.
    pub value_heads: u32,
    /// Not 0: head `h` of V goes with head `h mod key_heads` of K; 0: with head `h / (value_heads / key_heads)`.
    pub tiled: u32,
    /// Of the norms of Q and K.
    pub eps: f32,
    /// u32 `[num_tokens]`
    pub positions: *const u32,
    /// u32 `[num_sequences + 1]`
    pub query_start: *const u32,
    /// u32 `[num_sequences]`, each below `num_slots`, all different
    pub state_slots: *const u32,
    /// f32 `[num_tokens, cols]`: Q, K and V first
    pub mixed: *const f32,
    pub cols: u32,
    /// The column of `mixed` where the gate begins.
    pub z: u32,
    /// As `z`, of β.
    pub beta: u32,
    /// As `z`, of α.
    pub alpha: u32,
    /// f32 `[(2 key_heads + value_heads) * HEAD_DIM, TAPS]`
    pub conv_weight: *const f32,
    /// f32 `[value_heads]`
    pub decay: *const f32,
    /// f32 `[value_heads]`
    pub dt_bias: *const f32,
    /// f32 `[num_slots, slot_values]`, a layer's: the convolution's inputs, then from `first_value` on the state
    pub states: *mut f32,
    pub slot_values: u32,
    pub first_value: u32,
    /// f32 `[HEAD_DIM]`
    pub norm: *const f32,
    pub norm_eps: f32,
    pub out_scale: f32,
    /// u32 `[num_sequences, key_heads]`, 0 before and after
    pub counters: *mut u32,
    /// E `[num_tokens, value_heads * HEAD_DIM]`, rounded once, no f16 to infinity
    pub out: *mut E,
}

/// A block's head, and where it is.
#[device]
#[derive(Clone, Copy)]
struct Head {
    head: u32,
    key_head: u32,
    /// Of Q, K and V of all heads.
    channels: u32,
    /// Of the heads of K.
    key_size: u32,
    row: u32,
    /// The row is its sequence's first: what the slot has is another sequence's.
    begins: bool,
    slot: *mut f32,
}

/// The inputs of a channel that an output sees, the oldest first.
#[device]
type Inputs = [f32; TAPS as usize];

/// A channel of the convolution.
#[device]
#[derive(Clone, Copy, Default)]
struct Channel {
    /// Without the newest.
    inputs: Inputs,
    weights: [f32; TAPS as usize],
}

#[device]
impl Channel {
    /// The convolution, and its inputs: where the row `begins` a sequence, what was there before is another's.
    #[inline(always)]
    fn convolved(self, newest: f32, begins: bool) -> (f32, Inputs) {
        let Self { mut inputs, weights } = self;
        if begins {
            inputs = [0.0; TAPS as usize];
        }
        inputs[TAPS as usize - 1] = newest;
        let mut sum = 0.0f32;
        repeat(TAPS as usize, |j| sum = weights[j].mul_add(inputs[j], sum));
        (sum / (1.0 + (-sum).exp()), inputs)
    }
}

#[device]
impl<E> DeltaStep<E> {
    /// Of a head of V and a sequence; `None` where that has no row.
    ///
    /// # Safety
    /// The arrays are as described, and there are such.
    #[inline(always)]
    unsafe fn head(&self, head: u32, sequence: u32) -> Option<Head> {
        let key_head = delta::key_head(head, self.key_heads, self.value_heads, self.tiled != 0);
        let key_size = self.key_heads * HEAD_DIM;
        // SAFETY: the caller's promise.
        unsafe {
            let row = *self.query_start.add(sequence as usize);
            if row == *self.query_start.add(sequence as usize + 1) {
                return None;
            }
            let slot = *self.state_slots.add(sequence as usize);
            Some(Head {
                head,
                key_head,
                channels: 2 * key_size + self.value_heads * HEAD_DIM,
                key_size,
                row,
                begins: *self.positions.add(row as usize) == 0,
                slot: self.states.add(offset(slot, self.slot_values, 0)),
            })
        }
    }

    /// Heads of V that go with one of K.
    #[inline(always)]
    fn heads_of_key(&self) -> u32 {
        divide(self.value_heads, self.key_heads).0
    }

    /// What there is of a channel before the row's own input.
    ///
    /// # Safety
    /// As [`DeltaStep::head`], and nobody writes inputs of the channel.
    #[inline(always)]
    unsafe fn channel(&self, of: Head, channel: u32) -> Channel {
        let mut found = Channel::default();
        repeat(TAPS as usize, |j| {
            // SAFETY: the caller's promise.
            unsafe {
                if j + 1 < TAPS as usize {
                    found.inputs[j] = *of.slot.add(offset(j as u32, of.channels, channel));
                }
                found.weights[j] = *self.conv_weight.add(offset(channel, TAPS, j as u32));
            }
        });
        found
    }

    /// Value `column` of the row of `mixed`.
    ///
    /// # Safety
    /// As [`DeltaStep::head`], and the product before has ended.
    #[inline(always)]
    unsafe fn mixed(&self, of: Head, column: u32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.mixed.add(offset(of.row, self.cols, column)) }
    }

    /// Counts this block, whose threads have all read the inputs of Q and K, among the `count` that do; for one thread, which is told how many came before.
    ///
    /// # Safety
    /// As [`DeltaStep::head`]; a barrier came after the reads.
    #[inline(always)]
    unsafe fn count(&self, of: Head, sequence: u32, count: u32) -> u32 {
        if count == 1 {
            return 0;
        }
        // SAFETY: a counter for each head of K of each sequence.
        unsafe {
            let counter = self.counters.add((sequence * self.key_heads + of.key_head) as usize);
            let before = u32::fetch_add(counter, 1, Ordering::AcqRel, Scope::Device);
            if before + 1 == count {
                memory::store(counter, 0);
            }
            before
        }
    }
}

#[device]
impl Head {
    /// Leaves in the slot the inputs of a channel that the next row sees.
    ///
    /// # Safety
    /// Nobody else reads or writes them.
    #[inline(always)]
    unsafe fn keep(self, channel: u32, inputs: Inputs) {
        repeat(TAPS as usize - 1, |j| {
            // SAFETY: the caller's promise.
            unsafe { *self.slot.add(offset(j as u32, self.channels, channel)) = inputs[j + 1] }
        });
    }

    /// Channel `i` of the head's Q; K's are `key_size` behind.
    #[inline(always)]
    fn query(self, i: u32) -> u32 {
        self.key_head * HEAD_DIM + i
    }

    /// Channel `i` of the head's V.
    #[inline(always)]
    fn value(self, i: u32) -> u32 {
        2 * self.key_size + self.head * HEAD_DIM + i
    }
}

/// A lane's quarter of a column of a state.
#[device]
struct Column {
    values: [f32; VALUES],
    place: *mut f32,
    part: u32,
}

#[device]
impl Column {
    const STRIDE: usize = PARTS * HEAD_DIM as usize;

    /// Of column `column` of the head, begun to be loaded.
    ///
    /// # Safety
    /// There is such a column, and nobody writes it.
    #[inline(always)]
    unsafe fn load(of: Head, first_value: u32, column: u32) -> Self {
        let part = warp::lane_id() / WARP_COLUMNS;
        let first = (first_value + of.head * HEAD_DIM * HEAD_DIM + part * HEAD_DIM + column) as usize;
        let place = of.slot.wrapping_add(first);
        let mut values = [0.0; VALUES];
        // SAFETY: the caller's promise. What is another sequence's is loaded too: whether it is would have to be waited for.
        repeat(VALUES, |i| values[i] = unsafe { *place.add(i * Self::STRIDE) });
        Self { values, place, part }
    }

    /// Takes the column on by a row with this `v` and writes it; what it answers, in all lanes that share it. `qk` has Q and K as they were convolved.
    ///
    /// # Safety
    /// Nobody else uses the column; `qk` is complete; all lanes of the warp call it together.
    #[inline(always)]
    unsafe fn step(mut self, qk: Shared<f32>, eps: f32, gates: (f32, f32), v: f32) -> f32 {
        let lane = warp::lane_id();
        let (mut q_squares, mut k_squares) = (0.0f32, 0.0f32);
        // SAFETY: inside Q and K, and the column.
        unsafe {
            repeat(4, |i| {
                let d = lane + 32 * i as u32;
                let (q, k) = (qk.get(d), qk.get(HEAD_DIM + d));
                q_squares = q.mul_add(q, q_squares);
                k_squares = k.mul_add(k, k_squares);
            });
            let (q_scale, k_scale) = delta::norm_scales(q_squares, k_squares, eps, HEAD_DIM);
            let of_lane = qk.add(self.part);
            let q = |i: usize| of_lane.get((PARTS * i) as u32) * q_scale;
            let k = |i: usize| of_lane.get(HEAD_DIM + (PARTS * i) as u32) * k_scale;
            let answer = delta::take_row(&mut self.values, q, k, v, gates);
            repeat(VALUES, |i| *self.place.add(i * Self::STRIDE) = self.values[i]);
            answer
        }
    }
}

/// Grid `[value_heads, num_sequences, 1]`, exact; block `[BLOCK_SIZE, 1, 1]`. Sequences have one row or none.
///
/// More threads are allowed than it is launched with: 96 registers then, with which a block fits beside one of the product before it (14 thousand of 64).
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`DeltaStep`], `states` and `out` overlap nothing.
#[kernel(E = [f32, f16], name = "delta_step_{E}_heads", max_threads = 640)]
pub unsafe fn heads<E: Saturate>(
    a: DeltaStep<E>,
    #[shared(3 * HEAD_DIM as usize)] qkv: Shared<f32>,
    #[shared(BLOCK_SIZE as usize / 32)] squares: Shared<f32>,
    #[shared(1)] last: Shared<u32>,
) {
    launch_dependents();
    let (sequence, t) = (thread::block_idx_y(), thread::thread_idx_x());
    let (lane, warp_id) = (warp::lane_id(), warp::warp_id());
    let column = warp_id * WARP_COLUMNS + lane % WARP_COLUMNS;
    // SAFETY: the grid has a block for each head of V of each sequence. Inputs of channels in the slot are written by one thread, after all that read
    // them: of V by the one that did, of Q and K by the last block's. Threads of a block take the same way to barriers.
    unsafe {
        let Some(of) = a.head(thread::block_idx_x(), sequence) else { return };
        let mut state = Column::load(of, a.first_value, column);
        let i = t % HEAD_DIM;
        let channel = if t < HEAD_DIM {
            of.query(i)
        } else if t < 2 * HEAD_DIM {
            of.key_size + of.query(i)
        } else {
            of.value(i)
        };
        let mut before_row = Channel::default();
        if t < 3 * HEAD_DIM {
            before_row = a.channel(of, channel);
        }
        wait_for_dependencies();
        // Weights come with the row.
        let (dt_bias, decay) = (*a.dt_bias.add(of.head as usize), *a.decay.add(of.head as usize));
        let norm = *a.norm.add(column as usize);
        let newest = a.mixed(of, channel);
        let (alpha, beta) = (a.mixed(of, a.alpha + of.head), a.mixed(of, a.beta + of.head));
        let z = a.mixed(of, a.z + of.head * HEAD_DIM + column);
        // What is left of the state, and the share of the difference that is written.
        let (log, share) = delta::log_gates(alpha, dt_bias, decay, beta);
        let gates = (log.exp(), share);
        let (convolved, inputs) = before_row.convolved(newest, of.begins);
        if t < 3 * HEAD_DIM {
            qkv.set(t, convolved);
        }
        if t / HEAD_DIM == 2 {
            of.keep(channel, inputs);
        }
        thread::sync_threads();
        let count = a.heads_of_key();
        let before = if t == 0 { a.count(of, sequence, count) } else { 0 };
        if of.begins {
            state.values = [0.0; VALUES];
        }
        let answer = state.step(qkv, a.eps, gates, qkv.get(2 * HEAD_DIM + column));
        let is_first = lane < WARP_COLUMNS;
        let of_warp = warp::reduce_sum(if is_first { answer * answer } else { 0.0 });
        if lane == 0 {
            squares.set(warp_id, of_warp);
        }
        if t == 0 {
            last.set(0, (before + 1 == count).into());
        }
        thread::sync_threads();
        let of_lane = if lane < BLOCK_SIZE / 32 { squares.get(lane) } else { 0.0 };
        let scale = rms_norm::scale(warp::reduce_sum(of_lane), HEAD_DIM, a.norm_eps);
        if is_first {
            let normed = answer * scale * norm;
            let to = a.out.add(offset(of.row, a.value_heads * HEAD_DIM, of.head * HEAD_DIM + column));
            *to = E::round(normed * (z / (1.0 + (-z).exp())) * a.out_scale);
        }
        if t < 2 * HEAD_DIM && last.get(0) != 0 {
            of.keep(channel, inputs);
        }
    }
}
