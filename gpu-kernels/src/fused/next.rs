//! What the kernel behind this one reads first, asked for into L2.
//!
//! Between two kernels of a chain the memory would rest: the blocks of one add up and end, those of the next find room, begin and wait for its
//! latency. So a warp that has started its last copy of weights asks for its part of where the next kernel's begin. The requests queue
//! behind the copies, nobody waits for them, and no value depends on them.

use cuda_std::prelude::*;

#[device]
use crate::grid::divide;
#[device]
use cuda_std::async_copy::bulk_prefetch_l2;

/// Bytes that a lane asks for at once.
pub const PIECE: u32 = 1024;

/// Regions of memory that lie `stride` bytes apart; by default none.
///
/// Its address is a number: nothing is read there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Next {
    /// The address of the first byte of the first one, a multiple of 16.
    pub from: u64,
    pub stride: u64,
    /// Of each: a multiple of [`PIECE`].
    pub bytes: u32,
    /// How many; where nothing is to be asked for, 0.
    pub regions: u32,
}

#[device]
impl Next {
    /// Asks for this thread's part of them. On devices before sm_90, whose text has no such instruction, nothing.
    ///
    /// # Safety
    /// The regions belong to allocations.
    #[inline(always)]
    pub unsafe fn prefetch(self) {
        let pieces = self.bytes / PIECE;
        let mut piece = thread::block_idx_x() * thread::block_dim_x() + thread::thread_idx_x();
        while piece < pieces * self.regions {
            let (region, piece_of_region) = divide(piece, pieces);
            let place = u64::from(region).wrapping_mul(self.stride) + u64::from(piece_of_region * PIECE);
            // SAFETY: the caller's promise.
            unsafe { bulk_prefetch_l2(self.from.wrapping_add(place) as *const u8, PIECE) };
            piece += thread::grid_dim_x() * thread::block_dim_x();
        }
    }
}
