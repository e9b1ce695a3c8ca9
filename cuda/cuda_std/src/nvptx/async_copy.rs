//! Asynchronous copies: see [`crate::async_copy`].

use core::arch::asm;

macro_rules! copy {
    ($($name:ident, $instruction:literal, $bytes:literal;)*) => { $(
        #[inline(always)]
        pub unsafe fn $name(to: u32, from: u64) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!(
                        "{{ .reg .b64 g; cvta.to.global.u64 g, {1}; ", $instruction, " [{0}], [g], ", $bytes, "; }}"
                    ),
                    in(reg32) to, in(reg64) from, options(nostack, preserves_flags)
                );
            }
        }
    )* };
}

copy! {
    copy_4, "cp.async.ca.shared.global", "4";
    copy_8, "cp.async.ca.shared.global", "8";
    copy_16, "cp.async.ca.shared.global", "16";
    copy_16_l2, "cp.async.cg.shared.global.L2::128B", "16";
    copy_16_l2_256, "cp.async.cg.shared.global.L2::256B", "16";
}

#[inline(always)]
pub unsafe fn copy_16_or_zero(to: u32, from: u64, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1}; cp.async.cg.shared.global.L2::128B [{0}], [g], 16, {2}; }}",
            in(reg32) to, in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub fn commit_group() {
    // SAFETY: counts copies.
    unsafe { asm!("cp.async.commit_group;", options(nostack, preserves_flags)) }
}
#[inline(always)]
pub fn wait_group<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}
#[inline(always)]
pub fn wait_all() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_all;", options(nostack, preserves_flags)) }
}
#[inline(always)]
pub unsafe fn bulk_copy(to: u32, from: u64, bytes: u32, barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [g], {2}, [{3}]; }}",
            in(reg32) to, in(reg64) from, in(reg32) bytes, in(reg32) barrier,
            options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub unsafe fn bulk_copy_hinted(to: u32, from: u64, bytes: u32, barrier: u32, policy: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {1};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [g], {2}, [{3}], {4}; }}",
            in(reg32) to, in(reg64) from, in(reg32) bytes, in(reg32) barrier,
            in(reg64) policy, options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub unsafe fn tensor_copy(to: u32, map: u64, column: u32, row: u32, barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}}}], [{4}];",
            in(reg32) to, in(reg64) map, in(reg32) column, in(reg32) row, in(reg32) barrier,
            options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub unsafe fn bulk_store(to: u64, from: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "cp.async.bulk.global.shared::cta.bulk_group [g], [{1}], {2}; }}",
            in(reg64) to, in(reg32) from, in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub fn bulk_commit_group() {
    // SAFETY: counts copies.
    unsafe { asm!("cp.async.bulk.commit_group;", options(nostack, preserves_flags)) }
}
#[inline(always)]
pub fn bulk_wait_group<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.bulk.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}
#[inline(always)]
pub fn bulk_wait_group_read<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.bulk.wait_group.read {};", const PENDING, options(nostack, preserves_flags)) }
}
#[inline(always)]
pub unsafe fn bulk_prefetch_l2(from: u64, bytes: u32) {
    // SAFETY: the caller's promise; nothing but the cache changes.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; cp.async.bulk.prefetch.L2.global [g], {1}; }}",
            in(reg64) from, in(reg32) bytes, options(nostack, preserves_flags)
        );
    }
}
#[inline(always)]
pub fn fence_proxy_async() {
    // SAFETY: orders memory accesses.
    unsafe { asm!("fence.proxy.async;", options(nostack, preserves_flags)) }
}
#[inline(always)]
pub fn fence_proxy_async_shared() {
    // SAFETY: orders memory accesses.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack, preserves_flags)) }
}
