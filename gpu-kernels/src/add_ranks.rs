//! The sum over ranks.

use cuda_std::prelude::*;

pub use crate::exchange::{BLOCK_SIZE, CONTROL_WORDS};
#[device]
use crate::{
    exchange::Exchange,
    grid::{repeat, stride_loop},
};

/// `x[i] += Σ part_r[i]` over the ranks `r`, in their order; `part[i] = 0`.
#[kernel_args]
pub struct AddRanks {
    pub num_ranks: u32,
    /// Of the launch's first row of blocks; further rows are those of the ranks behind it, on the same device.
    pub first_rank: u32,
    /// Values that are added up.
    pub count: u64,
    /// Values of `part` that are set to 0, at least `count`.
    pub zeros: u64,
    /// From one rank's values to those of the next one of the launch.
    pub stride: u64,
    /// Words of a slot, at least `count`.
    pub room: u64,
    /// Nanoseconds that a value is waited for.
    pub limit: u64,
    /// u64 `[num_ranks]`: where the slots of each rank are, u64 `[2, num_ranks, room]`
    pub peers: *const u64,
    /// Those of this rank, or of all ranks of the launch.
    pub slots: *mut u64,
    /// u32 `[ranks of the launch, CONTROL_WORDS]`
    pub control: *mut u32,
    /// u32 `[1]`
    pub given_up: *mut u32,
    /// f32 `[zeros]` of each rank of the launch
    pub part: *mut f32,
    /// f32 `[count]` of each rank of the launch
    pub x: *mut f32,
}

/// Grid `[any, ranks of the launch, 1]`, the same on all ranks and no larger than what the device runs at once; block `[BLOCK_SIZE, 1, 1]`.
/// Thread `t` of `T` takes the values `t`, `t + T`, …: it tells all of them, then waits for the others' of the same numbers. Sums are of
/// f32 in the order of the ranks: all ranks have the same bits.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`AddRanks`], all ranks launch it with the same `count`.
#[kernel(E = [f32], name = "add_ranks_{E}_plain", max_threads = 256)]
pub unsafe fn plain(a: AddRanks) {
    // SAFETY: values belong to one thread; the words of slots are those of `count` values.
    unsafe {
        let of_launch = thread::block_idx_y();
        let control = a.control.add((of_launch * CONTROL_WORDS) as usize);
        let ranks = [a.num_ranks, a.first_rank + of_launch];
        let exchange = Exchange::new(ranks, [a.room, a.limit], a.peers, control, a.given_up);
        let first = of_launch as usize * a.stride as usize;
        let (part, x) = (a.part.add(first), a.x.add(first));
        stride_loop(a.count, |i| exchange.tell(i, *part.add(i)));
        let mut is_over = false;
        stride_loop(a.count, |i| {
            let mut sum = 0.0;
            repeat(a.num_ranks as usize, |r| {
                let r = r as u32;
                sum += if r == exchange.rank { *part.add(i) } else { exchange.hear(r, i, &mut is_over) };
            });
            *x.add(i) += sum;
        });
        stride_loop(a.zeros, |i| *part.add(i) = 0.0);
        exchange.end(thread::grid_dim_x());
    }
}
