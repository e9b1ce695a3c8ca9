//! The thread's place in its block and grid, and what synchronises a block.
//!
//! Route on the device: LLVM intrinsics for indices and barriers, which are convergent; `asm!` for fences, clocks and
//! sleep, which are a thread's own.

use crate::atomic::{Ordering, Scope, fence};
use crate::target;

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident = $register:ident;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name() -> u32 {
            target::$register()
        }
    )* };
}

index! {
    /// The thread's index in its block, x.
    thread_idx_x = tid_x;
    /// The thread's index in its block, y.
    thread_idx_y = tid_y;
    /// The thread's index in its block, z.
    thread_idx_z = tid_z;
    /// The block's index in the grid, x.
    block_idx_x = ctaid_x;
    /// The block's index in the grid, y.
    block_idx_y = ctaid_y;
    /// The block's index in the grid, z.
    block_idx_z = ctaid_z;
    /// Threads of a block in x.
    block_dim_x = ntid_x;
    /// Threads of a block in y.
    block_dim_y = ntid_y;
    /// Threads of a block in z.
    block_dim_z = ntid_z;
    /// Blocks of the grid in x.
    grid_dim_x = nctaid_x;
    /// Blocks of the grid in y.
    grid_dim_y = nctaid_y;
    /// Blocks of the grid in z.
    grid_dim_z = nctaid_z;
}

/// Three dimensions of a grid, a block or an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UVec3 {
    /// The fastest dimension.
    pub x: u32,
    /// The middle dimension.
    pub y: u32,
    /// The slowest dimension.
    pub z: u32,
}

/// The thread's index in its block.
#[inline(always)]
#[must_use]
pub fn thread_idx() -> UVec3 {
    UVec3 { x: thread_idx_x(), y: thread_idx_y(), z: thread_idx_z() }
}

/// The block's index in the grid.
#[inline(always)]
#[must_use]
pub fn block_idx() -> UVec3 {
    UVec3 { x: block_idx_x(), y: block_idx_y(), z: block_idx_z() }
}

/// Threads of a block.
#[inline(always)]
#[must_use]
pub fn block_dim() -> UVec3 {
    UVec3 { x: block_dim_x(), y: block_dim_y(), z: block_dim_z() }
}

/// Blocks of the grid.
#[inline(always)]
#[must_use]
pub fn grid_dim() -> UVec3 {
    UVec3 { x: grid_dim_x(), y: grid_dim_y(), z: grid_dim_z() }
}

/// The thread's index in its block counted over x, y and z, x fastest.
#[inline(always)]
#[must_use]
pub fn index_in_block() -> u32 {
    (thread_idx_z() * block_dim_y() + thread_idx_y()) * block_dim_x() + thread_idx_x()
}

/// The block's index in the grid counted over x, y and z, x fastest.
#[inline(always)]
#[must_use]
pub fn index_of_block() -> u32 {
    (block_idx_z() * grid_dim_y() + block_idx_y()) * grid_dim_x() + block_idx_x()
}

/// The thread's index in the grid for any shape of grid and block: block by block, x fastest; modulo 2^32.
#[inline(always)]
#[must_use]
pub fn index() -> u32 {
    index_of_block() * (block_dim_x() * block_dim_y() * block_dim_z()) + index_in_block()
}

/// The thread's index in a grid that is one-dimensional; modulo 2^32.
#[inline(always)]
#[must_use]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// The thread's indices (x, y) in a grid that is two-dimensional.
#[inline(always)]
#[must_use]
pub fn index_2d() -> (u32, u32) {
    (index_1d(), block_idx_y() * block_dim_y() + thread_idx_y())
}

/// The thread's indices (x, y, z) in a grid that is three-dimensional.
#[inline(always)]
#[must_use]
pub fn index_3d() -> (u32, u32, u32) {
    let (x, y) = index_2d();
    (x, y, block_idx_z() * block_dim_z() + thread_idx_z())
}

/// Whether this is the one thread with every index zero.
#[inline(always)]
#[must_use]
pub fn first() -> bool {
    (thread_idx_x() | thread_idx_y() | thread_idx_z() | block_idx_x() | block_idx_y() | block_idx_z()) == 0
}

/// Threads of a warp: 32 on every device so far, and a constant of this crate's shuffles.
#[inline(always)]
#[must_use]
pub const fn warp_size() -> u32 {
    32
}

/// Waits until every thread of the block is here; memory accesses of the block before it are seen after it.
///
/// Every thread of the block must come to the same call; where some do not, the block hangs.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn sync_threads() {
    target::barrier_sync(0);
}

/// [`sync_threads`], and in how many threads `predicate` is not zero.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn sync_threads_count(predicate: u32) -> u32 {
    target::barrier_popc(0, predicate != 0)
}

/// [`sync_threads`], and 1 if `predicate` is not zero in every thread, otherwise 0.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn sync_threads_and(predicate: u32) -> u32 {
    target::barrier_and(0, predicate != 0).into()
}

/// [`sync_threads`], and 1 if `predicate` is not zero in at least one thread, otherwise 0.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn sync_threads_or(predicate: u32) -> u32 {
    target::barrier_or(0, predicate != 0).into()
}

/// The hardware barrier `barrier` (0 to 15; 0 is [`sync_threads`]) for a part of the block: waits until
/// `threads` threads, this one among them, have come to [`sync_named`] or [`arrive_named`] with it.
///
/// # Safety
/// `threads` is a multiple of 32 and the same for everyone who uses the barrier in this phase; all lanes of a
/// warp call it together.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn sync_named(barrier: u32, threads: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::barrier_sync_count(barrier, threads) }
}

/// Counts as arrived at the hardware barrier `barrier` without waiting: the producer's half of
/// [`sync_named`].
///
/// # Safety
/// As for [`sync_named`]; and this thread waits for the barrier before it arrives there again.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn arrive_named(barrier: u32, threads: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::barrier_arrive_count(barrier, threads) }
}

/// Orders this thread's memory accesses before it against those after it, as the block sees them.
#[inline(always)]
pub fn block_fence() {
    fence(Ordering::SeqCst, Scope::Block);
}

/// Orders this thread's memory accesses before it against those after it, as the device sees them.
#[inline(always)]
pub fn device_fence() {
    fence(Ordering::SeqCst, Scope::Device);
}

/// Rust-CUDA's other name for [`device_fence`]: a fence, not a barrier; that is
/// [`GridBarrier`](crate::grid::GridBarrier).
#[inline(always)]
pub fn grid_fence() {
    device_fence();
}

/// Orders this thread's memory accesses before it against those after it, as all devices and the host see
/// them.
#[inline(always)]
pub fn system_fence() {
    fence(Ordering::SeqCst, Scope::System);
}

/// Sleeps for about `nanos` nanoseconds (0 to twice as long, one millisecond at most).
#[inline(always)]
pub fn nanosleep(nanos: u32) {
    target::nanosleep(nanos);
}

macro_rules! counter {
    ($($(#[$doc:meta])* $name:ident, $type:ty;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name() -> $type {
            target::$name()
        }
    )* };
}

counter! {
    /// Cycles of this multiprocessor, modulo 2^32.
    clock, u32;
    /// Cycles of this multiprocessor.
    clock64, u64;
    /// Nanoseconds of a clock that the whole device shares; how often it moves on depends on the device.
    globaltimer, u64;
    /// The multiprocessor that the thread runs on right now.
    multiprocessor_id, u32;
}
