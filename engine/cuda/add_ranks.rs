//! The sum over ranks.

use super::device::Device;
use super::launch::launch;
use super::ranks::Ranks;
use super::tensor::Tensor;
use super::variant::Operation;
use crate::error::Result;
use gpu_kernels::add_ranks::{AddRanksArgs, plain};

const OP: &str = "add_ranks";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[plain().instances()])
}

/// `x += Σ part_r` over the ranks; `part`, this rank's, is 0 then: the first `n` rows of `[rows, cols]`; of `part` the first `padded`
/// become 0. Where all ranks are on this device each tensor has `n` rows of all of them, one rank's below the other's.
pub(super) fn add_ranks(
    device: &Device,
    ranks: &mut Ranks,
    [n, padded]: [usize; 2],
    part: &mut Tensor,
    x: &mut Tensor,
) -> Result<()> {
    let cols = x.cols;
    let of_launch = ranks.of_launch() * n;
    x.expect(OP, "x", of_launch, cols)?;
    let padded = if ranks.of_launch() > 1 { n } else { padded.max(n) };
    part.expect(OP, "part", of_launch.max(padded), cols)?;
    let (count, zeros) = (n * cols, padded * cols);
    for begin in (0..count).step_by(ranks.room()) {
        let values = (count - begin).min(ranks.room());
        let is_last = begin + values == count;
        let arguments = AddRanksArgs {
            num_ranks: ranks.num_ranks(),
            first_rank: ranks.first_rank(),
            count: values as u64,
            zeros: if is_last { (zeros - begin) as u64 } else { values as u64 },
            stride: count as u64,
            room: ranks.room() as u64,
            limit: ranks.limit(),
            peers: ranks.peers(),
            slots: ranks.slots(),
            control: ranks.control(),
            given_up: ranks.given_up(),
            part: part.ptr_mut().add(begin),
            x: x.ptr_mut().add(begin),
        };
        // SAFETY: the grid is one that runs at once; `part` and `x` have the rows, checked above, slots have `room` words, and all ranks
        // come here with the same shapes.
        unsafe { launch(device, plain(), &[], &ranks.config(device, values), arguments)? }
    }
    Ok(())
}
