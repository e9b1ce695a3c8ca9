//! The columns of all ranks side by side.

use super::device::{Dependent, Device};
use super::launch::{dimension, launch};
use super::ranks::{Ranks, Room};
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::gather_ranks::{BLOCK_SIZE, GatherRanksArgs, RESIDENT, plain};

const OP: &str = "gather_ranks";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// `[n, cols]` of each rank `-> [n, ranks * cols]`. Where all ranks are on this device each tensor has `n` rows of all of them, one
/// rank's below the other's.
pub(super) fn gather_ranks(
    device: &Device,
    ranks: &mut Ranks,
    n: usize,
    part: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let cols = part.cols;
    let rows = ranks.of_launch() * n;
    part.expect(OP, "part", rows, cols)?;
    out.expect(OP, "out", rows, ranks.num_ranks() as usize * cols)?;
    let count = dimension(OP, n * cols)? as usize;
    let Room { words, chunks } = ranks.room();
    for begin in (0..count).step_by(words) {
        let values = (count - begin).min(words);
        let arguments = GatherRanksArgs {
            num_ranks: ranks.num_ranks(),
            first_rank: ranks.first_rank(),
            cols: dimension(OP, cols)?,
            begin: begin as u32,
            count: values as u64,
            stride: count as u64,
            room: words as u64,
            chunks: chunks as u64,
            limit: ranks.limit(),
            peers: ranks.peers(),
            slots: ranks.slots(),
            control: ranks.control(),
            given_up: ranks.given_up(),
            part: part.ptr(),
            out: out.ptr_mut(),
        };
        let config = ranks.config(device, values, BLOCK_SIZE, RESIDENT);
        // SAFETY: as for `add_ranks`.
        unsafe { launch(&Dependent(device), plain(), &[], &config, arguments)? }
    }
    Ok(())
}
