//! The convolution before linear attention, over the rows of each sequence.
//!
//! `out[t] = silu(Σ_j weight[j] * x[t + 1 + j - taps])` of each channel, summed from left to right, with `silu(v) = v / (1 + e^-v)`. Inputs of
//! the `taps - 1` tokens before a sequence's first row in the batch are in its slot, and those before its last row's are left there; before
//! position 0 there are zeros. A row has the same bits from every kernel, however its sequence was cut into chunks.

use cuda_std::prelude::*;

#[device]
use crate::{
    fused::{launch_dependents, wait_for_dependencies},
    grid::{offset, repeat},
    vector::Group,
};

/// Threads of a block, a channel each.
pub const BLOCK_SIZE: u32 = 128;

/// What all kernels take.
#[kernel_args]
pub struct CausalConv {
    pub num_tokens: u32,
    pub channels: u32,
    /// Tokens that an output sees, at least 1.
    pub taps: u32,
    /// Columns of `x`, at least `channels`.
    pub cols: u32,
    /// u32 `[num_tokens]`
    pub positions: *const u32,
    /// u32 `[num_tokens]`
    pub sequence_of_token: *const u32,
    /// u32 `[num_sequences + 1]`
    pub query_start: *const u32,
    /// u32 `[num_sequences]`, each below `num_slots`, all different
    pub state_slots: *const u32,
    /// f32 `[num_tokens, cols]`
    pub x: *const f32,
    /// f32 `[channels, taps]`
    pub weight: *const f32,
    /// f32 `[num_slots, slot_values]`, a layer's; a slot begins with `[taps - 1, channels]`, the oldest first.
    pub states: *mut f32,
    pub slot_values: u32,
    /// f32 `[num_tokens, channels]`
    pub out: *mut f32,
}

/// A sequence's rows in the batch and its slot.
#[device]
#[derive(Clone, Copy)]
struct Sequence {
    first: u32,
    end: u32,
    state: *mut f32,
    /// Its first row is at position 0: what the slot has is another sequence's.
    begins: bool,
}

#[device]
impl CausalConv {
    /// # Safety
    /// The arrays are as described and the sequence is one of the batch.
    #[inline(always)]
    unsafe fn sequence(&self, s: u32) -> Sequence {
        // SAFETY: the caller's promise.
        unsafe {
            let first = *self.query_start.add(s as usize);
            let slot = *self.state_slots.add(s as usize);
            Sequence {
                first,
                end: *self.query_start.add(s as usize + 1),
                state: self.states.add(offset(slot, self.slot_values, 0)),
                begins: *self.positions.add(first as usize) == 0,
            }
        }
    }

    /// The input of a channel that is `index - (taps - 1)` rows behind the sequence's first one in the batch.
    ///
    /// # Safety
    /// As above, and it is not behind the sequence's last row.
    #[inline(always)]
    unsafe fn input(&self, of: Sequence, index: u32, channel: u32) -> f32 {
        let before = self.taps - 1;
        // SAFETY: the caller's promise.
        unsafe {
            if index >= before {
                *self.x.add(offset(of.first + index - before, self.cols, channel))
            } else if of.begins {
                0.0
            } else {
                *of.state.add(offset(index, self.channels, channel))
            }
        }
    }

    /// As [`CausalConv::input`], of four channels.
    ///
    /// # Safety
    /// As there; arrays are aligned to 16 bytes, and the slot's values, `channels` and `cols` are multiples of 4.
    #[inline(always)]
    unsafe fn four_inputs(&self, of: Sequence, index: u32, channel: u32) -> [f32; 4] {
        let before = self.taps - 1;
        // SAFETY: the caller's promise.
        unsafe {
            if index >= before {
                f32::load_group(self.x.add(offset(of.first + index - before, self.cols, channel)))
            } else if of.begins {
                [0.0; 4]
            } else {
                f32::load_group(of.state.cast_const().add(offset(index, self.channels, channel)))
            }
        }
    }

    /// The output of a channel for row `t` of a sequence.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn output(&self, of: Sequence, t: u32, channel: u32) -> f32 {
        let (mut sum, mut j) = (0.0, 0);
        while j < self.taps {
            // SAFETY: the caller's promise; the weight has `taps` values a channel.
            unsafe {
                sum = (*self.weight.add(offset(channel, self.taps, j)))
                    .mul_add(self.input(of, t + j, channel), sum);
            }
            j += 1;
        }
        sum / (1.0 + (-sum).exp())
    }

    /// Leaves the last inputs of a channel in the slot.
    ///
    /// # Safety
    /// As above; nobody else writes to the channel of the slot.
    #[inline(always)]
    unsafe fn keep(&self, of: Sequence, channel: u32) {
        let mut kept = 0;
        while kept < self.taps - 1 {
            // SAFETY: the caller's promise. What is read of the slot was not written yet: it is behind.
            unsafe {
                let value = self.input(of, of.end - of.first + kept, channel);
                *of.state.add(offset(kept, self.channels, channel)) = value;
            }
            kept += 1;
        }
    }
}

