//! The sum over ranks.

use super::device::{Dependent, Device};
use super::launch::{always, launch};
use super::ranks::{MANY, Ranks, Room};
use super::tensor::Tensor;
use super::variant::{KernelChoice, select, variants};
use crate::error::Result;
use cuda_std::launch::{Kernels, LaunchConfig};
use gpu_kernels::add_ranks::*;

const OP: &str = "add_ranks";

pub(super) struct Case {
    arguments: AddRanksArgs,
    /// Grids of blocks that take a value a thread, and a chunk at a time.
    grids: [LaunchConfig; 2],
}

/// Tells chunks, or words.
const BULK: &str = "bulk";
const PLAIN: &str = "plain";

/// How a variant is launched.
type Launch = unsafe fn(&Device, &Case) -> Result<()>;

/// # Safety
/// The case is one for the kernel, and the grid the kernel's.
unsafe fn launch_one(
    device: &Device,
    case: &Case,
    kernels: &Kernels<AddRanksArgs>,
    grid: usize,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch(&Dependent(device), kernels, &[], &case.grids[grid], case.arguments) }
}

variants! { Case, Launch;
    BULK [bulk]: groups_of_4 => |device, case| unsafe { launch_one(device, case, bulk(), 1) };
    PLAIN [plain]: always => |device, case| unsafe { launch_one(device, case, plain(), 0) };
}

fn groups_of_4(case: &Case) -> Result<(), &'static str> {
    let AddRanksArgs { count, stride, num_ranks, chunks, .. } = case.arguments;
    if num_ranks > BLOCK_SIZE {
        Err("there are more ranks than threads of a block")
    } else if !count.is_multiple_of(4) || !stride.is_multiple_of(4) {
        Err("the number of values is not a multiple of 4")
    } else if chunks == 0 {
        Err("slots have no room for chunks")
    } else {
        Ok(())
    }
}

/// The variant for so many values, where nobody asks for another, with slots of so many chunks.
fn preferred(count: usize, chunks: usize) -> &'static str {
    if count < MANY || !count.is_multiple_of(4) || chunks == 0 { PLAIN } else { BULK }
}

/// `x += Σ part_r` over the ranks: the first `n` rows of `[rows, cols]`; of `part`, this rank's, the first `zeros` rows are 0 then, and others may
/// be. Where all ranks are on this device each tensor has `n` rows of all of them, one rank's below the other's, and all become 0.
pub(super) fn add_ranks(
    device: &Device,
    choice: &KernelChoice,
    ranks: &mut Ranks,
    [n, zeros]: [usize; 2],
    part: &mut Tensor,
    x: &mut Tensor,
) -> Result<()> {
    let cols = x.cols;
    let of_launch = ranks.of_launch() * n;
    x.expect(OP, "x", of_launch, cols)?;
    let zeros = if ranks.of_launch() > 1 { n } else { zeros };
    part.expect(OP, "part", of_launch.max(zeros), cols)?;
    let (count, zeros) = (n * cols, zeros * cols);
    let Room { words, chunks } = ranks.room();
    let wanted = choice.get(OP).unwrap_or(preferred(count, chunks));
    let room = if wanted == PLAIN { words } else { chunks.max(1) * CHUNK as usize };
    for begin in (0..count).step_by(room) {
        let values = (count - begin).min(room);
        let is_last = begin + values == count;
        let arguments = AddRanksArgs {
            num_ranks: ranks.num_ranks(),
            first_rank: ranks.first_rank(),
            count: values as u64,
            zeros: zeros.saturating_sub(begin).min(if is_last { usize::MAX } else { values }) as u64,
            stride: count as u64,
            room: words as u64,
            chunks: chunks as u64,
            limit: ranks.limit(),
            peers: ranks.peers(),
            slots: ranks.slots(),
            control: ranks.control(),
            given_up: ranks.given_up(),
            part: part.ptr_mut().add(begin),
            x: x.ptr_mut().add(begin),
        };
        let grids = [(BLOCK_SIZE, RESIDENT), (CHUNK, RESIDENT_OF_BULK)]
            .map(|(of_block, resident)| ranks.config(device, values, of_block, resident));
        let case = Case { arguments, grids };
        let variant = select(OP, VARIANTS, &case, Some(wanted))?;
        // SAFETY: the grids are ones that run at once; `part` and `x` have the rows, checked above, slots have room for them, and all
        // ranks come here with the same shapes.
        unsafe { (variant.launch)(device, &case)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_few_rows_tells_each_value_its_number() {
        assert_eq!([preferred(3584, 9), preferred(MANY - 1, 9)], [PLAIN; 2]);
        assert_eq!(preferred(2048 * 3584, 9), BULK);
        assert_eq!([preferred(MANY + 1, 9), preferred(MANY, 0)], [PLAIN; 2]);
    }
}
