//! The columns of all ranks side by side.

use cuda_std::prelude::*;

pub use crate::exchange::{BLOCK_SIZE, RESIDENT};
#[device]
use crate::{
    exchange::Exchange,
    grid::{divide, repeat, stride_loop},
};

/// `out[row, r * cols + column] = part_r[row, column]` for all ranks `r`.
#[kernel_args]
pub struct GatherRanks {
    pub num_ranks: u32,
    /// Of the launch's first row of blocks; further rows are those of the ranks behind it, on the same device.
    pub first_rank: u32,
    pub cols: u32,
    /// The first value of `part` that is told, counted row by row, and how many are.
    pub begin: u32,
    pub count: u64,
    /// From one rank's values of `part` to those of the next one of the launch.
    pub stride: u64,
    /// Words of a slot, at least `count`; chunks of one.
    pub room: u64,
    pub chunks: u64,
    /// Nanoseconds that a value is waited for.
    pub limit: u64,
    /// u64 `[num_ranks]`: where the memory of each rank is, u64 `[rank_words(num_ranks, room, chunks)]`
    pub peers: *const u64,
    /// Those of this rank, or of all ranks of the launch: `peers` leads to them, but an emulator knows by this that the launch may touch them.
    pub slots: *mut u64,
    /// u32 `[ranks of the launch, CONTROL_WORDS]`
    pub control: *mut u32,
    /// u32 `[1]`
    pub given_up: *mut u32,
    /// f32 `[any, cols]` of each rank of the launch
    pub part: *const f32,
    /// f32 `[any, num_ranks * cols]` of each rank of the launch
    pub out: *mut f32,
}

/// Grid and block as those of [`AddRanks`](crate::add_ranks::AddRanks), threads to values likewise.
///
/// # Safety
/// As there; `begin + count` values are there.
#[kernel(E = [f32], name = "gather_ranks_{E}_plain", max_threads = 256, min_blocks = 4)]
pub unsafe fn plain(a: GatherRanks) {
    let sizes = [a.room, a.chunks, a.limit];
    // SAFETY: values belong to one thread; the words of slots are those of `count` values.
    unsafe {
        let (exchange, of_launch) =
            Exchange::begin([a.num_ranks, a.first_rank], sizes, a.peers, a.control, a.given_up);
        let first = of_launch * a.stride as usize;
        let (part, out) = (a.part.add(first), a.out.add(first * a.num_ranks as usize));
        let begin = a.begin as usize;
        stride_loop(a.count, |i| exchange.tell(i, *part.add(begin + i)));
        let mut is_over = false;
        stride_loop(a.count, |i| {
            let (row, column) = divide(a.begin + i as u32, a.cols);
            repeat(a.num_ranks as usize, |r| {
                let r = r as u32;
                let own = r == exchange.rank;
                let value = if own { *part.add(begin + i) } else { exchange.hear(r, i, &mut is_over) };
                let of_row = (row * a.num_ranks + r) as usize;
                *out.add(of_row * a.cols as usize + column as usize) = value;
            });
        });
        exchange.end(thread::grid_dim_x());
    }
}