/// A thread a channel of a sequence, which goes through its rows and leaves the last inputs in its slot. Written to be read, and the
/// quickest way for a decode step, in which every sequence has one row.
///
/// Grid `[num_sequences, ceil(channels / BLOCK_SIZE), 1]`, exact in the sequences; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`CausalConv`], `out` and `states` overlap nothing.
#[kernel(E = [f32], name = "causal_conv_{E}_plain", max_threads = 128)]
pub unsafe fn plain(a: CausalConv) {
    launch_dependents();
    wait_for_dependencies();
    let Some((sequence, channel)) = crate::grid::row_and_column(a.channels) else { return };
    // SAFETY: the grid has a row of blocks a sequence; each thread has its own channel.
    unsafe {
        let sequence = a.sequence(sequence);
        let mut row = sequence.first;
        while row < sequence.end {
            let output = a.output(sequence, row - sequence.first, channel);
            *a.out.add(offset(row, a.channels, channel)) = output;
            row += 1;
        }
        if sequence.first < sequence.end {
            a.keep(sequence, channel);
        }
    }
}

/// The outputs of all rows at once; the slots are read, and written by [`keep`] behind.
///
/// Grid `[num_tokens, ceil(channels / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`: a thread an output.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`CausalConv`], `out` overlaps nothing.
#[kernel(E = [f32], name = "causal_conv_{E}_rows", max_threads = 128)]
pub unsafe fn rows(a: CausalConv) {
    launch_dependents();
    wait_for_dependencies();
    let Some((row, channel)) = crate::grid::row_and_column(a.channels) else { return };
    // SAFETY: the grid has a row of blocks a token; channels are columns.
    unsafe {
        let sequence = a.sequence(*a.sequence_of_token.add(row as usize));
        *a.out.add(offset(row, a.channels, channel)) = a.output(sequence, row - sequence.first, channel);
    }
}

/// Taps of [`strips`].
pub const STRIP_TAPS: u32 = 4;
/// Rows of a thread of [`strips`].
pub const STRIP_ROWS: u32 = 16;

/// Four channels and [`STRIP_ROWS`] rows a thread, which reads an input once where it has four outputs; the slots are read, and written by [`keep`]
/// behind. `taps` is [`STRIP_TAPS`], `channels` and `cols` are multiples of 4, arrays aligned to 16 bytes, a slot's values a multiple of 4.
///
/// Grid `[ceil(num_tokens / STRIP_ROWS), ceil(channels / 4 / BLOCK_SIZE), 1]`, exact in the strips; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`CausalConv`], `out` overlaps nothing.
#[kernel(E = [f32], name = "causal_conv_{E}_strips", max_threads = 128)]
pub unsafe fn strips(a: CausalConv) {
    launch_dependents();
    wait_for_dependencies();
    let Some((strip, group)) = crate::grid::row_and_column(a.channels / 4) else { return };
    let channel = 4 * group;
    // SAFETY: the grid has a row of blocks a strip; channels are columns, rows below `num_tokens`.
    unsafe {
        let mut weights = [[0.0f32; 4]; 4];
        repeat(4, |c| weights[c] = f32::load_group(a.weight.add(offset(channel + c as u32, STRIP_TAPS, 0))));
        let begin = strip * STRIP_ROWS;
        let end = (begin + STRIP_ROWS).min(a.num_tokens);
        let mut sequence = a.sequence(*a.sequence_of_token.add(begin as usize));
        // Inputs of the three rows before this one, the oldest first.
        let mut before = [[0.0f32; 4]; 3];
        let mut row = begin;
        while row < end {
            if row == sequence.end {
                sequence = a.sequence(*a.sequence_of_token.add(row as usize));
            }
            if row == begin || row == sequence.first {
                repeat(3, |j| before[j] = a.four_inputs(sequence, row - sequence.first + j as u32, channel));
            }
            let newest: [f32; 4] = f32::load_group(a.x.add(offset(row, a.cols, channel)));
            let mut outputs = [0.0f32; 4];
            repeat(4, |c| {
                let mut sum = weights[c][0].mul_add(before[0][c], 0.0);
                sum = weights[c][1].mul_add(before[1][c], sum);
                sum = weights[c][2].mul_add(before[2][c], sum);
                sum = weights[c][3].mul_add(newest[c], sum);
                outputs[c] = sum / (1.0 + (-sum).exp());
            });
            f32::store_group(a.out.add(offset(row, a.channels, channel)), outputs);
            before = [before[1], before[2], newest];
            row += 1;
        }
    }
}

/// Leaves the last inputs of each sequence in its slot.
///
/// Grid `[num_sequences, ceil(channels / BLOCK_SIZE), 1]`, exact in the sequences; block `[BLOCK_SIZE, 1, 1]`: a thread a channel.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`CausalConv`], `states` overlaps nothing.
#[kernel(E = [f32], name = "causal_conv_keep_{E}_rows", max_threads = 128)]
pub unsafe fn keep(a: CausalConv) {
    launch_dependents();
    wait_for_dependencies();
    let Some((sequence, channel)) = crate::grid::row_and_column(a.channels) else { return };
    // SAFETY: the grid has a row of blocks a sequence; each thread has its own channel.
    unsafe {
        let sequence = a.sequence(sequence);
        if sequence.first < sequence.end {
            a.keep(sequence, channel);
        }
    }
}
