//! Copies that run while the thread goes on: `cp.async` (sm_80) and bulk copies (sm_90).
//!
//! Route on the device: `asm!`; every one of these is a thread's own instruction. A copied byte may be read after the
//! thread waited for its copies, and by other threads after a barrier on top of that.

use crate::Bits;
use crate::mbarrier::Mbarrier;
use crate::memory::CachePolicy;
use crate::shared::Shared;
use crate::target::async_copy as target;
use crate::tensor_map::TensorMap;

macro_rules! copy {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `from` leads to that many readable bytes in global memory, `to` to that many in the block's shared
        /// memory, both aligned to their number; nobody touches `to` before the copy was waited for.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        pub unsafe fn $name<T: Bits, U>(to: Shared<T>, from: *const U) {
            // SAFETY: the caller's promise.
            unsafe { target::$name(to.address(), from as u64) }
        }
    )* };
}

copy! {
    /// Copies 4 bytes, through L1 and L2.
    copy_4;
    /// Copies 8 bytes, through L1 and L2.
    copy_8;
    /// Copies 16 bytes, through L1 and L2.
    copy_16;
    /// Copies 16 bytes past L1, fetching 128 into L2.
    copy_16_l2;
    /// Copies 16 bytes past L1, fetching 256 into L2.
    copy_16_l2_256;
}

/// Copies the first `bytes` (0 to 16) of 16 bytes past L1 and sets the rest to zero: the ragged edge of a
/// tile.
///
/// # Safety
/// As for [`copy_16_l2`], but only `bytes` need to be readable.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn copy_16_or_zero<T: Bits, U>(to: Shared<T>, from: *const U, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::copy_16_or_zero(to.address(), from as u64, bytes) }
}

/// Ends this thread's current group of `copy_…`.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn commit_group() {
    target::commit_group();
}

/// Waits until at most the `PENDING` most recent groups of this thread's copies are under way.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn wait_group<const PENDING: u32>() {
    target::wait_group::<PENDING>();
}

/// Waits for all of this thread's copies.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn wait_all() {
    target::wait_all();
}

/// Copies `bytes` to shared memory as one transfer, which counts as `bytes` at `barrier` when it is there.
/// sm_90.
///
/// One thread issues it, after [`Mbarrier::arrive_expect_tx`] for the same number.
///
/// # Safety
/// `from` leads to `bytes` readable bytes of global memory, `to` to as many in the block's shared memory;
/// both addresses and `bytes` are multiples of 16; `barrier` is initialised; nobody touches `to` before the
/// barrier's phase is complete.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn bulk_copy<T: Bits, U>(to: Shared<T>, from: *const U, bytes: u32, barrier: Mbarrier) {
    // SAFETY: the caller's promise.
    unsafe { target::bulk_copy(to.address(), from as u64, bytes, barrier.address()) }
}

/// [`bulk_copy`] with a policy for L2. sm_90.
///
/// # Safety
/// As for [`bulk_copy`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn bulk_copy_hinted<T: Bits, U>(
    to: Shared<T>,
    from: *const U,
    bytes: u32,
    barrier: Mbarrier,
    policy: CachePolicy,
) {
    // SAFETY: the caller's promise.
    unsafe { target::bulk_copy_hinted(to.address(), from as u64, bytes, barrier.address(), policy.bits()) }
}

/// Copies the box of a matrix that begins at a column and a row to shared memory; `barrier` counts its [bytes](TensorMap::box_bytes). sm_90.
///
/// # Safety
/// `map` leads to the map of a matrix that is there, in global memory, and was written before the launch; `to` leads to the box's bytes of the block's shared memory,
/// aligned to 1,024, which nobody uses until a wait for the barrier's phase; that phase expects them.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn tensor_copy<T: Bits>(
    to: Shared<T>,
    map: *const TensorMap,
    [column, row]: [u32; 2],
    barrier: Mbarrier,
) {
    // SAFETY: the caller's promise.
    unsafe { target::tensor_copy(to.address(), map as u64, column, row, barrier.address()) }
}

/// Copies `bytes` from shared to global memory, as part of this thread's current bulk group. sm_90.
///
/// What other threads wrote to `from` needs a [`fence_proxy_async`] by each of them and a barrier before it.
///
/// # Safety
/// `from` leads to `bytes` of the block's shared memory, `to` to as many writable bytes of global memory;
/// both addresses and `bytes` are multiples of 16; `from` is not written before [`bulk_wait_group_read`] or
/// [`bulk_wait_group`].
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn bulk_store<T, U: Bits>(to: *mut T, from: Shared<U>, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::bulk_store(to as u64, from.address(), bytes) }
}

/// Ends this thread's current group of bulk stores. sm_90.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn bulk_commit_group() {
    target::bulk_commit_group();
}

/// Waits until at most `PENDING` of this thread's bulk groups are under way. sm_90.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn bulk_wait_group<const PENDING: u32>() {
    target::bulk_wait_group::<PENDING>();
}

/// Waits until at most `PENDING` of this thread's bulk groups still read their source. sm_90.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn bulk_wait_group_read<const PENDING: u32>() {
    target::bulk_wait_group_read::<PENDING>();
}

/// Asks for `bytes` of global memory into L2. sm_90.
///
/// # Safety
/// The `bytes` at `from` belong to an allocation; address and `bytes` are multiples of 16.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn bulk_prefetch_l2<T>(from: *const T, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe { target::bulk_prefetch_l2(from as u64, bytes) }
}

/// Orders this thread's ordinary accesses to shared memory against its later bulk copies (and the other way
/// round). sm_90.
#[inline(always)]
pub fn fence_proxy_async() {
    target::fence_proxy_async();
}

/// [`fence_proxy_async`] for shared memory alone. sm_90.
#[inline(always)]
pub fn fence_proxy_async_shared() {
    target::fence_proxy_async_shared();
}
