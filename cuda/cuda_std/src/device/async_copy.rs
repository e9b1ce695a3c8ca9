//! Copies that run while the thread goes on: `cp.async` (sm_80) and bulk copies (sm_90).
//!
//! Route: `asm!`; every one of these is a thread's own instruction. A copied byte may be read after the
//! thread waited for its copies, and by other threads after a barrier on top of that.

use core::arch::asm;

use crate::Bits;
use crate::mbarrier::Mbarrier;
use crate::memory::CachePolicy;
use crate::shared::Shared;

macro_rules! copy {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal, $bytes:literal;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `from` leads to that many readable bytes in global memory, `to` to that many in the block's shared
        /// memory, both aligned to their number; nobody touches `to` before the copy was waited for.
        #[inline(always)]
        pub unsafe fn $name<T: Bits, U>(to: Shared<T>, from: *const U) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!(
                        "{{ .reg .b64 g; cvta.to.global.u64 g, {1}; ", $instruction, " [{0}], [g], ", $bytes, "; }}"
                    ),
                    in(reg32) to.address(), in(reg64) from, options(nostack, preserves_flags)
                );
            }
        }
    )* };
}

copy! {
    /// Copies 4 bytes, through L1 and L2.
    copy_4, "cp.async.ca.shared.global", "4";
    /// Copies 8 bytes, through L1 and L2.
    copy_8, "cp.async.ca.shared.global", "8";
    /// Copies 16 bytes, through L1 and L2.
    copy_16, "cp.async.ca.shared.global", "16";
    /// Copies 16 bytes past L1, fetching 128 into L2.
    copy_16_l2, "cp.async.cg.shared.global.L2::128B", "16";
    /// Copies 16 bytes past L1, fetching 256 into L2.
    copy_16_l2_256, "cp.async.cg.shared.global.L2::256B", "16";
}

/// Copies the first `bytes` (0 to 16) of 16 bytes past L1 and sets the rest to zero: the ragged edge of a
/// tile.
///
/// # Safety
/// As for [`copy_16_l2`], but only `bytes` need to be readable.
#[inline(always)]
pub unsafe fn copy_16_or_zero<T: Bits, U>(to: Shared<T>, from: *const U, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1}; cp.async.cg.shared.global.L2::128B [{0}], [g], 16, {2}; }}",
            in(reg32) to.address(), in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}

/// Ends this thread's current group of `copy_…`.
#[inline(always)]
pub fn commit_group() {
    // SAFETY: counts copies.
    unsafe { asm!("cp.async.commit_group;", options(nostack, preserves_flags)) }
}

/// Waits until at most the `PENDING` most recent groups of this thread's copies are under way.
#[inline(always)]
pub fn wait_group<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}

/// Waits for all of this thread's copies.
#[inline(always)]
pub fn wait_all() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_all;", options(nostack, preserves_flags)) }
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
#[inline(always)]
pub unsafe fn bulk_copy<T: Bits, U>(to: Shared<T>, from: *const U, bytes: u32, barrier: Mbarrier) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [g], {2}, [{3}]; }}",
            in(reg32) to.address(), in(reg64) from, in(reg32) bytes, in(reg32) barrier.address(),
            options(nostack, preserves_flags)
        );
    }
}

/// [`bulk_copy`] with a policy for L2. sm_90.
///
/// # Safety
/// As for [`bulk_copy`].
#[inline(always)]
pub unsafe fn bulk_copy_hinted<T: Bits, U>(
    to: Shared<T>,
    from: *const U,
    bytes: u32,
    barrier: Mbarrier,
    policy: CachePolicy,
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [g], {2}, [{3}], {4}; }}",
            in(reg32) to.address(), in(reg64) from, in(reg32) bytes, in(reg32) barrier.address(),
            in(reg64) policy.bits(), options(nostack, preserves_flags)
        );
    }
}

/// Copies `bytes` from shared to global memory, as part of this thread's current bulk group. sm_90.
///
/// What other threads wrote to `from` needs a [`fence_proxy_async`] by each of them and a barrier before it.
///
/// # Safety
/// `from` leads to `bytes` of the block's shared memory, `to` to as many writable bytes of global memory;
/// both addresses and `bytes` are multiples of 16; `from` is not written before [`bulk_wait_group_read`] or
/// [`bulk_wait_group`].
#[inline(always)]
pub unsafe fn bulk_store<T, U: Bits>(to: *mut T, from: Shared<U>, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "cp.async.bulk.global.shared::cta.bulk_group [g], [{1}], {2}; }}",
            in(reg64) to, in(reg32) from.address(), in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}

/// Ends this thread's current group of bulk stores. sm_90.
#[inline(always)]
pub fn bulk_commit_group() {
    // SAFETY: counts copies.
    unsafe { asm!("cp.async.bulk.commit_group;", options(nostack, preserves_flags)) }
}

/// Waits until at most `PENDING` of this thread's bulk groups are under way. sm_90.
#[inline(always)]
pub fn bulk_wait_group<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.bulk.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}

/// Waits until at most `PENDING` of this thread's bulk groups still read their source. sm_90.
#[inline(always)]
pub fn bulk_wait_group_read<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.bulk.wait_group.read {};", const PENDING, options(nostack, preserves_flags)) }
}

/// Asks for `bytes` of global memory into L2. sm_90.
///
/// # Safety
/// The `bytes` at `from` belong to an allocation; address and `bytes` are multiples of 16.
#[inline(always)]
pub unsafe fn bulk_prefetch_l2<T>(from: *const T, bytes: u32) {
    // SAFETY: the caller's promise; nothing but the cache changes.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; cp.async.bulk.prefetch.L2.global [g], {1}; }}",
            in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}

/// Orders this thread's ordinary accesses to shared memory against its later bulk copies (and the other way
/// round). sm_90.
#[inline(always)]
pub fn fence_proxy_async() {
    // SAFETY: orders memory accesses.
    unsafe { asm!("fence.proxy.async;", options(nostack, preserves_flags)) }
}

/// [`fence_proxy_async`] for shared memory alone. sm_90.
#[inline(always)]
pub fn fence_proxy_async_shared() {
    // SAFETY: orders memory accesses.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack, preserves_flags)) }
}
